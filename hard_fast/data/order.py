"""Which pictures are trained on when, and their crops: a pure function of the seed and the step.

Letters: B pictures of this process's batch, T tries to fit a crop into a picture.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
import torch

from hard_fast.runtime.seed import derive_seed

# torchvision's RandomResizedCrop: so many tries at a crop that fits, each with sides of 3:4 to 4:3.
NUM_TRIES = 10
MAX_RATIO = 4 / 3


class Work(NamedTuple):
    """One batch to decode. For evaluation, which shows pictures whole, only the first is there.

    index:      [B] int32 positions in the samples.
    is_flipped: [B] bool, whether a picture is mirrored.
    crop:       [B,2,T+1] float32, for height and width: the sides to try, as multiples of the root
                of the picture's area, and then how far along, of 1, the one that fits is placed.
    """

    index: np.ndarray
    is_flipped: np.ndarray | None = None
    crop: np.ndarray | None = None


class Order:
    """A new permutation of all samples each epoch, cut into global batches and those by rank.

    It and the crops are the same for any number of processes. An incomplete last batch is left
    out, so that its samples wait for another epoch and no process waits for another.

    Args:    batch_size: of the global batch, over all processes.
             min_scale: smallest share of a picture's area that a crop keeps.
             flip: mirror half of the pictures.
    Raises:  ValueError if the batch is larger than the part or does not divide by the processes.
    """

    def __init__(
        self,
        num: int,
        batch_size: int,
        *,
        seed: int,
        min_scale: float = 1.0,
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
        self._batch_size, self._offset = batch_size, rank * self.share
        # Batches ahead may belong to the next epoch, or to several if epochs are that short.
        self._epoch = functools.lru_cache(4)(functools.partial(_draw_epoch, num, seed, flip))
        # A batch is asked for when it is begun and when it is done.
        mine = slice(self._offset, self._offset + self.share)
        draw = functools.partial(_draw_crops, batch_size, mine, seed, min_scale)
        self._crops = functools.lru_cache(16)(draw)

    def work(self, step: int) -> Work:
        """This process's batch of a step, counted from the beginning of the run."""
        epoch, position = divmod(step, self.num_steps_per_epoch)
        order, is_flipped = self._epoch(epoch)
        start = position * self._batch_size + self._offset
        part = slice(start, start + self.share)
        return Work(order[part], is_flipped[part], self._crops(step))


def _draw_epoch(num: int, seed: int, flip: bool, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """All samples in a new order, and which of those places are mirrored."""
    generator = torch.Generator()
    generator.manual_seed(derive_seed(seed, "order", epoch))
    order = torch.randperm(num, generator=generator)
    generator.manual_seed(derive_seed(seed, "flip", epoch))
    is_flipped = torch.randint(2, (num,), generator=generator, dtype=torch.bool)
    return order.int().numpy(), (is_flipped & flip).numpy()


def _draw_crops(num: int, mine: slice, seed: int, min_scale: float, step: int) -> np.ndarray:
    """`Work.crop` of a part of a global batch: areas uniform, ratios in their logarithm."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "crop", step))
    crop_B2T = torch.rand(num, 2, NUM_TRIES + 1, generator=generator)[mine]
    area_BT = min_scale + (1 - min_scale) * crop_B2T[:, 0, :-1]
    root_BT = ((2 * crop_B2T[:, 1, :-1] - 1) * (0.5 * math.log(MAX_RATIO))).exp()
    crop_B2T[:, 0, :-1], crop_B2T[:, 1, :-1] = area_BT.sqrt() / root_BT, area_BT.sqrt() * root_BT
    return crop_B2T.numpy()
