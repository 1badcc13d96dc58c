"""A part of a data set whose pictures are decoded while the networks learn."""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from hard_fast.data.arrays import DataSet
from hard_fast.data.dali import TrainLoader, eval_batches
from hard_fast.data.sources import PicturesConfig, Samples, read_pictures
from hard_fast.types import Batch


class Pictures(NamedTuple):
    """Encoded pictures on disk, and how they become batches on the device."""

    samples: Samples
    config: PicturesConfig
    device: torch.device

    @property
    def num(self) -> int:
        """How many samples there are."""
        return len(self.samples.label)

    @property
    def image_shape(self) -> torch.Size:
        """C, H, W of every image once it is decoded."""
        return torch.Size((3, self.config.size, self.config.size))

    @property
    def is_picture(self) -> bool:
        """They always are."""
        return True

    def loader(
        self, *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> TrainLoader:
        """Random crops, mirrored half of the time; `batch_size` is over all processes."""
        return TrainLoader(
            self.samples,
            self.config,
            batch_size=batch_size,
            seed=seed,
            device=self.device,
            rank=rank,
            world_size=world_size,
        )

    def batches(self, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """Every picture exactly once over all processes, resized and cropped at its centre."""
        place = {"rank": rank, "world_size": world_size}
        return eval_batches(self.samples, self.config, batch_size, self.device, **place)


def open_pictures(config: PicturesConfig, device: torch.device) -> DataSet:
    """The configured set; nothing is decoded before a batch is asked for.

    Raises:  ValueError, one line, if a file or a key is wrong, or DALI is not installed.
    """
    found = read_pictures(config)
    val = None if found.val is None else Pictures(found.val, config, device)
    test = {} if found.test is None else {"test": Pictures(found.test, config, device)}
    return DataSet(found.num_classes, Pictures(found.train, config, device), val, test)
