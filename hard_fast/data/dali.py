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
from hard_fast.data.order import Order, Work
from hard_fast.data.pipelines import find_unreadable, import_dali, train_pipeline
from hard_fast.data.resizing import Resizing
from hard_fast.data.sources import PicturesConfig, Samples
from hard_fast.data.waiting import DeviceWait, HostWait
from hard_fast.runtime.seed import derive_seed
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

    `order.Order` says which pictures; shards are read at random places for it. DALI draws the crops
    from (seed, rank, first step of a stream), and its checkpoint puts them back exactly. A batch
    with a picture that cannot be decoded is skipped: the picture is named and counted, the batch
    keeps its position, and a new stream of crops starts after it.

    Args:    batch_size: of the global batch, over all processes.
             seed: of the run.
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
        resize_in_graph: bool = False,
    ) -> None:
        import_dali()
        self._samples, self._config, self._seed, self._rank = samples, config, seed, rank
        self._order = Order(
            len(samples.label),
            batch_size,
            seed=seed,
            flip=config.flip,
            rank=rank,
            world_size=world_size,
        )
        self.num_steps_per_epoch = self._order.num_steps_per_epoch
        self._identity = {
            "number of processes": world_size,
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
        """This process's slice of the next global batch that can be decoded.

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
        """What the process of this rank needs to go on after the batch handed out last."""
        return dict(self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the saved batch: what comes is bit for bit what would have come.

        Where that is impossible a warning says why. With another number of processes, batch size,
        seed or list of samples the epoch starts again; with the state of another rank, or one that
        this DALI cannot read, only the crops differ.
        """
        self.num_bad = state["num_bad"]
        step = state["epoch"] * self.num_steps_per_epoch
        differing = [k for k, v in self._identity.items() if state["identity"][k] != v]
        if differing:
            reason = " and ".join(differing)
            _log.warning("saved with another %s: epoch %d starts again", reason, state["epoch"])
            self._go_to(step)
            return
        self._go_to(step + state["position"], state["num_bad_in_epoch"])
        if state["rank"] != self._rank:
            _log.warning("saved by rank %d: rank %d draws new crops", state["rank"], self._rank)
        elif state["dali"] is not None:
            try:
                self._open(state["first_step"], state["dali"])
            except RuntimeError as error:
                reason = str(error).partition("\n")[0]
                _log.warning("DALI cannot read its checkpoint (%s): new crops are drawn", reason)
            else:
                self._state = self._describe(state["dali"])

    def close(self) -> None:
        """Let go of the threads and of DALI's memory."""
        self._shut()
        if self._resizer is not None:
            self._resizer.close()

    def _go_to(self, step: int, num_bad_in_epoch: int = 0) -> None:
        """Make `step` the next one, in a new stream of crops."""
        self._shut()
        self._ahead: deque[_Decoded] = deque()
        self._step = self._first_step = step
        self._num_bad, self._num_bad_in_epoch = self.num_bad, num_bad_in_epoch
        self._num_lost_in_a_row = 0
        self._state = self._describe(None)

    def _describe(self, checkpoint: bytes | None) -> dict[str, Any]:
        epoch, position = divmod(self._step, self.num_steps_per_epoch)
        return {
            "identity": dict(self._identity),
            "rank": self._rank,
            "epoch": epoch,
            "position": position,
            "first_step": self._first_step,
            "num_bad": self._num_bad,
            "num_bad_in_epoch": self._num_bad_in_epoch,
            "dali": checkpoint,
        }

    def _open(self, first_step: int, checkpoint: bytes | None = None) -> None:
        """Build the pipeline of the stream of crops that begins with `first_step`."""
        width = None if self._resizer else self._config.size
        feed = Feed(self._samples, lambda i: self._order.work(first_step + i), width)
        self._pipeline = train_pipeline(
            feed,
            self._config,
            self._order.share,
            self._device,
            self._num_threads,
            seed=derive_seed(self._seed, "crop", first_step, self._rank),
            checkpoint=checkpoint,
        )
        self._feed, self._first_step = feed, first_step

    def _shut(self) -> None:
        if self._feed is not None:
            self._feed.close()
        self._feed = self._pipeline = None

    def _decode(self) -> _Decoded:
        """The next batch that can be decoded."""
        while True:
            if self._step % self.num_steps_per_epoch == 0:
                self._num_bad_in_epoch = 0
            if self._pipeline is None:
                self._open(self._step)
            work = self._order.work(self._step)
            try:
                pictures, index = run(self._pipeline, self._device)
            except RuntimeError as error:
                self._lose(work, error)
                continue
            assert np.array_equal(index, work.index), "DALI returned other samples than asked for"
            self._step += 1
            self._num_lost_in_a_row = 0
            state = self._describe(self._pipeline.checkpoint())
            if self._resizer is None:
                return _Decoded(to_tensor(pictures), index, state)
            return _Decoded(self._resizer.stretched(pictures, work.is_flipped), index, state)

    def _lose(self, work: Work, error: RuntimeError) -> None:
        """Name and count what is bad in a batch that failed, and go on after it.

        Raises:  TooManyBadFiles; `error` itself if a new pipeline fails and no picture is bad.
        """
        is_new = self._step == self._first_step
        # DALI calls a pipeline that failed no longer valid.
        self._shut()
        found = find_unreadable(self._samples, work.index, self._device, self._num_threads)
        if not found:
            if is_new:
                raise error
            _log.warning("DALI failed on pictures that it can decode, and starts anew: %s", error)
            return
        self._step += 1
        self._num_bad += len(found)
        self._num_bad_in_epoch += len(found)
        for i, reason in found.items():
            _log.warning("skipped a batch: %s: %s", name_of(self._samples, i), reason)
        self._num_lost_in_a_row += 1
        num = self.num_steps_per_epoch * self._order.share
        problem = None
        if self._num_bad_in_epoch > self._config.max_bad * num:
            problem = (
                f"{self._num_bad_in_epoch} of the {num} pictures of an epoch cannot be decoded, "
                f"more than data.max_bad = {self._config.max_bad:g} allows"
            )
        elif self._num_lost_in_a_row >= 2 * self.num_steps_per_epoch:
            problem = "every batch of an epoch has a picture that cannot be decoded"
        if problem is not None:
            root = self._config.root
            roots = shlex.join([root] if isinstance(root, str) else root)
            command = f"python -m hard_fast.data.prepare check {roots}"
            raise TooManyBadFiles(f"{problem}; to leave such pictures out, run {command}") from None
