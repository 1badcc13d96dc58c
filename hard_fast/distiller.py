"""Distillation in a loop of one's own: one's own modules and batches, and no file.

Letters: B images of a batch, C channels, H rows, W columns, K classes.
"""

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from hard_fast.batchnorm import gather_statistics, restore_statistics
from hard_fast.build import Role, assemble
from hard_fast.checkpoint import restore
from hard_fast.guard import Diverged
from hard_fast.learning import Learning, Report
from hard_fast.models.zoo import Dressed, NetworkConfig
from hard_fast.objectives import reads_labels
from hard_fast.own_run import (
    WHO,
    HeldBank,
    Network,
    OwnRun,
    as_batch,
    as_network,
    check_batch,
    check_values,
    count_classes,
    dress,
    read_tables,
)
from hard_fast.phases import advice
from hard_fast.rundir import agree_on
from hard_fast.runtime import dist, pulse
from hard_fast.runtime.seed import default_generator
from hard_fast.types import Batch, Phase

__all__ = ["Distiller", "Diverged", "Network", "Report"]

_log = logging.getLogger(__name__)
_STATE = {"fingerprint", "batch", "steps_per_epoch", "steps_done", "statistics", "parts"}


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Whoever does not come while it lasts is named in one line, instead of torch's own words."""
    try:
        yield
    except RuntimeError as error:
        if (lost := pulse.explained(error)) is not None:
            raise lost from None
        raise


