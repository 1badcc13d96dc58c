"""Data that live on the device, and how they are split.

Letters: N images of a set, B images of a batch, C channels, H rows, W columns.
"""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, Protocol, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from hard_fast.data.array_loader import ArrayLoader, permutation
from hard_fast.data.blank import Blank
from hard_fast.data.growing import SizeAt
from hard_fast.runtime.configfile import Config
from hard_fast.runtime.seed import derive_seed
from hard_fast.types import Batch

# No key moves an image between test and training or changes a shifted set: a constant.
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

    def loader(
        self,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        size_at: SizeAt | None = None,
    ) -> Loader:
        """Training batches; `batch_size` is that of all processes together.

        Args:    size_at: the pictures' side at each step; None: the full one.
        """


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
        self,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        size_at: SizeAt | None = None,
    ) -> ArrayLoader:
        """Training batches; `batch_size` is that of all processes together."""
        place = {"rank": rank, "world_size": world_size, "size_at": size_at}
        return ArrayLoader(Batch(*self), batch_size=batch_size, seed=seed, **place)

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
    score_on: Literal["test", "val"] = "test"
    """What stands for the test sets: with "val" the validation part does and the test is never
    looked at, which is how settings are searched."""

    @property
    def reads_train(self) -> bool:
        """Whether any image of the training part is looked at."""
        return self.train_zeros is None or self.val_share > 0.0

    def tests(self, part: "Arrays") -> dict[str, "Arrays"]:
        """The test sets that a part of the data makes, by name."""
        return {"test": part}

    @model_validator(mode="after")
    def _keys_fit(self) -> Self:
        if self.train_zeros is not None and self.train_limit is not None:
            raise ValueError("train_limit: train_zeros replaces what it would limit; remove one")
        if self.score_on == "val" and not self.val_share:
            raise ValueError("score_on = 'val': there is no validation part; set val_share")
        return self


def place(data: DataSet, config: SplitConfig, device: torch.device) -> DataSet:
    """The data set as a run uses it: split, limited, and on the device in channels_last memory.

    Args:    data: as read, without a validation part, in any memory layout; its one test set is
                 "test".
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
        order = permutation(num, derive_seed(config.val_seed, "train_limit"))
        train = _take(train, order[: config.train_limit])
    train = _move(train, device)
    if config.train_zeros is not None:
        train = Blank(config.train_zeros, train.image[:1])
    tests = config.tests(val if config.score_on == "val" else data.test["test"])
    return DataSet(
        num_classes=data.num_classes,
        train=train,
        val=None if val is None else _move(val, device),
        test={name: _move(arrays, device) for name, arrays in tests.items()},
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
    order = permutation(num, derive_seed(seed, part))
    return _take(arrays, order[num_part:]), _take(arrays, order[:num_part])


def _take(arrays: Arrays, index: Tensor) -> Arrays:
    return Arrays(arrays.image[index], arrays.label[index])


def _move(arrays: Arrays, device: torch.device) -> Arrays:
    # .contiguous(channels_last) would leave the strides of one-channel images as they are.
    image_NHWC = arrays.image.to(device).permute(0, 2, 3, 1).contiguous()
    return Arrays(image_NHWC.permute(0, 3, 1, 2), arrays.label.to(device))
