"""Random erasing: a box of each image, now and then, loses what it shows.

Letters: B images, A attempts at a box, C channels, H rows, W columns.
"""

import math
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from hard_fast.augment.base import Augmentor, to_float
from hard_fast.runtime.configfile import Config
from hard_fast.runtime.cycle import Cycle, within
from hard_fast.types import Noise, View

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_NUM_ATTEMPTS = 10


class ErasingConfig(Config):
    """Random erasing with timm's ranges (arXiv:1708.04896)."""

    kind: Literal["erasing"] = "erasing"
    probability: Annotated[float | Cycle, within(least=0.0, most=1.0)] = 0.25
    """timm's `reprob` in its recipes; HARD's ViT-S uses 0.1."""
    area: tuple[float, float] = (0.02, 1 / 3)
    """Smallest and largest share of the picture."""
    aspect: float = Field(default=0.3, gt=0.0, le=1.0)
    """Smallest height by width; the largest is its inverse, between them it is log-uniform."""
    fill: Literal["const", "pixel"] = "const"
    """const: the mean of ImageNet, which timm's zeros after normalisation are; pixel: normal noise
    of its mean and deviation, cut to [0,1]."""

    @model_validator(mode="after")
    def _area_is_a_range(self) -> Self:
        if not 0.0 < self.area[0] <= self.area[1] <= 1.0:
            raise ValueError(f"area = {list(self.area)}: must be [smallest, largest] in (0, 1]")
        return self


class RandomErasing(Augmentor):
    """The first of ten random boxes that fits into the picture is filled.

    Source:  timm 1.0 `RandomErasing`, one box, where all ten are drawn and fp32 rounds.
    """

    def __init__(self, config: ErasingConfig, shape: torch.Size) -> None:
        super().__init__()
        self.config = config
        self.hold(probability=config.probability)
        mean, std = torch.tensor(_MEAN), torch.tensor(_STD)
        if shape[0] != len(mean):
            mean, std = mean.mean().expand(shape[0]), std.mean().expand(shape[0])
        self.register_buffer("mean", mean[:, None, None].clone(), persistent=False)
        self.register_buffer("std", std[:, None, None].clone(), persistent=False)

    def draw_noise(self, shape: torch.Size, generator: torch.Generator) -> Noise:
        """erase: [B], box: [B,A,4] area, aspect, top and left, all in [0,1).

        normal: [B,C,H,W] standard normal, where boxes are filled with noise.
        """
        device = generator.device
        box_shape = (shape[0], _NUM_ATTEMPTS, 4)
        noise = {
            "erase": torch.rand(shape[0], generator=generator, device=device),
            "box": torch.rand(box_shape, generator=generator, device=device),
        }
        if self.config.fill == "pixel":
            noise["normal"] = torch.randn(shape, generator=generator, device=device)
        return noise

    def forward(self, view: View, noise: Noise) -> View:
        """The images with their boxes filled; labels stay."""
        image = to_float(view.image)
        box = self.place(noise["box"], image.shape[2:])
        is_erased = box & (noise["erase"] < self.probability)[:, None, None]
        fill = self.mean
        if "normal" in noise:
            fill = (self.mean + self.std * noise["normal"]).clamp(0.0, 1.0)
        image = torch.where(is_erased[:, None], fill, image)
        return View(image.contiguous(memory_format=torch.channels_last), view.target_BK)

    def place(self, uniform_BA4: Tensor, size: torch.Size) -> Tensor:
        """[B,H,W] whether a pixel lies in the box; nowhere if no attempt fits."""
        area, aspect, top, left = uniform_BA4.unbind(2)
        low, high = self.config.area
        pixels = (low + (high - low) * area) * (size[0] * size[1])
        ratio = torch.exp((2.0 * aspect - 1.0) * -math.log(self.config.aspect))
        rows, columns = torch.sqrt(pixels * ratio).round(), torch.sqrt(pixels / ratio).round()
        fits = (rows < size[0]) & (columns < size[1])
        first = fits.int().argmax(1, keepdim=True)
        rows = torch.where(fits, rows, 0.0).gather(1, first)
        columns = columns.gather(1, first)
        row = _inside(top.gather(1, first), rows, size[0])
        column = _inside(left.gather(1, first), columns, size[1])
        return row[:, :, None] & column[:, None, :]


def _inside(place_B1: Tensor, length_B1: Tensor, side: int) -> Tensor:
    """[B,side] whether a pixel lies in a stretch; all places that it fits in are equally likely."""
    start = torch.floor(place_B1 * (side - length_B1 + 1.0))
    pixel = torch.arange(side, device=place_B1.device)
    return (pixel >= start) & (pixel < start + length_B1)
