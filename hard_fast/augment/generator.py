"""Data-free inputs: pictures that a network makes from noise, whatever the batch holds.

Letters: B images of a batch, C channels, H rows, W columns, Z latent numbers.
"""

from typing import Literal, Self

import torch
from pydantic import Field, model_validator

from hard_fast.augment.base import Augmentor
from hard_fast.models.generator import PictureGenerator
from hard_fast.runtime.configfile import Config
from hard_fast.types import Noise, View


class GeneratorConfig(Config):
    """A generator learned from nothing but the networks (DAFL, CuDFKD)."""

    kind: Literal["generator"] = "generator"
    latent: int = Field(default=100, ge=1)
    """Standard normal numbers that a picture is made from."""
    width: int = Field(default=64, ge=1)
    """Channels of the last hidden layer; the ones before have twice as many."""
    norm_eps: float = Field(default=0.8, gt=0.0)
    """Of the BatchNorm behind convolutions: 0.8 in DAFL's code, by mistake or not; 1e-5 is
    torch's."""
    output: Literal["standard", "sigmoid"] = "standard"
    """standard: every channel has the mean and std below over the batch. sigmoid: in [0,1]."""
    mean: tuple[float, ...] | None = None
    """Per channel of the pictures in [0,1], those the teacher was trained with; None: 0.5."""
    std: tuple[float, ...] | None = None
    """As `mean`; None: 0.25."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of its convolutions; auto: bf16 on a GPU that has it. Pictures come out in fp32."""

    @model_validator(mode="after")
    def _uses_every_setting(self) -> Self:
        if self.output == "sigmoid" and (self.mean or self.std):
            raise ValueError("mean, std: output = 'sigmoid' does not use them; leave them out")
        return self


class Generator(Augmentor):
    """Pictures out of noise. Of the batch only the number of its images counts."""

    def __init__(self, config: GeneratorConfig, shape: torch.Size) -> None:
        super().__init__()
        statistics = {"mean": config.mean or (0.5,), "std": config.std or (0.25,)}
        try:
            self.net = PictureGenerator(
                shape,
                latent=config.latent,
                width=config.width,
                norm_eps=config.norm_eps,
                output=config.output,
                **statistics,
            )
        except ValueError as error:
            raise ValueError(f"augmentor.kind = 'generator': {error}") from None
        self.latent, self.precision = config.latent, config.precision

    def draw_noise(self, shape: torch.Size, generator: torch.Generator) -> Noise:
        """latent: [B,Z] standard normal."""
        drawn = torch.randn(shape[0], self.latent, generator=generator, device=generator.device)
        return {"latent": drawn}

    def forward(self, view: View, noise: Noise) -> View:
        """Made-up pictures, fp32. No label belongs to them, and they are their own originals."""
        device = view.image.device.type
        is_auto = self.precision == "auto" and device == "cuda"
        is_bf16 = self.precision == "bf16" or (is_auto and torch.cuda.is_bf16_supported())
        with torch.autocast(device, torch.bfloat16, enabled=is_bf16):
            image = self.net(noise["latent"]).float()
        target = None if view.target_BK is None else torch.zeros_like(view.target_BK)
        return View(image, target, image.detach())
