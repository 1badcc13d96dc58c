"""Networks whose inner convolutions multiply signs by signs: BNext, in the sizes of its code.

Letters: B images, C channels in, O channels out, H rows, W columns, K classes.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hard_fast.models.options import Count, Widths

Estimator = Literal["clip", "polynomial"]
# Where the gradient of BNext's sign ends.
_LIMIT = 1.5
# Of the branch that weighs channels: a share of them, and what the narrowest of BNext-Tiny has.
_SQUEEZE, _LEAST_SQUEEZED = 8, 4
# From this size on a picture is halved by the first layer too.
_LARGE_PX = 64


def binarize(x: Tensor, estimator: Estimator = "clip") -> Tensor:
    """The sign of every element, +1 for zero, with a gradient that passes nearly straight through.

    Args:    estimator: clip: the gradient is 1 where |x| < 1.5, else 0. polynomial: it is
             2 - 2 |x| where |x| < 1, else 0.
    Returns: exactly -1 or 1, in x's dtype.
    Source:  the straight-through estimator of Bengio et al. 2013, arXiv:1308.3432; clip as in
             BNext's code, polynomial that of Bi-Real Net, arXiv:1808.00278, section 3.3.
    """
    sign = (x >= 0).to(x.dtype) * 2 - 1
    if not x.requires_grad:
        return sign
    if estimator == "clip":
        slope = x.clamp(-_LIMIT, _LIMIT)
    else:
        inside = x.clamp(-1.0, 1.0)
        slope = inside * (2 - inside.abs())
    # The difference is zero, so that no rounding moves the sign.
    return sign.detach() + (slope - slope.detach())


class BinaryConv2d(nn.Module):
    """A convolution of signs with signs times a scale, which computers do with XNOR and counting.

    `weight`, [O,C,k,k], holds real numbers: optimizers, weight decay, averages and checkpoints
    treat it as any other. Decay changes its scale, and how soon a sign turns, but no sign. The
    scale of an output channel is the mean of its |weight|; the gradient takes it for a constant.
    `shift`, [C], is added to the input before its sign is taken. The border is zero, no sign.

    Source:  XNOR-Net, arXiv:1603.05279, section 3.1, for the scale; ReActNet, arXiv:2003.03488,
             section 4.2, for the shift and for a scale without gradient. BNext's code has no scale,
             which BatchNorm undoes, and clips the weights at 1.5, where here their gradient ends.
    """

    def __init__(
        self, in_width: int, width: int, kernel: int, stride: int = 1, estimator: Estimator = "clip"
    ) -> None:
        super().__init__()
        self.stride, self.padding, self.estimator = stride, kernel // 2, estimator
        self.weight = nn.Parameter(torch.empty(width, in_width, kernel, kernel))
        self.shift = nn.Parameter(torch.zeros(in_width))
        # As torch's own convolution begins.
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B,O,H/stride,W/stride]: whole numbers times the scale of each channel."""
        sign_BCHW = binarize(x_BCHW + self.shift[:, None, None], self.estimator)
        weight = binarize(self.weight, self.estimator)
        y_BOHW = F.conv2d(sign_BCHW, weight, None, self.stride, self.padding)
        # Of the sums, which are whole numbers: a weight times its scale would be none of one bit.
        scale = self.weight.detach().abs().mean((1, 2, 3))
        return y_BOHW * scale[:, None, None].to(y_BOHW.dtype)

    def extra_repr(self) -> str:
        """Sizes and estimator, for printing."""
        return f"{tuple(self.weight.shape)}, stride={self.stride}, estimator={self.estimator!r}"


class _Unit(nn.Module):
    """A convolution whose channels are weighed by its input and output, around a shortcut.

    The weights come from a mixture of both ("info-recoupling"): a mean over the picture, two linear
    layers, a sigmoid. An attentive unit multiplies by its shortcut as well, which has a PReLU.
    """

    def __init__(self, conv: nn.Module, width: int, stride: int, is_attentive: bool) -> None:
        super().__init__()
        self.is_attentive = is_attentive
        self.conv = conv
        self.norm = nn.BatchNorm2d(width)
        self.act = nn.PReLU(width)
        self.mix = nn.Parameter(torch.zeros(width))
        squeezed = max(_LEAST_SQUEEZED, width // _SQUEEZE)
        self.weigh = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(width, squeezed, 1),
            nn.ReLU(),
            nn.Conv2d(squeezed, width, 1),
            nn.Sigmoid(),
        )
        self.norm_out = nn.BatchNorm2d(width)
        self.pool = nn.AvgPool2d(2, ceil_mode=True) if stride == 2 else nn.Identity()
        self.act_shortcut = nn.PReLU(width) if is_attentive else nn.Identity()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B,C,H/stride,W/stride]."""
        y = self.act(self.norm(self.conv(x_BCHW)))
        share = self.mix.sigmoid()[:, None, None]
        y = y * self.weigh(share * self.pool(x_BCHW) + (1 - share) * y)
        shortcut = self.pool(self.act_shortcut(x_BCHW))
        if self.is_attentive:
            y = y * shortcut
        return self.norm_out(y) + shortcut


class _Block(nn.Module):
    """A 3x3 unit, then 1x1 units side by side, as many as make the width."""

    def __init__(
        self,
        in_width: int,
        width: int,
        stride: int,
        is_attentive: bool,
        make_conv: Callable[..., nn.Module],
    ) -> None:
        super().__init__()
        conv = make_conv(in_width, in_width, 3, stride)
        self.spatial = _Unit(conv, in_width, stride, is_attentive)
        self.channels = nn.ModuleList(
            _Unit(make_conv(in_width, in_width, 1, 1), in_width, 1, False)
            for _ in range(width // in_width)
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B,O,H/stride,W/stride]."""
        x_BCHW = self.spatial(x_BCHW)
        return torch.cat([unit(x_BCHW) for unit in self.channels], dim=1)


