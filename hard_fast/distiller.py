"""Distillation in a loop of one's own: one's own modules and batches, and no file.

Letters: B images of a batch, C channels, H rows, W columns, K classes.
"""

import atexit
import contextlib
import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from hard_fast.batchnorm import gather_statistics, restore_statistics
from hard_fast.build import Role, assemble
from hard_fast.checkpoint import restore
from hard_fast.engine import Result
from hard_fast.guard import Diverged
from hard_fast.learning import Learning
from hard_fast.models.own import count_outputs
from hard_fast.models.zoo import Dressed, NetworkConfig
from hard_fast.own_run import (
    WHO,
    HeldBank,
    Network,
    OwnRun,
    as_network,
    check_batch,
    check_values,
    dress,
    read_tables,
)
from hard_fast.phases import Switch, advice
from hard_fast.rundir import agree_on
from hard_fast.runtime import dist
from hard_fast.runtime.seed import default_generator
from hard_fast.types import Batch, Phase

__all__ = ["Distiller", "Diverged", "Network", "Report"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Report:
    """What a step did. Its numbers stay on the device until they are asked for.

    step:   how many steps the run has made with this one.
    phase:  what learned: "student", "augmentor" or "joint".
    switch: the change of phase that followed, and why; None: the phase goes on.
    """

    step: int
    phase: str
    switch: Switch | None
    _result: Result = field(repr=False)

    @property
    def loss(self) -> float:
        """The loss, the mean of all processes."""
        return float(self._result.logs["loss"])

    @property
    def error(self) -> float:
        """What the schedule compares with its thresholds; NaN where nothing was learned."""
        return float(self._result.error)

    @property
    def logs(self) -> dict[str, float]:
        """All that the objective measured."""
        return {name: float(value) for name, value in self._result.logs.items()}

    @property
    def is_skipped(self) -> bool:
        """Whether a gradient or the loss was not finite, so that nothing was learned."""
        return bool(self._result.is_skipped)

    def __str__(self) -> str:
        then = f"; next {self.switch.after.value}: {self.switch.reason}" if self.switch else ""
        return f"step {self.step} {self.phase}: loss {self.loss:.4g}, error {self.error:.3g}{then}"


class Distiller:
    """Teaches a student by the steps of `hard_fast.train`, one batch of the caller's at a time.

    The tables are those of a configuration's file, with the same keys, defaults and messages:
    `objective`, `optim`, and where wanted `augmentor`, `augmentor_optim`, `schedule`, `bank`,
    `average`, `guard`, `compile`, `distributed`, `seed`, and `train` with device, precision,
    accumulate, augmentor_batch_size. Given the same batches it is the run of `hard_fast.train`, bit
    for bit. The caller's random numbers stay as they would be without it.

    Under torchrun, or in a process group that is there already, each process gives its share of a
    batch, the same number of images in each, and all of them call every method.

    Args:    student: learns in place, on the device of the run.
             teacher: stays as it is, a copy teaches; several answer with their mean probability;
                 None where the objective needs none.
             steps: length of the run, which learning rates follow.
             steps_per_epoch: for settings in epochs; None: the run is one epoch.
    Raises:  ValueError, one line, for what cannot work: here, or in the first step.
    """

    def __init__(
        self,
        student: nn.Module | Network,
        teacher: nn.Module | Network | Sequence[nn.Module | Network] | None = None,
        *,
        steps: int,
        steps_per_epoch: int | None = None,
        **tables: Any,
    ) -> None:
        given = teacher if isinstance(teacher, list | tuple) else [teacher]
        self._student = as_network(student, "student")
        teachers = [as_network(one, "teacher") for one in given if one is not None]
        self._config = read_tables(self._student, teachers, steps, tables)
        self._teachers = [replace(one, module=copy.deepcopy(one.module)) for one in teachers]
        if steps_per_epoch is not None and steps_per_epoch < 1:
            raise ValueError(f"{WHO}: steps_per_epoch = {steps_per_epoch}: must be 1 or more")
        self._num_steps, self._per_epoch = steps, steps_per_epoch or steps
        self._world = dist.join(self._config.train.device, self._config.distributed.timeout_s)
        atexit.register(dist.leave)
        self._learning: Learning | None = None
        self._num_classes = 0
        self.steps_done = 0

    def step(self, image: Tensor, label: Tensor | None = None) -> Report:
        """Update the network whose turn it is, once.

        Args:    image: [B,C,H,W] uint8, or float in [0,1]: not normalized. On any device.
                 label: [B] whole numbers, -1 = unlabelled; None: all are.
        Raises:  ValueError, one line, for a batch that does not fit, or after the last step;
                 Diverged where numbers are no longer finite, so that only a saved state can help.
        """
        batch = self._batch(image, label)
        if self.steps_done == self._num_steps:
            raise ValueError(f"{WHO}: steps = {self._num_steps}: all of them are done")
        if self._learning is None:
            shape = batch.image.shape[1:]
            check_values(image, label, count_outputs(self._student.module, shape))
            self._start(self._config.fitted(len(image) * self._world.size, shape))
            self._learning.begin()
        learning, step, phase = self._learning, self.steps_done, self._learning.controller.phase
        if self._student.module.training == (phase is Phase.AUGMENTOR):
            # Whoever looked at the student left it in the other mode.
            learning.net.learn(phase)
        with self._apart():
            noise = learning.draw(step, batch)
            result, switch = learning.learn(step, batch, noise)
        self.steps_done += 1
        if switch is not None:
            change = learning.end_turn(self.steps_done, switch)
            if (text := advice(switch, change)) is not None:
                self._warn(text)
        self._look_after()
        return Report(self.steps_done, phase.value, switch, result)

    def _look_after(self) -> None:
        """Act on what the guard has seen, and end the run with its last step."""
        learning, step = self._learning, self.steps_done
        is_last = step == self._num_steps
        if is_last:
            learning.engine.guard.judge(step)
        is_due = step % self._config.train.log_every == 0 or is_last
        if (back := learning.rescue.heed(step, is_row_due=is_due)) is not None:
            raise Diverged(
                f"{WHO}: step {step}: {back.why}; load a state saved before, at a lower learning "
                "rate, and look for NaN in the teacher's weights and the data"
            )
        if is_last:
            # BatchNorm statistics differ between ranks; the result holds their mean.
            dist.mean_(learning.engine.statistics())
            learning.net.learn(Phase.STUDENT)

    def state_dict(self) -> dict[str, Any]:
        """All that goes on from here, for torch.save; as a module's, it holds the live tensors.

        Raises:  ValueError before the first step.
        """
        if self._learning is None:
            raise ValueError(f"{WHO}: there is nothing to save before the first step")
        config = self._config
        return {
            "fingerprint": config.fingerprint,
            "batch": [config.train.batch_size, config.data.image_shape],
            "steps_done": self.steps_done,
            "statistics": gather_statistics(self._learning.engine.statistics()),
            "parts": {name: part.state_dict() for name, part in self._learning.parts().items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state, with the batches that would have come next.

        Raises:  ValueError, one line, if it is not one of a Distiller with the same settings.
        """
        if not isinstance(state, Mapping) or "fingerprint" not in state:
            raise ValueError(f"{WHO}: this is not what state_dict() returned")
        fitted = self._config.fitted(*state["batch"])
        if fitted.fingerprint != state["fingerprint"]:
            raise ValueError(f"{WHO}: the state was saved with other networks or settings")
        if self._learning is None:
            self._start(fitted)
        # Copies, since some parts go on with the very tensors that they are given.
        own = tree_map_only(Tensor, lambda one: one.to(self._world.device, copy=True), dict(state))
        learning = self._learning
        restore(own["parts"], learning.parts(), f"{WHO}: the state")
        restore_statistics(learning.engine.statistics(), own["statistics"], self._world)
        self.steps_done = own["steps_done"]
        is_over = self.steps_done == self._num_steps
        learning.net.learn(Phase.STUDENT if is_over else learning.controller.phase)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """While it lasts, the student holds the average of its weights that `average` keeps.

        Raises:  ValueError if there is none.
        """
        if self._learning is None or self._learning.engine.average is None:
            raise ValueError(f"{WHO}: no average is kept; give average={{}} and make a step")
        with self._learning.engine.average.applied():
            yield

    def _batch(self, image: Tensor, label: Tensor | None) -> Batch:
        """The batch on the device, in the memory layout of a run's own."""
        check_batch(image, label)
        device, size = self._world.device, [len(image) * self._world.size, *image.shape[1:]]
        wanted = [self._config.train.batch_size, *self._config.data.image_shape]
        if self._learning is not None and size != wanted:
            num = wanted[0] // self._world.size
            raise ValueError(
                f"{WHO}: image: {list(image.shape)}, and the first batch was {[num, *wanted[1:]]}; "
                "drop_last=True makes a DataLoader leave out what does not fill a batch"
            )
        if label is None:
            label = torch.full((len(image),), -1)
        image = image.to(device, non_blocking=True)
        image = image.float() if image.is_floating_point() else image
        # Rows of channels, also where there is one: .contiguous(channels_last) would leave strides.
        image = image.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        return Batch(image, label.to(device, torch.int64, non_blocking=True))

    def _start(self, config: OwnRun) -> None:
        """Build all that the first batch decides."""
        self._config, world = config, self._world
        local = [config.train.batch_size // world.size, *config.data.image_shape]
        shapes = dist.gather_objects(local)
        if any(shape != local for shape in shapes):
            told = ", ".join(f"{shape} on rank {rank}" for rank, shape in enumerate(shapes))
            raise ValueError(f"{WHO}: image: {told}; every process must give as many")
        agree_on(config)
        shape = torch.Size(config.data.image_shape)
        with self._apart():
            self._num_classes = count_outputs(self._student.module, shape)
            net = assemble(config, self._make, shape, self._num_classes, world)
            learning = Learning(
                config,
                net,
                world,
                num_steps=self._num_steps,
                num_steps_per_epoch=self._per_epoch,
                make_bank=lambda maker: HeldBank(maker, config),
                warn=self._warn,
            )
        self._learning = learning
        net.learn(learning.controller.phase)

    def _make(self, config: NetworkConfig, role: Role, taps: tuple[str, ...]) -> Dressed:
        is_teacher, shape = role == "teacher", tuple(self._config.data.image_shape)
        networks = self._teachers if is_teacher else [self._student]
        return dress(networks, config, self._num_classes, shape, frozen=is_teacher, taps=taps)

    @contextlib.contextmanager
    def _apart(self) -> Iterator[None]:
        """While it lasts, random numbers are the run's; then the caller's go on where they were."""
        generators = {torch.default_generator, default_generator(self._world.device)}
        kept = [(generator, generator.get_state()) for generator in generators]
        try:
            yield
        finally:
            for generator, state in kept:
                generator.set_state(state)

    def _warn(self, text: str) -> None:
        if self._world.is_main:
            _log.warning("step %d: %s", self.steps_done, text)
