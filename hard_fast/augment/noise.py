"""Additive Gaussian noise, fixed or with learned mean and standard deviation."""

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from hard_fast.augment.base import Augmentor, to_float
from hard_fast.runtime.configfile import Config
from hard_fast.types import Noise, View


class NoiseConfig(Config):
    """x + mean + std * normal, one mean and std per channel."""

    kind: Literal["noise"] = "noise"
    learned: bool = True
    std: float = Field(default=0.05, ge=0.0)
    """At the start, in the data's own units."""


class GaussianNoise(Augmentor):
    """Source:  HARD section 4.1, Figure 2 (the toy), where mean and variance are learned."""

    def __init__(self, config: NoiseConfig, num_channels: int, is_picture: bool) -> None:
        super().__init__()
        self.is_picture = is_picture
        shape = (num_channels, 1, 1)
        self.mean = nn.Parameter(torch.zeros(shape), requires_grad=config.learned)
        self.std = nn.Parameter(torch.full(shape, config.std), requires_grad=config.learned)

    def draw_noise(self, shape: torch.Size, generator: torch.Generator) -> Noise:
        """normal: [B,C,H,W] standard normal."""
        return {"normal": torch.randn(shape, generator=generator, device=generator.device)}

    def forward(self, view: View, noise: Noise) -> View:
        """The noisy images, clamped to [0,1] where the data are pictures."""
        image = to_float(view.image) + self.mean + self.std * noise["normal"]
        return View(image.clamp(0.0, 1.0) if self.is_picture else image, view.target_BK)