def bnext(
    num_classes: int,
    in_channels: int,
    image_size: int,
    widths: Widths = (64, 128, 256, 512, 1024),
    depths: Count | Widths = (1, 2, 2, 6, 2),
    stem_stride: Literal[1, 2] | None = None,
    binary: bool = True,
    estimator: Estimator = "clip",
) -> nn.Sequential:
    """BNext: blocks of binary convolutions; the first and the last layer are of full precision.

    Args:    widths: channels of each stage; every stage but the first halves the picture. The first
             layer has half of the first. depths: blocks of each stage or all; every second block
             of the net is attentive. stem_stride: of the first layer; None: 2 from 64 px on.
             binary: False for the same network with real convolutions. estimator: of the sign's
             gradient, see `binarize`.
    Returns: [B,C,H,W] -> [B,K]; BNext-Tiny by default.
    Raises:  ValueError for widths that cannot be made side by side, or depths of another number.
    Source:  Guo et al. 2022, arXiv:2211.12949; layers, sizes and their order are those of bnext.py
             in github.com/hpi-xnor/BNext. Departures: weights are signs from the first step on,
             where that code sharpens them over the epochs; the share of a mixture is a sigmoid,
             where it is clipped; odd pictures are halved upwards; weights begin as torch's do.
    """
    counts = depths if isinstance(depths, tuple) else (depths,) * len(widths)
    if len(counts) != len(widths):
        raise ValueError(f"depths = {list(counts)}: needs one for each of {len(widths)} widths")
    if widths[0] % 2 or any(b % a for a, b in zip(widths, widths[1:], strict=False)):
        raise ValueError(
            f"widths = {list(widths)}: the first must be even, each other a multiple of the one "
            "before"
        )
    make_conv = partial(BinaryConv2d, estimator=estimator) if binary else _real_conv
    stride = stem_stride or (2 if image_size >= _LARGE_PX else 1)
    in_width, number = widths[0] // 2, 0
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        stem=nn.Conv2d(in_channels, in_width, 3, stride, padding=1, bias=False),
        stem_norm=nn.BatchNorm2d(in_width),
    )
    for i, (width, count) in enumerate(zip(widths, counts, strict=True), start=1):
        stage = nn.Sequential()
        for j in range(count):
            number += 1
            stride = 2 if i > 1 and j == 0 else 1
            stage.append(_Block(in_width, width, stride, number % 2 == 0, make_conv))
            in_width = width
        layers[f"stage{i}"] = stage
    layers["act"] = nn.PReLU(in_width)
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["head"] = nn.Linear(in_width, num_classes)
    return nn.Sequential(layers)


def packed_bytes(network: nn.Module) -> int:
    """Bytes of a network whose binary weights take one bit each, and their scales four bytes.

    The real numbers behind the signs serve learning alone. No file here is packed so.
    """
    binary = {id(m.weight): m.weight for m in network.modules() if isinstance(m, BinaryConv2d)}
    bits = sum(weight.numel() + 32 * len(weight) for weight in binary.values())
    rest = [*network.parameters(), *network.buffers()]
    bits += sum(8 * tensor.nbytes for tensor in rest if id(tensor) not in binary)
    return -(-bits // 8)


def _real_conv(in_width: int, width: int, kernel: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(in_width, width, kernel, stride, padding=kernel // 2, bias=False)


_WIDE, _WIDEST = (96, 192, 384, 768, 1536), (128, 256, 512, 1024, 2048)

BNEXTS: dict[str, Callable[..., nn.Module]] = {
    "bnext": bnext,
    "bnext_tiny": bnext,
    "bnext_small": partial(bnext, widths=_WIDE),
    "bnext_middle": partial(bnext, widths=_WIDE, depths=(1, 4, 4, 8, 4)),
    # What the code calls super: it alone has the paper's 0.82 G operations for BNext-L.
    "bnext_large": partial(bnext, widths=_WIDEST, depths=(1, 4, 4, 16, 4)),
}
