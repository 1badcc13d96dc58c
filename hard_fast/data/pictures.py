"""A part of a data set whose pictures are decoded while the networks learn."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from hard_fast.data.arrays import Arrays, DataSet
from hard_fast.data.dali import TrainLoader, eval_batches
from hard_fast.data.growing import SizeAt
from hard_fast.data.pipelines import import_dali
from hard_fast.data.sources import PicturesConfig, Samples, read_pictures
from hard_fast.types import Batch

# 1,783 pictures of 224 px, or 21,845 of 64 px.
_KEPT_BYTES = 2**28


@dataclass(frozen=True, eq=False)
class Pictures:
    """Encoded pictures on disk, and how they become batches on the device."""

    samples: Samples
    config: PicturesConfig
    device: torch.device
    _kept: dict[tuple[int, int], Arrays] = field(default_factory=dict, init=False)

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
        self,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        size_at: SizeAt | None = None,
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
            size_at=size_at,
        )

    def batches(self, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """Every picture exactly once over all processes, resized and cropped at its centre.

        The share of a process stays on the device after its first whole pass if it is small.
        """
        share = (rank, world_size)
        if share in self._kept:
            yield from self._kept[share].batches(batch_size)
            return
        place = {"rank": rank, "world_size": world_size}
        batches = eval_batches(self.samples, self.config, batch_size, self.device, **place)
        if self.num * math.prod(self.image_shape) > _KEPT_BYTES * world_size:
            yield from batches
            return
        seen = []
        for batch in batches:
            seen.append(batch)
            yield batch
        if seen:
            image, label = map(torch.cat, zip(*seen, strict=True))
            self._kept[share] = Arrays(image, label)


def open_pictures(config: PicturesConfig, device: torch.device) -> DataSet:
    """The configured set; nothing is decoded before a batch is asked for.

    Raises:  ValueError, one line, if a file or a key is wrong, or DALI is not installed.
    """
    import_dali()
    found = read_pictures(config)
    val = None if found.val is None else Pictures(found.val, config, device)
    test = {} if found.test is None else {"test": Pictures(found.test, config, device)}
    return DataSet(found.num_classes, Pictures(found.train, config, device), val, test)
