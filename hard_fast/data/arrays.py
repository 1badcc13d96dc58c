"""Data that live on the device: splits, the shifted test set, and a loader that only indexes.

Letters: N images of a set, B images of a batch, C channels, H rows, W columns.
"""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, Protocol, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from hard_fast.data.blank import Blank
from hard_fast.runtime.configfile import Config
from hard_fast.runtime.seed import derive_seed
from hard_fast.types import Batch

# No key moves an image between test and training or changes the shifted set: a constant.
TEST_SEED = 0


class Loader(Protocol):
    """Endless training batches of one process; a checkpoint keeps its place."""

    num_steps_per_epoch: int
    num_bad: int
    """Samples left out so far because they could not be read."""

    def next_batch(self) -> Batch:
        """This process's slice of the next global batch, on the device."""

    def state_dict(self) -> dict[str, Any]:
        """Where the order stands."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from there."""


class EvalPart(Protocol):
    """A part of a data set as far as evaluation asks for it."""

    @property
    def num(self) -> int:
        """How many samples there are."""

    @property
    def image_shape(self) -> torch.Size:
        """C, H, W of every image."""

    @property
    def is_picture(self) -> bool:
        """Whether the images are uint8 pictures; else floats in the data's own range."""

    def batches(self, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """Every sample exactly once over all processes, `batch_size` at most at a time."""


class Part(EvalPart, Protocol):
    """The training, validation or test part of a data set, wherever its images are."""

    def loader(self, *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> Loader:
        """Training batches; `batch_size` is that of all processes together."""


class Arrays(NamedTuple):
    """A whole set of images that lives on the device.

    image: [N,C,H,W] uint8, channels_last memory; float where the data are not pictures.
    label: [N] int64 class, -1 = unlabelled.
    """

    image: Tensor
    label: Tensor

    @property
    def num(self) -> int:
        """How many samples there are."""
        return len(self.label)

    @property
    def image_shape(self) -> torch.Size:
        """C, H, W of every image."""
        return self.image.shape[1:]

    @property
    def is_picture(self) -> bool:
        """Whether the images are uint8 pictures; else floats in the data's own range."""
        return self.image.dtype == torch.uint8

    def loader(
        self, *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> "ArrayLoader":
        """Training batches; `batch_size` is that of all processes together."""
        place = {"rank": rank, "world_size": world_size}
        return ArrayLoader(self, batch_size=batch_size, seed=seed, **place)

    def batches(self, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """Every sample exactly once over all processes, in order and without padding.

        Args:    batch_size: images of one process's batch; the last batch may be smaller, and a
                 process may get none at all.
        """
        assert batch_size >= 1
        num = len(self.label)
        first, end = num * rank // world_size, num * (rank + 1) // world_size
        for start in range(first, end, batch_size):
            part = slice(start, min(start + batch_size, end))
            yield Batch(self.image[part], self.label[part])


class DataSet(NamedTuple):
    """The parts of one data set. `val` is None where there is no validation split."""

    num_classes: int
    train: Part
    val: Part | None
    test: dict[str, Part]


class SplitConfig(Config):
    """What every kind of data shares: how the training part is divided."""

    val_share: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of the training part kept for validation; 0 = no validation split."""
    val_seed: int = 42
    """Decides which images are kept for validation and which ones `train_limit` picks."""
    train_limit: int | None = Field(default=None, ge=1)
    """Images to train on, taken from what the validation split left; None = all of them."""
    train_zeros: int | None = Field(default=None, ge=1)
    """For methods that need no data: an epoch is so many images of zeros, and no image or label of
    the training part reaches the run, unless val_share keeps some to score by."""

    @property
    def reads_train(self) -> bool:
        """Whether any image of the training part is looked at."""
        return self.train_zeros is None or self.val_share > 0.0

    @model_validator(mode="after")
    def _zeros_have_no_limit(self) -> Self:
        if self.train_zeros is not None and self.train_limit is not None:
            raise ValueError("train_limit: train_zeros replaces what it would limit; remove one")
        return self


def place(data: DataSet, config: SplitConfig, device: torch.device) -> DataSet:
    """The data set as a run uses it: split, limited, and on the device in channels_last memory.

    Args:    data: as read, without a validation part, in any memory layout.
    Raises:  ValueError if a split leaves nothing, or `train_limit` asks for more than there is.
    """
    train, val = data.train, None
    if config.val_share:
        train, val = split_off(train, config.val_share, config.val_seed, "val")
    if config.train_limit is not None:
        num = len(train.label)
        if config.train_limit > num:
            raise ValueError(
                f"data.train_limit = {config.train_limit}: only {num} training images are left "
                "after the validation split; lower it, or leave it out to use all"
            )
        order = _permutation(num, derive_seed(config.val_seed, "train_limit"))
        train = _take(train, order[: config.train_limit])
    train = _move(train, device)
    if config.train_zeros is not None:
        train = Blank(config.train_zeros, train.image[:1])
    return DataSet(
        num_classes=data.num_classes,
        train=train,
        val=None if val is None else _move(val, device),
        test={name: _move(arrays, device) for name, arrays in data.test.items()},
    )


def split_off(
    arrays: Arrays, share: float, seed: int, part: Literal["val", "test"]
) -> tuple[Arrays, Arrays]:
    """The rest of a set and a random share of it, a pure function of (number of images, seed).

    Raises:  ValueError naming the key data.`part`_share if either side would be empty.
    """
    num = len(arrays.label)
    num_part = round(num * share)
    if not 0 < num_part < num:
        raise ValueError(
            f"data.{part}_share = {share}: splits {num} images into {num - num_part} and "
            f"{num_part}; choose a share that leaves images on both sides"
        )
    order = _permutation(num, derive_seed(seed, part))
    return _take(arrays, order[num_part:]), _take(arrays, order[:num_part])


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


def with_shifted(test: Arrays, shift_px: int) -> dict[str, Arrays]:
    """The test sets "centered", as given, and "shifted", the same images moved by `shift_px`."""
    shifted = test._replace(image=shift_corners(test.image, shift_px, TEST_SEED))
    return {"centered": test, "shifted": shifted}


class ArrayLoader:
    """Endless training batches out of a set on the device, in a new order each epoch.

    The order is a pure function of (seed, epoch), the same for any number of processes; each takes
    its slice of the global batch. The state is the number of steps taken, so a run can resume at
    any step. The images of an incomplete last batch wait for another epoch.

    Args:    batch_size: images of the global batch, over all processes.
             seed: of the run; it decides the orders together with the epoch.
    Raises:  ValueError if the batch is larger than the set or does not divide by the processes.
    """

    def __init__(
        self, arrays: Arrays, *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        num = len(arrays.label)
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
        self._image_NHWC = arrays.image.permute(0, 2, 3, 1).contiguous()
        self._label = arrays.label
        self._batch_size = batch_size
        self._share = batch_size // world_size
        self._offset = rank * self._share
        self._seed = seed
        self._step = 0
        self._epoch: int | None = None
        self._order = torch.empty(0, dtype=torch.int64)

    def next_batch(self) -> Batch:
        """This process's slice of the next global batch."""
        epoch, position = divmod(self._step, self.num_steps_per_epoch)
        if epoch != self._epoch:
            order = _permutation(len(self._label), derive_seed(self._seed, "order", epoch))
            self._order = order.to(self._label.device, non_blocking=True)
            self._epoch = epoch
        start = position * self._batch_size + self._offset
        index = self._order[start : start + self._share]
        self._step += 1
        image = self._image_NHWC.index_select(0, index).permute(0, 3, 1, 2)
        return Batch(image, self._label.index_select(0, index))

    def state_dict(self) -> dict[str, int]:
        """Steps taken so far, for the checkpoint."""
        return {"step": self._step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after the step that was saved."""
        self._step = state["step"]


def _permutation(num: int, seed: int) -> Tensor:
    # On the CPU, so that the order does not depend on the device.
    return torch.randperm(num, generator=torch.Generator().manual_seed(seed))


def _take(arrays: Arrays, index: Tensor) -> Arrays:
    return Arrays(arrays.image[index], arrays.label[index])


def _move(arrays: Arrays, device: torch.device) -> Arrays:
    # .contiguous(channels_last) would leave the strides of one-channel images as they are.
    image_NHWC = arrays.image.to(device).permute(0, 2, 3, 1).contiguous()
    return Arrays(image_NHWC.permute(0, 3, 1, 2), arrays.label.to(device))
