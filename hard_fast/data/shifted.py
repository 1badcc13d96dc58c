"""The same test twice: centred as the training images are, and shifted as MNIST-C does."""

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from hard_fast.data.arrays import TEST_SEED, Arrays, SplitConfig
from hard_fast.runtime.seed import derive_seed


class ShiftedConfig(SplitConfig):
    """A set that is also tested on its images shifted."""

    shift_px: int = Field(default=3, ge=1)
    """How far the images of the shifted test set are moved along each axis."""

    def tests(self, part: Arrays) -> dict[str, Arrays]:
        """The test sets "centered", as given, and "shifted", the same images moved."""
        moved = shift_corners(part.image, self.shift_px, TEST_SEED)
        return {"centered": part, "shifted": part._replace(image=moved)}


def shift_corners(image: Tensor, shift_px: int, seed: int) -> Tensor:
    """Each image moved diagonally by exactly `shift_px` rows and columns, towards a random corner.

    Args:    image: [N,C,H,W] of any dtype. What enters at the edges is zero.
             shift_px: 0 to less than both H and W.
             seed: of the corners, drawn on the CPU so that every device sees the same set.
    Raises:  ValueError if the shift would leave nothing of the picture.
    Source:  MNIST-C `translate` at severity 3, google-research/mnist-c corruptions.py: two signs
             per image, each uniform; whole pixels, so no interpolation.
    """
    height, width = image.shape[-2:]
    if not 0 <= shift_px < min(height, width):
        raise ValueError(
            f"data.shift_px = {shift_px}: must be from 0 to {min(height, width) - 1} for images "
            f"of {height}x{width}"
        )
    generator = torch.Generator().manual_seed(derive_seed(seed, "shift"))
    corner = torch.randint(4, (len(image), 1, 1, 1), generator=generator).to(image.device)
    s = shift_px
    up, down = F.pad(image, (0, 0, -s, s)), F.pad(image, (0, 0, s, -s))
    image = torch.where(corner < 2, up, down)
    left, right = F.pad(image, (-s, s, 0, 0)), F.pad(image, (s, -s, 0, 0))
    return torch.where(corner % 2 == 0, left, right)
