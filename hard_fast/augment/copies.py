"""Originals, and beside them so many augmented copies of each.

Letters: B images of a batch, N copies of each, K classes, C channels, H rows, W columns.
"""

import math
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor

from hard_fast.augment.base import Augmentor
from hard_fast.augment.fixed import StandardConfig
from hard_fast.runtime.configfile import Config
from hard_fast.types import Noise, View

if TYPE_CHECKING:
    from hard_fast.augment import AugmentorConfig


class CopiesConfig(Config):
    """A batch of originals and `num` batches of copies, for losses that treat them differently."""

    kind: Literal["copies"] = "copies"
    base: "AugmentorConfig" = StandardConfig(rotation_deg=0.0)
    """What makes the originals; the default is crop and flip."""
    part: "AugmentorConfig"
    """What makes the copies out of the originals."""
    num: int = Field(default=1, ge=1)
    """Copies of each original, every one with noise of its own."""


class Copies(Augmentor):
    """The view is N*B copies, its `original` the B images that they were made from.

    A part that mixes neighbours gives each copy of an image another partner: image i meets i ^ 1
    in the first copy, i ^ 2 in the second ..., so that partners never cross ranks.

    Args:    part: one that mixes more than two images meets the same ones in every copy.
    Source:  Wang et al. 2022, arXiv:2012.02909, section 3.3 (MingSun-Tse/Good-DA-in-KD@32ff086,
             `cutmix_pick`), where a random order of the batch decides the partners.
    """

    def __init__(self, base: Augmentor, part: Augmentor, num: int) -> None:
        super().__init__()
        self.base, self.part, self.num = base, part, num
        size, order = part.group, [list(range(part.group))] * num
        if part.group == 2:
            size = 2 ** num.bit_length()
            order = [
                [image for own in range(size) if own < own ^ copy for image in (own, own ^ copy)]
                for copy in range(1, num + 1)
            ]
        self._size = size
        self.register_buffer("_order", torch.tensor(order), persistent=False)
        self.group = math.lcm(base.group, size)

    def draw_noise(self, shape: torch.Size, generator: torch.Generator) -> Noise:
        """The base's noise as "base.*", that of each copy as "0.*", "1.*" ...; B rows each."""
        # The base first: whatever the part draws, the originals stay the same.
        noise = _prefixed("base.", self.base.draw_noise(shape, generator))
        for copy in range(self.num):
            noise |= _prefixed(f"{copy}.", self.part.draw_noise(shape, generator))
        return noise

    def forward(self, view: View, noise: Noise) -> View:
        """image: [N*B,C,H,W], all first copies, then all second ones; targets go with them."""
        base = self.base(view, _own("base.", noise))
        made = [
            self.part(self._ordered(base, copy), _own(f"{copy}.", noise))
            for copy in range(self.num)
        ]
        image = torch.cat([copy.image for copy in made])
        image = image.contiguous(memory_format=torch.channels_last)
        has_target = base.target_BK is not None
        target = torch.cat([copy.target_BK for copy in made]) if has_target else None
        return View(image, target, base.image)

    def _ordered(self, base: View, copy: int) -> View:
        """The originals, with those that are to meet in this copy as neighbours."""
        if self._size == 1:
            return View(base.image, base.target_BK)
        start = torch.arange(0, len(base.image), self._size, device=base.image.device)
        rows = (start[:, None] + self._order[copy]).flatten()
        image = base.image[rows].contiguous(memory_format=torch.channels_last)
        return View(image, _rows(base.target_BK, rows))


def _rows(target_BK: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if target_BK is None else target_BK[rows]


def _prefixed(prefix: str, noise: Noise) -> Noise:
    return {prefix + name: value for name, value in noise.items()}


def _own(prefix: str, noise: Noise) -> Noise:
    return {
        name.removeprefix(prefix): value for name, value in noise.items() if name.startswith(prefix)
    }
