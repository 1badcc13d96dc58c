"""A run that is stepped but not kept: what its phases cost in time and in memory.

Letters: B images of this process's batch, C channels, H rows, W columns.
"""

import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from hard_fast.config import RunConfig, is_own_phase
from hard_fast.data import Arrays, Loader
from hard_fast.runtime.compile import allow_graphs
from hard_fast.runtime.cycle import Cycle
from hard_fast.runtime.dist import World
from hard_fast.runtime.memory import peak_bytes, saved_bytes, storage_bytes
from hard_fast.trainer import Trainer
from hard_fast.types import Batch, Noise, Phase

_NUM_WARM_UP = 2
_MOST_STEPS = 30
_SECONDS = 2.0
# Of several passes of other sizes, beside those of the steps.
_NUM_GRAPHS = 64


class StepTime(NamedTuple):
    """What a step takes on average. waiting: the share in which this process waits for data."""

    ms: float
    waiting: float


class _Held:
    """A controller that stays in one phase."""

    def __init__(self, phase: Phase) -> None:
        self.phase = phase

    def observe(self, step: int, error: Tensor) -> None:
        """No error ends the phase."""


class Trial:
    """Real steps of a run in phases and at sizes of one's choice.

    Args:    folder: in which the run's own directory is; nothing is left in the configured one.
    Raises:  ValueError, one line, if the run cannot be built.
    """

    def __init__(self, config: RunConfig, world: World, folder: Path) -> None:
        train = config.train.model_copy(update={"profile_steps": 0})
        changes = {"run_dir": str(folder / "run"), "train": train, "evaluation": None}
        self.config = config.model_copy(update=changes)
        self._world, self._device = world, world.device
        trainer = self._trainer = Trainer(self.config, world, resume=False)
        self.net, self.data, self.growth = trainer.net, trainer.data, trainer.growth
        self._engine = trainer.engine
        if trainer.engine.cache:
            allow_graphs(_NUM_GRAPHS)
        # In the middle of the run all that begins late has begun.
        self._middle = trainer.num_steps // 2
        every = config.optim.update_every
        if isinstance(every, Cycle):
            every = every.at(self._middle, trainer.num_steps)
        self._gathers = round(every) > 1
        self.phases = _phases(config)
        self.group = self.net.augmentor.group
        self._loaders: dict[int, Loader] = {}
        self._batch: Batch | None = None

    def num_images(self, phase: Phase) -> int:
        """Images that go through the networks at once in a step of this phase."""
        return self._engine.num_images(phase) // self.config.train.accumulate

    def time(self, phase: Phase, size_px: int) -> StepTime:
        """What a step takes, data and updates included, once it is warm."""
        self._hold(phase, size_px)
        for _ in range(_NUM_WARM_UP):
            self._step_and_update()
        self._finish()
        self._trainer.clock.window()
        since, num = time.perf_counter(), 0
        while not num or (num < _MOST_STEPS and time.perf_counter() - since < _SECONDS):
            self._step()
            num += 1
        self._finish()
        ms = 1e3 * (time.perf_counter() - since) / num
        return StepTime(ms, self._trainer.clock.window()["data_wait"])

    def step_peak(self, phase: Phase) -> int:
        """The most memory in use in a step at the full size, bytes; an update is in it."""
        if self._gathers:
            # The gradients of earlier steps wait for their update meanwhile.
            self._hold(self.phases[0], self.growth.sizes[-1])
            self._step_and_update()
            self._step()
        self._hold(phase, self.growth.sizes[-1])
        return peak_bytes(self._step_and_update, self._device)

    def pass_peak(self, phase: Phase, num: int) -> int:
        """The same where so many images go through the networks at once, without the update."""
        self._hold(phase, self.growth.sizes[-1])
        batch, noise = self._rows(num)
        peak = peak_bytes(lambda: self._engine.gradients(phase, batch, noise), self._device)
        self._forget_gradients()
        return peak

    def kept(self, phase: Phase, num: int) -> int:
        """Bytes that so many images keep for the backward pass, where nothing is compiled."""
        self._hold(phase, self.growth.sizes[-1])
        batch, noise = self._rows(num)
        return saved_bytes(lambda: self.net(phase, batch, noise).loss, self.net)

    def memory(self) -> dict[str, int]:
        """Bytes of what is there between steps and of gradients, by what it is."""
        learners, average = self._engine.learners().values(), self._engine.average
        parts = (self.data.train, self.data.val, *self.data.test.values())
        gathered = self.net.learners(Phase.STUDENT) if self._gathers else []
        now = max(storage_bytes(self.net.learners(phase)) for phase in self.phases)
        states = [learner.state_dict() | {"gathered": None} for learner in learners]
        found = {
            "weights": storage_bytes([*self.net.parameters(), *self.net.buffers()]),
            "gradients": now + storage_bytes(gathered),
            "optimizer": storage_bytes(states),
            "average": storage_bytes(average.state_dict()) if average else 0,
            "data": storage_bytes([part for part in parts if isinstance(part, Arrays)]),
        }
        return {name: num_bytes for name, num_bytes in found.items() if num_bytes}

    def input_bytes(self) -> float:
        """Bytes of one image of a batch and of its noise, before any network sees it."""
        self._hold(self.phases[0], self.growth.sizes[-1])
        batch, noise = self._inputs()
        return storage_bytes([*batch, noise]) / len(batch.label)

    def _hold(self, phase: Phase, size_px: int) -> None:
        self._trainer.learning.controller = _Held(phase)
        self._trainer.loader = self._loader(size_px)
        self.net.learn(phase)

    def _loader(self, size_px: int) -> Loader:
        """Batches of this size; each size has one loader."""
        if size_px not in self._loaders:
            given = {"batch_size": self.config.train.batch_size, "seed": self.config.seed}
            given |= {"rank": self._world.rank, "world_size": self._world.size}
            if len(self.growth.sizes) > 1:
                given["size_at"] = lambda step: size_px
            self._loaders[size_px] = self.data.train.loader(**given)
        return self._loaders[size_px]

    def _step(self) -> None:
        self._trainer.step = self._middle
        self._trainer.train_step()

    def _step_and_update(self) -> None:
        """A step, and at once the update for which others would still gather gradients."""
        self._step()
        self._engine.learner.finish(self._middle)

    def _finish(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _inputs(self) -> tuple[Batch, Noise]:
        """One batch of the full size, always the same, and its noise in the phase held."""
        batch = self._batch = self._batch or self._loader(self.growth.sizes[-1]).next_batch()
        return batch, self._trainer.learning.draw(self._middle, batch)

    def _rows(self, num: int) -> tuple[Batch, Noise]:
        """So many images, those of one batch over and over, and their noise."""
        batch, noise = self._inputs()
        own = len(batch.label)

        def some(value: Tensor) -> Tensor:
            wanted = num * len(value) // own
            return value[torch.arange(wanted, device=value.device) % len(value)]

        image = some(batch.image.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        rows = {name: some(value) if value.ndim else value for name, value in noise.items()}
        return Batch(image, some(batch.label)), rows

    def _forget_gradients(self) -> None:
        for parameter in self.net.parameters():
            parameter.grad = None


def _phases(config: RunConfig) -> list[Phase]:
    """Those that a run's schedule uses."""
    if config.schedule.kind == "joint":
        return [Phase.JOINT]
    return [Phase.STUDENT, Phase.AUGMENTOR] if is_own_phase(config.schedule) else [Phase.STUDENT]
