"""Batches of pictures that DALI decodes while the networks work: for training, and each once.

Letters: B pictures of this process's batch.
"""

import logging
import shlex
from collections import deque
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hard_fast.data.decoding import (
    build_resizer,
    count_threads,
    fingerprint,
    name_of,
    run,
    to_batch,
    to_tensor,
    with_index,
)
from hard_fast.data.eval_pass import eval_batches
from hard_fast.data.feed import Feed
from hard_fast.data.growing import SizeAt
from hard_fast.data.order import Order, Work
from hard_fast.data.pipelines import find_unreadable, import_dali, train_pipeline
from hard_fast.data.resizing import Resizing
from hard_fast.data.sources import PicturesConfig, Samples
from hard_fast.data.waiting import DeviceWait, HostWait
from hard_fast.types import Batch

_log = logging.getLogger(__name__)

__all__ = ["TooManyBadFiles", "TrainLoader", "eval_batches"]


class TooManyBadFiles(RuntimeError):
    """More pictures of an epoch could not be decoded than `data.max_bad` allows."""


class _Decoded(NamedTuple):
    """A batch on its way; without a GPU, threads may still be resizing it.

    state: what the loader says of itself once this batch is handed out.
    """

    image: Resizing | Tensor
    index: np.ndarray
    state: dict[str, Any]


