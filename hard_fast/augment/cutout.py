"""Cutout: each image loses a square of fixed size.

Letters: B images, C channels, H rows, W columns.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field

from hard_fast.augment.base import Augmentor, to_float
from hard_fast.runtime.configfile import Config
from hard_fast.runtime.cycle import Cycle, within
from hard_fast.types import Noise, View


class CutoutConfig(Config):
    """One square per image, its centre anywhere in the picture (arXiv:1708.04552)."""

    kind: Literal["cutout"] = "cutout"
    side: Annotated[float | Cycle, within(least=0.0, most=1.0)] = 0.5
    """Of the square, as a share of the picture's: the paper's 16 px of CIFAR-10's 32; its 8 px for
    CIFAR-100 are 0.25."""
    fill: float = Field(default=0.47, ge=0.0, le=1.0)
    """Value in the square: about the mean of CIFAR's pixels and of ImageNet's, which the paper's
    zeros after normalisation stand for."""


class Cutout(Augmentor):
    """The square is cut off at the picture's edge, as published; labels stay.

    Source:  DeVries and Taylor 2017, arXiv:1708.04552, uoguelph-mlrg/Cutout `util/cutout.py`: from
             half a side before the centre's pixel to half a side behind it.
    """

    def __init__(self, config: CutoutConfig) -> None:
        super().__init__()
        self.fill = config.fill
        self.hold(side=config.side)

    def draw_noise(self, shape: torch.Size, generator: torch.Generator) -> Noise:
        """centre: [B,2] in [0,1), y and x."""
        return {"centre": torch.rand(shape[0], 2, generator=generator, device=generator.device)}

    def forward(self, view: View, noise: Noise) -> View:
        """The images with their squares filled."""
        image = to_float(view.image)
        inside = []
        for axis, length in enumerate(image.shape[2:]):
            half = torch.floor(torch.round(self.side * length) / 2.0)
            centre = torch.floor(noise["centre"][:, axis, None] * length)
            pixel = torch.arange(length, device=image.device)
            inside.append((pixel >= centre - half) & (pixel < centre + half))
        is_cut = inside[0][:, None, :, None] & inside[1][:, None, None, :]
        image = torch.where(is_cut, self.fill, image)
        return View(image.contiguous(memory_format=torch.channels_last), view.target_BK)
