"""Training batches out of a set that lives on the device: a loader that only indexes.

Letters: N images of a set, B images of a batch, C channels, H rows, W columns.
"""

import torch
from torch import Tensor

from hard_fast.data.growing import SizeAt, resized
from hard_fast.runtime.seed import derive_seed
from hard_fast.types import Batch


class ArrayLoader:
    """Endless training batches out of a set on the device, in a new order each epoch.

    The order is a pure function of (seed, epoch), the same for any number of processes; each takes
    its slice of the global batch. The state is the number of steps taken, so a run can resume at
    any step. The images of an incomplete last batch wait for another epoch.

    Args:    whole: the set, [N,C,H,W] in channels_last memory, and [N].
             batch_size: images of the global batch, over all processes.
             seed: of the run; it decides the orders together with the epoch.
             size_at: the pictures' side at each step; None: the full one.
    Raises:  ValueError if the batch is larger than the set or does not divide by the processes.
    """

    def __init__(
        self,
        whole: Batch,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        size_at: SizeAt | None = None,
    ) -> None:
        num = len(whole.label)
        if not 1 <= batch_size <= num:
            raise ValueError(
                f"train.batch_size = {batch_size}: must be from 1 to the {num} training images"
            )
        if batch_size % world_size:
            raise ValueError(
                f"train.batch_size = {batch_size}: must be divisible by the {world_size} processes"
            )
        self.num_steps_per_epoch = num // batch_size
        self.num_bad = 0
        # Gathering rows of this view copies whole images and keeps channels_last; on [N,C,H,W]
        # index_select would return contiguous memory.
        self._image_NHWC = whole.image.permute(0, 2, 3, 1).contiguous()
        self._label = whole.label
        self._batch_size = batch_size
        self._share = batch_size // world_size
        self._offset = rank * self._share
        self._seed, self._size_at = seed, size_at
        self._step = 0
        self._epoch: int | None = None
        self._order = torch.empty(0, dtype=torch.int64)

    def next_batch(self) -> Batch:
        """This process's slice of the next global batch."""
        epoch, position = divmod(self._step, self.num_steps_per_epoch)
        if epoch != self._epoch:
            order = permutation(len(self._label), derive_seed(self._seed, "order", epoch))
            self._order = order.to(self._label.device, non_blocking=True)
            self._epoch = epoch
        start = position * self._batch_size + self._offset
        index = self._order[start : start + self._share]
        image = self._image_NHWC.index_select(0, index).permute(0, 3, 1, 2)
        if self._size_at is not None:
            image = resized(image, self._size_at(self._step))
        self._step += 1
        return Batch(image, self._label.index_select(0, index))

    def state_dict(self) -> dict[str, int]:
        """Steps taken so far, for the checkpoint."""
        return {"step": self._step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after the step that was saved."""
        self._step = state["step"]


def permutation(num: int, seed: int) -> Tensor:
    """[num] int64 of a seed, drawn on the CPU so that the order does not depend on the device."""
    return torch.randperm(num, generator=torch.Generator().manual_seed(seed))
