"""HARD-Mix: patches of a few images put together by their likeness to a random query.

Letters: B images of a batch, M = B / G images made of groups of G, D width of the projection,
C channels, H rows, W columns, Hp x Wp patches, K classes.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from hard_kernels import affine_mix
from pydantic import Field
from torch import Tensor, nn

from hard_fast.augment.base import Augmentor, to_float
from hard_fast.runtime.configfile import Config
from hard_fast.types import Noise, View

# Enough for a patch to show a part of an object, and 7 or 8 divide the usual sides.
_PATCHES_PER_SIDE = 8


class PatchMixConfig(Config):
    """HARD-Mix. The paper gives neither group, patch, width nor temperature."""

    kind: Literal["patch_mix"] = "patch_mix"
    group: int = Field(default=2, ge=2, le=8)
    """Images that become one. Two, as in the mixup and cutmix that the paper compares with: the
    labels stay as certain, and a loaded batch feeds half as many made images, not an eighth."""
    patch_px: int | None = Field(default=None, ge=1)
    """Side of a patch, a divisor of both sides; None: the one nearest to an eighth of the shorter
    side (4 at 28 and 32 px, 28 at 224 px)."""
    width: int = Field(default=64, ge=1)
    """D. More than the 48 numbers of a 4 x 4 patch in colour; the cost is small beside a network's
    even at 28 px."""
    temperature: float = Field(default=0.3, gt=0.0)
    """Of the softmax over the group, for similarities that begin as standard normal. On CIFAR-10
    and on photos of 224 px the winner of two begins with 0.85 of a patch, and a quarter of the
    patches is decided (a slope below 1 % of the largest); at 1.0 it has 0.70, at 0.1 two thirds
    are decided."""


class PatchMix(Augmentor):
    """One image of each group: its patches weighed by softmax(query . patch / temperature).

    The query is drawn once per made image from a learned Gaussian, and the softmax is over the
    group's images at each patch position. A term that all images share at a position would cancel
    in it, so patches are scaled to unit length after the positional encoding is added.

    It starts as an unbiased random choice (mean 0, deviation 1) that is sharp but not hard. Near
    uniform weights would start with the mean of unrelated pictures, which teachers cannot read and
    no term of the joint loss forbids, and a hard choice would pass no gradient.

    Source:  HARD section 3 and Figure 3: projection with positional encoding, one query for all
             patches, softmax per position over a group, original patches combined. The unit length
             is ours, and so is the detached label: else the student's loss would pull the weights
             towards easy labels, against what the augmentor is after.
    """

    def __init__(self, config: PatchMixConfig, shape: torch.Size) -> None:
        super().__init__()
        channels, height, width = shape
        self.group, self.temperature = config.group, config.temperature
        self.size = (height, width)
        self.patch_px = config.patch_px or _default_patch(height, width)
        if height % self.patch_px or width % self.patch_px:
            raise ValueError(
                f"augmentor.patch_px = {self.patch_px}: must divide the picture's sides, "
                f"{height} and {width}"
            )
        places = (height // self.patch_px, width // self.patch_px)
        self.projection = nn.Conv2d(
            channels, config.width, self.patch_px, stride=self.patch_px, bias=False
        )
        self.position = nn.Parameter(0.02 * torch.randn(config.width, *places))
        self.mean = nn.Parameter(torch.zeros(config.width))
        self.log_scale = nn.Parameter(torch.zeros(config.width))

    def draw_noise(self, shape: torch.Size, generator: torch.Generator) -> Noise:
        """query: [M,D] standard normal."""
        num_made, width = shape[0] // self.group, len(self.mean)
        return {"query": torch.randn(num_made, width, generator=generator, device=generator.device)}

    def forward(self, view: View, noise: Noise) -> View:
        """[M,C,H,W] images; their labels are mixed with the mean weights."""
        weight = self.weigh(view.image, noise["query"])
        members = torch.arange(view.image.shape[0], device=view.image.device)
        image = affine_mix(view.image, None, weight, members.view(-1, self.group))
        if view.target_BK is None:
            return View(image, None)
        share_MG1 = weight.detach().mean((2, 3))[:, :, None]
        return View(image, (share_MG1 * view.target_BK.unflatten(0, (-1, self.group))).sum(1))

    def weigh(self, image: Tensor, noise_MD: Tensor) -> Tensor:
        """[M,G,Hp,Wp] fp32 weights of each group's patches; they sum to one over G.

        Pictures of another size have as many patches, and are weighed at the full size.
        """
        image = to_float(image)
        if image.shape[2:] != self.size:
            image = F.interpolate(image, self.size, mode="bilinear")
        patch = self.projection(image - 0.5).float() + self.position
        patch = F.normalize(patch, dim=1).unflatten(0, (-1, self.group))
        query_MD = self.mean + self.log_scale.exp() * noise_MD
        # A sum of products, not a matmul: that would run in half precision under autocast.
        likeness = (query_MD[:, None, :, None, None] * patch).sum(2)
        return torch.softmax(likeness / self.temperature, 1)


def _default_patch(height: int, width: int) -> int:
    """The divisor of both sides nearest to the shorter side over `_PATCHES_PER_SIDE`."""
    wanted = min(height, width) / _PATCHES_PER_SIDE
    sides = range(1, min(height, width) + 1)
    shared = [px for px in sides if height % px == 0 and width % px == 0]
    return min(shared, key=lambda px: abs(px - wanted))