class TrainLoader:
    """Endless training batches: random crops, half of them mirrored, decoded ahead.

    `order.Order` says which pictures and crops; shards are read at random places for it. Step by
    step all processes show their slices of one global batch: in the place of a picture that cannot
    be decoded, which is named and counted, comes another one of its batch. So a batch is a function
    of the seed, the step and the files, and any process goes on from the state of any other.

    DALI's memory goes with the last reference to the loader, so nobody has to close it.

    Args:    batch_size: of the global batch, over all processes.
             seed: of the run.
             size_at: the pictures' side at each step; None: the configured one.
             resize_in_graph: DALI resizes without a GPU too, as it does on one, more slowly.
    Raises:  ValueError if the batch is larger than the part or does not divide by the processes,
             or DALI is not installed.
    """

    def __init__(
        self,
        samples: Samples,
        config: PicturesConfig,
        *,
        batch_size: int,
        seed: int,
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
        size_at: SizeAt | None = None,
        resize_in_graph: bool = False,
    ) -> None:
        import_dali()
        self._samples, self._config = samples, config
        self._size_at: SizeAt = size_at or (lambda step: config.size)
        self._order = Order(
            len(samples.label),
            batch_size,
            seed=seed,
            min_scale=config.min_scale,
            flip=config.flip,
            rank=rank,
            world_size=world_size,
        )
        self.num_steps_per_epoch = self._order.num_steps_per_epoch
        self._identity = {
            "batch size": batch_size,
            "seed": seed,
            "list of samples": fingerprint(samples),
        }
        self._device = with_index(device)
        self._num_threads = count_threads(config, self._device, world_size)
        self._resizer = build_resizer(config, self._num_threads, self._device, resize_in_graph)
        is_cuda = self._device.type == "cuda"
        self._wait = DeviceWait(self._device) if is_cuda else HostWait()
        self.num_bad = 0
        """Pictures of this process that could not be decoded, up to the batch handed out last."""
        self._feed: Feed | None = None
        self._pipeline: Any = None
        self._go_to(0)

    @property
    def wait_s(self) -> float:
        """Seconds that the GPU, or without one this process, has waited for batches."""
        return self._wait.seconds()

    def next_batch(self) -> Batch:
        """This process's slice of the next global batch.

        Raises:  TooManyBadFiles, naming the command that lists them.
        """
        with self._wait:
            # While one batch is in use, threads resize the next; on a GPU, DALI itself is ahead.
            num_ahead = 1 if self._resizer is None else 2
            while len(self._ahead) < num_ahead:
                self._ahead.append(self._decode())
            image, index, self._state = self._ahead.popleft()
            self.num_bad = self._state["num_bad"]
            return to_batch(image, self._samples.label[index], self._device)

    def state_dict(self) -> dict[str, Any]:
        """What any process needs to go on after the batch handed out last."""
        return dict(self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the saved batch: what comes is bit for bit what would have come.

        With another batch size, seed or list of samples that is impossible: a warning says so, and
        the epoch starts again.
        """
        self.num_bad = state["num_bad"]
        step = state["epoch"] * self.num_steps_per_epoch
        differing = [k for k, v in self._identity.items() if state["identity"][k] != v]
        if differing:
            reason = " and ".join(differing)
            _log.warning("saved with another %s: epoch %d starts again", reason, state["epoch"])
            self._go_to(step)
        else:
            self._go_to(step + state["position"], state["num_bad_in_epoch"])

    def close(self) -> None:
        """Let go of the threads and of DALI's memory."""
        self._shut()
        if self._resizer is not None:
            self._resizer.close()

    def _go_to(self, step: int, num_bad_in_epoch: int = 0) -> None:
        """Make `step` the next one."""
        self._shut()
        self._ahead: deque[_Decoded] = deque()
        self._step = step
        self._num_bad, self._num_bad_in_epoch = self.num_bad, num_bad_in_epoch
        self._state = self._describe()

    def _describe(self) -> dict[str, Any]:
        epoch, position = divmod(self._step, self.num_steps_per_epoch)
        return {
            "identity": dict(self._identity),
            "epoch": epoch,
            "position": position,
            "num_bad": self._num_bad,
            "num_bad_in_epoch": self._num_bad_in_epoch,
        }

    def _open(self, first: Work) -> None:
        """Build the pipeline of this step's batch and of those that follow."""
        order, step, size_at = self._order, self._step, self._size_at
        width_at = None if self._resizer else lambda i: size_at(step + i)

        # Neither holds a reference to this object, which would keep both of them alive.
        def plan(i: int) -> Work:
            return order.work(step + i) if i else first

        self._feed = Feed(self._samples, plan, width_at)
        self._pipeline = train_pipeline(
            self._feed, self._config, order.share, self._device, self._num_threads
        )

    def _shut(self) -> None:
        if self._feed is not None:
            self._feed.close()
        self._feed = self._pipeline = None

    def _decode(self) -> _Decoded:
        """The batch of the next step."""
        if self._step % self.num_steps_per_epoch == 0:
            self._num_bad_in_epoch = 0
        work, num_lost = self._order.work(self._step), 0
        while True:
            is_new = self._pipeline is None
            if is_new:
                self._open(work)
            try:
                pictures, index = run(self._pipeline, self._device)
            except RuntimeError as error:
                # DALI calls a pipeline that failed no longer valid.
                self._shut()
                work = self._mended(work, error, is_new)
                if not len(work.index):
                    # Not one is left: a later batch is shown twice.
                    num_lost += 1
                    if num_lost == self.num_steps_per_epoch:
                        raise self._too_many("no picture of an epoch can be decoded") from None
                    work = self._order.work(self._step + num_lost)
                continue
            assert np.array_equal(index, work.index), "DALI returned other samples than asked for"
            size_px = self._size_at(self._step)
            self._step += 1
            state = self._describe()
            if self._resizer is None:
                return _Decoded(to_tensor(pictures), index, state)
            image = self._resizer.stretched(pictures, work.is_flipped, size_px)
            return _Decoded(image, index, state)

    def _mended(self, work: Work, error: RuntimeError, is_new: bool) -> Work:
        """A batch that failed, with others of it in the place of those that are to blame.

        Raises:  TooManyBadFiles; `error` itself if a new pipeline fails and no picture is bad.
        """
        bad = find_unreadable(self._samples, work, self._device, self._num_threads)
        if not bad:
            if is_new:
                raise error
            _log.warning("DALI failed on pictures that it can decode, and starts anew: %s", error)
            return work
        self._num_bad += len(bad)
        self._num_bad_in_epoch += len(bad)
        for i, reason in bad.items():
            _log.warning("left out of a batch: %s: %s", name_of(self._samples, i), reason)
        num = self.num_steps_per_epoch * self._order.share
        max_bad = self._config.max_bad
        if self._num_bad_in_epoch > (max(1.0, max_bad * num) if max_bad else 0.0):
            raise self._too_many(
                f"{self._num_bad_in_epoch} of the {num} pictures of an epoch cannot be decoded, "
                f"more than data.max_bad = {max_bad:g} allows"
            ) from None
        is_bad = np.isin(work.index, list(bad))
        others = work.index[~is_bad]
        if not len(others):
            return work._replace(index=others)
        index = work.index.copy()
        index[is_bad] = np.resize(others, is_bad.sum())
        return work._replace(index=index)

    def _too_many(self, problem: str) -> TooManyBadFiles:
        root = self._config.root
        roots = shlex.join([root] if isinstance(root, str) else root)
        command = f"python -m hard_fast.data.prepare check {roots}"
        return TooManyBadFiles(f"{problem}; to leave such pictures out, run {command}")
