"""What feeds DALI: encoded pictures out of tar shards, or paths of files that it reads itself."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from hard_fast.data.order import Work
from hard_fast.data.sources import Samples

_NUM_READERS = 8

# The batch of an iteration, None after the last one. Asked in any order, more than once.
Plan = Callable[[int], Work | None]


class Feed:
    """What a graph asks for in each iteration: encoded pictures, or the paths that DALI reads.

    Pictures in shards are read by threads of its own, one batch before they are asked for. One
    that cannot be read comes out empty, so that decoding it fails and it is found.

    Args:    width_at: of finished training pictures in an iteration, px; None where the graph does
                       not resize them.
    """

    def __init__(
        self, samples: Samples, plan: Plan, width_at: Callable[[int], int] | None = None
    ) -> None:
        self.has_paths = not samples.offset.any()
        self.width_at = width_at
        self._samples, self._plan = samples, plan
        self._pool = None if self.has_paths else ThreadPoolExecutor(_NUM_READERS, "read")
        self._reading: dict[int, list[Future[list[np.ndarray]]]] = {}

    def __call__(self, info: Any) -> tuple[Any, ...]:
        """The batch of DALI's BatchInfo: encoded pictures, positions; crops; signed widths."""
        work = self._plan(info.iteration)
        if work is None:
            raise StopIteration
        if self.has_paths:
            encoded = read_encoded(self._samples, work.index)
        else:
            encoded = self._read(info.iteration, work)
        if work.crop is None:
            return encoded, work.index
        if self.width_at is None:
            return encoded, work.index, work.crop
        # DALI mirrors what it resizes to a negative width: a flip that costs nothing.
        sign = np.where(work.is_flipped, np.float32(-1), np.float32(1))
        return encoded, work.index, work.crop, sign * np.float32(self.width_at(info.iteration))

    def close(self) -> None:
        """Let go of the threads."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _read(self, iteration: int, work: Work) -> list[np.ndarray]:
        """The batch's pictures, while the following ones begin to be read."""
        started = self._reading.pop(iteration, None) or self._start(work)
        following = self._plan(iteration + 1)
        self._reading = {} if following is None else {iteration + 1: self._start(following)}
        return [picture for future in started for picture in future.result()]

    def _start(self, work: Work) -> list[Future[list[np.ndarray]]]:
        parts = np.array_split(work.index, min(_NUM_READERS, len(work.index)))
        return [self._pool.submit(read_encoded, self._samples, part) for part in parts]


def read_encoded(samples: Samples, index: Iterable[int]) -> list[np.ndarray]:
    """Encoded pictures out of shards, empty where reading fails; of a folder, paths as bytes."""
    found = []
    for i in index:
        path = os.fsencode(samples.files[samples.file_of[i]])
        if not samples.offset[i]:
            found.append(np.frombuffer(path, np.uint8))
            continue
        picture = np.empty(samples.num_bytes[i], np.uint8)
        try:
            with open(path, "rb", buffering=0) as file:
                size = os.preadv(file.fileno(), [picture], int(samples.offset[i]))
        except OSError:
            size = 0
        found.append(picture[:size])
    return found
