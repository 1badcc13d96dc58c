"""HARD-Affine: a learned Gaussian over the six entries of the warp's matrix."""

from typing import Literal

import torch
from hard_kernels import affine_mix
from pydantic import Field
from torch import nn

from hard_fast.augment.base import Augmentor
from hard_fast.runtime.configfile import Config
from hard_fast.types import Noise, View


class AffineConfig(Config):
    """HARD-Affine. The paper gives neither the covariance's form nor the padding."""

    kind: Literal["affine"] = "affine"
    covariance: Literal["diagonal", "full"] = "diagonal"
    std: float = Field(default=0.02, ge=0.0)
    """Standard deviation of each entry at the start; 1 in an offset is half the picture."""
    padding: Literal["zeros", "border", "reflection"] = "zeros"


class Affine(Augmentor):
    """theta = mean + scale @ noise per image, starting around the identity.

    Source:  HARD section 3 ("a distribution over the entries of an affine transformation matrix");
             one sample per image and the diagonal as in the authors' earlier spatial transformer.
    """

    def __init__(self, config: AffineConfig) -> None:
        super().__init__()
        self.padding = config.padding
        self.mean = nn.Parameter(torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 0.0]))
        is_full = config.covariance == "full"
        self.scale = nn.Parameter(config.std * (torch.eye(6) if is_full else torch.ones(6)))

    def draw_noise(self, shape: torch.Size, generator: torch.Generator) -> Noise:
        """theta: [B,6] standard normal."""
        return {"theta": torch.randn(shape[0], 6, generator=generator, device=generator.device)}

    def forward(self, view: View, noise: Noise) -> View:
        """Each image warped by its own draw from the learned distribution."""
        draw = noise["theta"]
        # Only the lower triangle counts, so that a full scale is a Cholesky factor.
        spread = draw * self.scale if self.scale.ndim == 1 else draw @ self.scale.tril().T
        theta = (self.mean + spread).view(-1, 1, 2, 3)
        return View(affine_mix(view.image, theta, padding=self.padding), view.target_BK)