class Distiller:
    """Teaches a student by the steps of `hard_fast.train`, one batch of the caller's at a time.

    The tables are those of a configuration's file, with the same keys, defaults and messages:
    `objective`, `optim`, and where wanted `augmentor`, `augmentor_optim`, `schedule`, `bank`,
    `average`, `guard`, `compile`, `distributed`, `seed`, and `train` with device, precision,
    accumulate, augmentor_batch_size. Given the same batches it is the run of `hard_fast.train`, bit
    for bit. The caller's random numbers stay as they would be without it.

    Under torchrun, or in a process group that is there already, each process gives its share of a
    batch, the same number of images in each, and all of them call every method. Who does not come
    is named after distributed.timeout_s; in a group of the caller's own its own time-out holds.

    Args:    student: learns in place, on the device of the run. Modules of it that are in eval mode
                 while it is in training mode stay so: BatchNorm that is frozen.
             teacher: stays as it is, a copy teaches, made in the first step; several answer with
                 their mean probability; None where the objective needs none.
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
        self._teachers = [as_network(one, "teacher") for one in given if one is not None]
        self._config = read_tables(self._student, self._teachers, steps, tables)
        per_epoch = steps if steps_per_epoch is None else steps_per_epoch
        if not isinstance(per_epoch, int) or per_epoch < 1:
            raise ValueError(f"{WHO}: steps_per_epoch = {per_epoch}: must be whole, 1 or more")
        self._num_steps, self._per_epoch = steps, per_epoch
        net = self._student.module
        inner = net.named_modules() if net.training else ()
        self._resting = {name for name, module in inner if not module.training}
        self._world = dist.join(self._config.train.device, self._config.distributed.timeout_s)
        self._learning: Learning | None = None
        self._num_classes = 0
        self._is_checked = self._is_averaged = False
        self.steps_done = 0

    @_explained()
    def step(self, image: Tensor, label: Tensor | None = None) -> Report:
        """Update the network whose turn it is, once.

        Args:    image: [B,C,H,W] uint8, or float in [0,1]: not normalized. On any device.
                 label: [B] whole numbers, -1 = unlabelled; None: all are, where no loss reads them.
        Raises:  ValueError, one line, for a batch that does not fit, or after the last step;
                 Diverged where numbers are no longer finite, so that only a state that was saved to
                 a file can help.
        """
        self._refuse_average()
        batch = self._batch(image, label)
        if self.steps_done == self._num_steps:
            raise ValueError(f"{WHO}: steps = {self._num_steps}: all of them are done")
        if label is None and reads_labels(self._config.objective):
            raise ValueError(f"{WHO}: label: the objective reads labels; give them, -1 for none")
        if not self._is_checked:
            check_values(image, label, count_classes(self._student, batch.image.shape[1:]))
        if self._learning is None:
            self._start(self._config.fitted(len(image) * self._world.size, batch.image.shape[1:]))
        self._is_checked = True
        learning, step, phase = self._learning, self.steps_done, self._learning.controller.phase
        pulse.beat(step * len(Phase) + list(Phase).index(phase), 0)
        is_turn = phase is not Phase.AUGMENTOR
        if any(module.training != (learns and is_turn) for module, learns in self._modes):
            # Whoever looked at the student left some of it in the other mode.
            learning.net.learn(phase)
        with self._apart():
            noise = learning.draw(step, batch)
            pulse.agreed(f"step {step} ({phase.value})")
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
                f"{WHO}: step {step}: {back.why}; load a state saved before to a file, or begin "
                "anew at a lower learning rate; look for NaN in the teacher's weights and the data"
            )
        if is_last:
            # BatchNorm statistics differ between ranks; the result holds their mean.
            dist.mean_(learning.engine.statistics())
            learning.net.learn(Phase.STUDENT)

    @_explained()
    def state_dict(self) -> dict[str, Any]:
        """All that goes on from here, for torch.save; as a module's, it holds the live tensors.

        To go back to it, save it to a file: the next step changes what it holds.

        Raises:  ValueError before the first step.
        """
        if self._learning is None:
            raise ValueError(f"{WHO}: there is nothing to save before the first step")
        self._refuse_average()
        pulse.at(f"step {self.steps_done} (state_dict)")
        config = self._config
        return {
            "fingerprint": config.fingerprint,
            "batch": [config.train.batch_size, config.data.image_shape],
            "steps_per_epoch": self._per_epoch,
            "steps_done": self.steps_done,
            "statistics": gather_statistics(self._learning.engine.statistics()),
            "parts": {name: part.state_dict() for name, part in self._learning.parts().items()},
        }

    @_explained()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state, with the batches that would have come next.

        The teacher is no part of it: that its weights are the same is for the caller to see to.

        Raises:  ValueError, one line, if it is not one of a Distiller with the same settings.
        """
        self._refuse_average()
        if missing := _STATE - (state.keys() if isinstance(state, Mapping) else set()):
            told = ", ".join(sorted(missing))
            raise ValueError(f"{WHO}: this is not what state_dict() returned (without {told})")
        fitted = self._config.fitted(*state["batch"])
        if fitted.fingerprint != state["fingerprint"]:
            raise ValueError(f"{WHO}: the state was saved with other networks or settings")
        if state["steps_per_epoch"] != self._per_epoch:
            told = f"saved with {state['steps_per_epoch']}, and here it is {self._per_epoch}"
            raise ValueError(f"{WHO}: steps_per_epoch: the state was {told}")
        if self._learning is not None and fitted != self._config:
            told = "the state was saved with batches of another shape than this Distiller has seen"
            raise ValueError(f"{WHO}: {told}; load it into a new one")
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
        self._refuse_average()
        with self._learning.engine.average.applied():
            self._is_averaged = True
            try:
                yield
            finally:
                self._is_averaged = False

    def _refuse_average(self) -> None:
        if self._is_averaged:
            raise ValueError(f"{WHO}: inside averaged() the student only shows its average; leave")

    def _batch(self, image: Tensor, label: Tensor | None) -> Batch:
        """The batch on the device, if it is like the first."""
        check_batch(image, label)
        size = [len(image) * self._world.size, *image.shape[1:]]
        wanted = [self._config.train.batch_size, *self._config.data.image_shape]
        if self._learning is not None and size != wanted:
            num = wanted[0] // self._world.size
            raise ValueError(
                f"{WHO}: image: {list(image.shape)}, and the first batch was {[num, *wanted[1:]]}; "
                "drop_last=True makes a DataLoader leave out what does not fill a batch"
            )
        return as_batch(image, label, self._world.device)

    def _start(self, config: OwnRun) -> None:
        """Build all that the first batch decides."""
        self._config, world = config, self._world
        pulse.at("the first step")
        local = [config.train.batch_size // world.size, *config.data.image_shape]
        shapes = dist.gather_objects(local)
        if any(shape != local for shape in shapes):
            told = ", ".join(f"{shape} on rank {rank}" for rank, shape in enumerate(shapes))
            raise ValueError(f"{WHO}: image: {told}; every process must give as many")
        agree_on(config)
        shape = torch.Size(config.data.image_shape)
        with self._apart():
            self._num_classes = count_classes(self._student, shape)
            net = assemble(config, self._make, shape, self._num_classes, world)
            net.resting = [self._student.module.get_submodule(name) for name in self._resting]
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
        # From now on their copies teach.
        self._teachers = []
        net.learn(Phase.STUDENT)
        # Its own train() may leave some of it in eval mode too.
        self._modes = [(module, module.training) for module in self._student.module.modules()]
        net.learn(learning.controller.phase)
        learning.begin()

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
