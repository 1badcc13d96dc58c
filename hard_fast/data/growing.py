"""Training pictures that begin small and grow: which side they have at which step.

Letters: B images of a batch, C channels, H rows, W columns.
"""

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from hard_fast.runtime.configfile import Config

SizeAt = Callable[[int], int]
"""The side of the training pictures, px, at a 0-based step of the run."""

MOST_SIZES = 8
"""Each is compiled, in each phase."""


class ResolutionConfig(Config):
    """Small training pictures first, larger ones later; evaluation is at the full size always.

    Early steps cost less, and the last ones, at the full size, fit BatchNorm and features to what
    is evaluated (arXiv:2104.00298; 1906.06423 on why the last steps matter).
    """

    start_px: int = Field(ge=1)
    """Side of the first pictures, px."""
    stage_px: int = Field(default=32, ge=1)
    """By how much the side grows from one stage to the next, up to the data's own."""
    end: float = Field(default=0.75, gt=0.0, lt=1.0)
    """Share of the run after which pictures have their full size; the smaller sizes divide what is
    before evenly."""


class _Pictures(Protocol):
    """What is asked of a part of a data set."""

    image_shape: torch.Size
    is_picture: bool


class Growth:
    """The sides of a run's training pictures; `at` says which one a step has.

    Args:    config: None: all have the full size.
             part: where the pictures come from.
             num_steps: of the run.
    Raises:  ValueError, one line, if there is nothing to grow from, or too much.
    """

    def __init__(self, config: ResolutionConfig | None, part: _Pictures, num_steps: int) -> None:
        _, height, width = part.image_shape
        self.sizes: tuple[int, ...] = (width,)
        """From the first to the full one, px."""
        self._num_growing = 0
        if config is None:
            return
        if not part.is_picture or height != width:
            raise ValueError("train.resolution: needs square pictures of bytes; remove it")
        if config.start_px >= width:
            raise ValueError(
                f"train.resolution.start_px = {config.start_px}: must be below the {width} px of "
                "the pictures"
            )
        self.sizes = (*range(config.start_px, width, config.stage_px), width)
        if len(self.sizes) > MOST_SIZES:
            raise ValueError(
                f"train.resolution.stage_px = {config.stage_px}: makes {len(self.sizes)} sizes out "
                f"of {config.start_px} to {width} px, more than {MOST_SIZES}; raise it"
            )
        self._num_growing = max(1, round(config.end * num_steps))

    def at(self, step: int) -> int:
        """The side of the pictures of a 0-based step, px; the same in every process."""
        num_smaller = len(self.sizes) - 1
        if step >= self._num_growing:
            return self.sizes[-1]
        return self.sizes[step * num_smaller // self._num_growing]

    def describe(self) -> str | None:
        """What grows when, for a person; None where nothing does."""
        if not self._num_growing:
            return None
        *smaller, full = self.sizes
        sides = ", ".join(map(str, smaller))
        return f"pictures of {sides} px up to step {self._num_growing}, then of {full} px"

    def share(self, size_px: int, num_steps: int) -> float:
        """The share of a run's steps that show pictures of this side."""
        place, num_smaller = self.sizes.index(size_px), len(self.sizes) - 1
        # Where each size begins, and where the last one ends.
        starts = [-(-self._num_growing * k // max(1, num_smaller)) for k in range(num_smaller + 1)]
        first, end = (min(step, num_steps) for step in [*starts, num_steps][place : place + 2])
        return (end - first) / num_steps


def resized(image: Tensor, size_px: int) -> Tensor:
    """The pictures with both sides of so many pixels, averaged over what a pixel covers.

    Args:    image: [B,C,H,W] uint8, channels_last memory, as is what comes back.
    """
    if image.shape[2:] == (size_px, size_px):
        return image
    # Only CPUs have it for bytes, in integer arithmetic; it differs by one level at most.
    is_cpu = image.device.type == "cpu"
    small = F.interpolate(
        image if is_cpu else image.float(), (size_px, size_px), mode="bilinear", antialias=True
    )
    small = small if is_cpu else small.round().clamp(0.0, 255.0).to(torch.uint8)
    # Rows of channels, also where there is one: .contiguous(channels_last) would leave strides.
    return small.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
