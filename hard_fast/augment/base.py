"""What makes the inputs: the contract of every augmentor.

Letters: B images of a batch, M images made, C channels, H rows, W columns, K classes.
"""

import torch
from torch import Tensor, nn

from hard_fast.runtime.cycle import Held
from hard_fast.types import Noise, View


class Augmentor(Held):
    """Makes the images that the networks see. It learns if it has trainable parameters.

    All randomness is drawn by `draw_noise`, outside the compiled step and for the global batch, so
    that `forward` is a pure function and one process sees what many would. What it holds may change
    over a run for `forward` alone: noise is drawn before a step's values are set.

    group:  how many neighbouring images are mixed together; a batch holds whole groups.
    """

    group = 1

    def draw_noise(self, shape: torch.Size, generator: torch.Generator) -> Noise:
        """The randomness of one step.

        Args:    shape: [B,C,H,W] of the global batch.
                 generator: its device is where the noise is drawn.
        Returns: tensors whose first dimension is B or, where groups become one image, their
                 number (each rank takes its rows), or 0-dim (shared).
        """
        raise NotImplementedError

    def forward(self, view: View, noise: Noise) -> View:
        """The images made from `view`: float in [0,1], channels_last, differentiable."""
        raise NotImplementedError


def draw_share(
    augmentor: Augmentor, shape: torch.Size, generator: torch.Generator, rank: int, num_ranks: int
) -> Noise:
    """One rank's rows of the noise that its augmentor draws for the global batch.

    Args:    shape: [B,C,H,W] of the rank's own batch.
    """
    whole = torch.Size((shape[0] * num_ranks, *shape[1:]))
    noise = augmentor.draw_noise(whole, generator)
    return take_rows(noise, rank * shape[0], (rank + 1) * shape[0], num_images=whole[0])


def take_rows(noise: Noise, start: int, stop: int, *, num_images: int) -> Noise:
    """The noise of the images from `start` up to `stop`, of those it was drawn for."""
    return {
        name: value[start * len(value) // num_images : stop * len(value) // num_images]
        if value.ndim
        else value
        for name, value in noise.items()
    }


def to_float(image: Tensor) -> Tensor:
    """uint8 pixels as fp32 in [0,1]; float data as they are."""
    return image / 255.0 if image.dtype == torch.uint8 else image


def is_learned(augmentor: nn.Module) -> bool:
    """Whether anything in the augmentor can be trained."""
    return any(p.requires_grad for p in augmentor.parameters())
