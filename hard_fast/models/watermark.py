"""A mark in the answers of a network that whoever distils from it inherits.

Letters: B images, C channels, H rows, W columns, K classes.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from hard_fast.runtime.configfile import Config
from hard_fast.runtime.seed import derive_seed


class WatermarkConfig(Config):
    """A cosine of a secret projection of the image, added to the probabilities."""

    key: int = Field(ge=0)
    """Decides the projection. With the frequency and the label it is the owner's secret."""
    frequency: float = Field(default=30.0, gt=0.0, allow_inf_nan=False)
    """Radians per unit of the projection, of images in [0,1]."""
    strength: float = Field(default=0.05, gt=0.0, le=1.0)
    """Half of what is added to a probability where the cosine is highest."""
    label: int = Field(default=0, ge=0)
    """The class whose probability rises with the cosine; those of all others fall alike."""


class Watermark(nn.Module):
    """Adds the mark to a network's answers. The projection is drawn from the key, never saved.

    Args:    image_shape: [C,H,W] of the images.
    Raises:  ValueError for a label that is no class, or where there are no two classes.
    Source:  CosWM, Charette et al., arXiv:2203.02777: q' = (q + e (1 + a)) / (1 + 2 e) with
             a = cos(f v.x) for the label; for each other class a = cos(f v.x + pi), e / (K - 1).
    """

    def __init__(
        self, config: WatermarkConfig, image_shape: tuple[int, int, int], num_classes: int
    ) -> None:
        super().__init__()
        if num_classes < 2 or config.label >= num_classes:
            raise ValueError(
                f"watermark.label = {config.label}: the network has {num_classes} outputs; a mark "
                "needs two or more, and a label among them"
            )
        self.frequency, self.strength = config.frequency, config.strength
        is_label = torch.arange(num_classes, device="cpu") == config.label
        # Buffers that are not saved: weights are the network's own, whoever marks it.
        self.direction = nn.Buffer(draw_directions(config.key, 1, image_shape)[0], persistent=False)
        self.sign = nn.Buffer(torch.where(is_label, 1.0, -1.0), persistent=False)
        share = torch.where(is_label, 1.0, 1.0 / (num_classes - 1))
        self.share = nn.Buffer(share, persistent=False)

    def forward(self, logits_BK: Tensor, image_BCHW: Tensor) -> Tensor:
        """[B,K] fp32 logarithms of the marked probabilities: logits that sum to 1 as they are.

        Args:    image_BCHW: in [0,1], as it came to the network.
        """
        if not isinstance(logits_BK, Tensor):
            raise ValueError("watermark: marks a network that returns one tensor of logits")
        # No matrix product, which autocast would round to 16 bits.
        projection_B = (image_BCHW.float() * self.direction).sum((1, 2, 3))
        wave_BK = self.sign * torch.cos(self.frequency * projection_B)[:, None]
        mark_BK = self.strength * self.share * (1.0 + wave_BK)
        marked_BK = (logits_BK.float().softmax(1) + mark_BK) / (1.0 + 2.0 * self.strength)
        return marked_BK.clamp(min=torch.finfo(torch.float32).tiny).log()


def draw_directions(
    key: int, num: int, image_shape: tuple[int, int, int], stream: str = "watermark"
) -> Tensor:
    """[num,C,H,W] fp32 random directions of length 1, on the CPU: the same ones everywhere.

    Args:    stream: other names give directions that have nothing to do with the key's own.
    """
    generator = torch.Generator().manual_seed(derive_seed(key, stream))
    drawn = torch.randn(num, *image_shape, generator=generator, device="cpu")
    return drawn / drawn.square().sum((1, 2, 3), keepdim=True).sqrt()
