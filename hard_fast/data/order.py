"""Which pictures are trained on when: a pure function of the seed and the step.

Letters: B pictures of this process's batch.
"""

import functools
from typing import NamedTuple

import numpy as np
import torch

from hard_fast.runtime.seed import derive_seed


class Work(NamedTuple):
    """One batch to decode.

    index:      [B] int32 positions in the samples.
    is_flipped: [B] bool, whether a picture is mirrored.
    """

    index: np.ndarray
    is_flipped: np.ndarray


class Order:
    """A new permutation of all samples each epoch, cut into global batches and those by rank.

    It is the same for any number of processes. An incomplete last batch is left out, so that its
    samples wait for another epoch and no process waits for another.

    Args:    batch_size: of the global batch, over all processes.
             flip: mirror half of the pictures.
    Raises:  ValueError if the batch is larger than the part or does not divide by the processes.
    """

    def __init__(
        self,
        num: int,
        batch_size: int,
        *,
        seed: int,
        flip: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not 1 <= batch_size <= num:
            raise ValueError(
                f"train.batch_size = {batch_size}: must be from 1 to the {num} training images"
            )
        if batch_size % world_size:
            raise ValueError(
                f"train.batch_size = {batch_size}: must be divisible by the {world_size} processes"
            )
        self.num_steps_per_epoch = num // batch_size
        self.share = batch_size // world_size
        """Pictures of this process's batch."""
        self._num, self._batch_size, self._offset = num, batch_size, rank * self.share
        self._seed, self._flip = seed, flip
        # Batches ahead may belong to the next epoch, or to several if epochs are that short.
        self._draw = functools.lru_cache(maxsize=4)(self._draw_epoch)

    def work(self, step: int) -> Work:
        """This process's batch of a step, counted from the beginning of the run."""
        epoch, position = divmod(step, self.num_steps_per_epoch)
        order, is_flipped = self._draw(epoch)
        start = position * self._batch_size + self._offset
        part = slice(start, start + self.share)
        return Work(order[part], is_flipped[part])

    def _draw_epoch(self, epoch: int) -> Work:
        generator = torch.Generator()
        generator.manual_seed(derive_seed(self._seed, "order", epoch))
        order = torch.randperm(self._num, generator=generator)
        generator.manual_seed(derive_seed(self._seed, "flip", epoch))
        is_flipped = torch.randint(2, (self._num,), generator=generator, dtype=torch.bool)
        return Work(order.int().numpy(), (is_flipped & self._flip).numpy())
