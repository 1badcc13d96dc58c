"""Networks whose inner stages answer too, through side branches, and can stop there.

Letters: B images of a batch, C channels, H rows, W columns, K classes, D features.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from hard_fast.models.options import typed_options
from hard_fast.models.small import SMALL_NETS
from hard_fast.models.taps import nearest
from hard_fast.types import Outputs


class Branch(nn.Module):
    """A bottleneck that brings a stage's map to the last stage's shape, its mean, and a classifier.

    Args:    shape, last_shape: C, H, W of the stage's map and of the last stage's.
    Source:  Zhang et al., arXiv:1905.08094; sizes as in luanyunteng/pytorch-be-your-own-teacher:
             1x1, one convolution as wide as its stride, 1x1, each with BatchNorm and ReLU.
    """

    def __init__(self, shape: torch.Size, last_shape: torch.Size, num_classes: int) -> None:
        super().__init__()
        width, stride = max(1, last_shape[0] // 4), max(1, shape[1] // last_shape[1])
        widths, sizes = (shape[0], width, width, last_shape[0]), (1, stride, 1)
        layers: list[nn.Module] = []
        for (before, after), size in zip(pairwise(widths), sizes, strict=True):
            layers += [nn.Conv2d(before, after, size, size), nn.BatchNorm2d(after), nn.ReLU()]
        self.bottleneck = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(last_shape[0], num_classes)

    def forward(self, map_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B,K], and the features [B,D] that they are made of."""
        feature_BD = self.bottleneck(map_BCHW)
        return self.head(feature_BD), feature_BD


class Branched(nn.Module):
    """A sequence of stages with a branch after some of them.

    While it trains it returns Outputs, with taps `exit1`, `exit1_feature`, ... of the branches in
    their order and `feature` of the last stage. In eval mode it returns logits alone and runs no
    branch, or with `exit` that branch's, and no stage behind it.

    Args:    trunk: `pool` takes its last map, and its last layer is the classifier.
             after: names of the trunk's layers that a branch follows.
             exit: 1 for the first branch's answer, and so on; None: the trunk's own.
    Raises:  ValueError for a name the trunk does not have, or an exit that is not there.
    """

    def __init__(
        self,
        trunk: nn.Sequential,
        after: Sequence[str],
        image_shape: tuple[int, int, int],
        num_classes: int,
        exit: int | None = None,
    ) -> None:
        super().__init__()
        shapes = _shapes(trunk, image_shape)
        for name in after:
            if name not in shapes:
                raise ValueError(f"after = {name!r}: no such layer{nearest(name, shapes)}")
        if exit is not None and not 1 <= exit <= len(after):
            raise ValueError(f"exit = {exit}: there are {len(after)} branches")
        names = list(shapes)
        last_shape = shapes[names[names.index("pool") - 1]]
        self.trunk, self.exit = trunk, exit
        self.branches = nn.ModuleDict(
            {name: Branch(shapes[name], last_shape, num_classes) for name in after}
        )

    def forward(self, image_BCHW: Tensor) -> Tensor | Outputs:
        """Logits [B,K] in eval mode, Outputs in training."""
        taps: dict[str, Tensor] = {}
        x = image_BCHW
        *stages, (_, classifier) = self.trunk.named_children()
        number = 0
        for name, stage in stages:
            x = stage(x)
            if name not in self.branches:
                continue
            number += 1
            if self.training:
                taps[f"exit{number}"], taps[f"exit{number}_feature"] = self.branches[name](x)
            elif number == self.exit:
                return self.branches[name](x)[0]
        logits_BK = classifier(x)
        return Outputs(logits_BK, taps | {"feature": x}) if self.training else logits_BK


def branched(
    num_classes: int,
    in_channels: int,
    image_size: int,
    trunk: str = "resnet18_3x3",
    options: Mapping[str, Any] | None = None,
    after: Sequence[str] = ("layer1", "layer2", "layer3"),
    exit: int | None = None,
) -> Branched:
    """A small net with a branch after some stages: `python:hard_fast.models.branches:branched`.

    Args:    trunk, options: name and options of a small net that is a sequence with a `pool`.
             exit: 1, 2 ... for a network that stops at that branch once it is trained.
    Raises:  ValueError for another trunk, or a layer or an exit that it does not have.
    """
    if trunk not in SMALL_NETS:
        raise ValueError(f"trunk = {trunk!r}: no small net{nearest(trunk, SMALL_NETS)}")
    sizes = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    builder = SMALL_NETS[trunk]
    net = builder(**sizes, **typed_options(trunk, builder, options or {}, given=sizes))
    if not isinstance(net, nn.Sequential) or "pool" not in dict(net.named_children()):
        raise ValueError(f"trunk = {trunk!r}: must be a sequence that ends in a pooling; use a CNN")
    return Branched(net, after, (in_channels, image_size, image_size), num_classes, exit)


@torch.no_grad()
def _shapes(trunk: nn.Sequential, image_shape: tuple[int, int, int]) -> dict[str, torch.Size]:
    """The shape of one image behind each layer, by name."""
    was_training = trunk.training
    trunk.eval()
    x, shapes = torch.zeros(1, *image_shape), {}
    for name, layer in trunk.named_children():
        x = layer(x)
        shapes[name] = x.shape[1:]
    trunk.train(was_training)
    return shapes
