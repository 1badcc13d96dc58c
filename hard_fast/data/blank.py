"""The training part of a run without training data: a size and zeros.

Letters: B images of a batch, C channels, H rows, W columns.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hard_fast.data.growing import SizeAt
from hard_fast.types import Batch


class Blank:
    """A part of `num` images, all zeros and unlabelled, of which one batch is ever in memory.

    Args:    like: [*,C,H,W] of the test part; its shape, dtype, memory layout and device are taken,
             its values are not.
    """

    def __init__(self, num: int, like: Tensor) -> None:
        self.num, self._like = num, torch.zeros_like(like[:1])

    @property
    def image_shape(self) -> torch.Size:
        """C, H, W of every image."""
        return self._like.shape[1:]

    @property
    def is_picture(self) -> bool:
        """Whether the images are uint8 pictures; else floats in the data's own range."""
        return self._like.dtype == torch.uint8

    def loader(
        self,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        size_at: SizeAt | None = None,
    ) -> "BlankLoader":
        """Batches of zeros, of one size; `batch_size` is that of all processes together."""
        assert size_at is None, "pictures made of nothing do not grow"

        if not 1 <= batch_size <= self.num:
            raise ValueError(
                f"train.batch_size = {batch_size}: must be from 1 to data.train_zeros = {self.num}"
            )
        if batch_size % world_size:
            raise ValueError(
                f"train.batch_size = {batch_size}: must be divisible by the {world_size} processes"
            )
        return BlankLoader(self._batch(batch_size // world_size), self.num // batch_size)

    def batches(self, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """Every one of the zeros exactly once over all processes."""
        left = self.num * (rank + 1) // world_size - self.num * rank // world_size
        while left > 0:
            yield self._batch(min(batch_size, left))
            left -= batch_size

    def _batch(self, num: int) -> Batch:
        like = self._like
        # Rows of channels, as the other loaders give them.
        image = torch.zeros(num, *like.shape[2:], like.shape[1], dtype=like.dtype)
        image = image.to(like.device).permute(0, 3, 1, 2)
        return Batch(image, torch.full((num,), -1, device=like.device))


class BlankLoader:
    """The same batch of zeros at each step: no order, and nothing for a checkpoint to keep."""

    def __init__(self, batch: Batch, num_steps_per_epoch: int) -> None:
        self.num_steps_per_epoch, self.num_bad = num_steps_per_epoch, 0
        self._batch = batch

    def next_batch(self) -> Batch:
        """This process's share of zeros."""
        return self._batch

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """There is nothing to continue."""
