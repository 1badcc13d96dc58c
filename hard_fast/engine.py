"""A batch to updated weights: the part of a run that never waits for the device.

Letters: B images of this process's share of a batch, C channels, H rows, W columns.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hard_fast.augment.base import take_rows
from hard_fast.config import RunConfig, TrainConfig
from hard_fast.optim.averaging import WeightAverage
from hard_fast.optim.learner import Learner
from hard_fast.runtime import dist, parallel
from hard_fast.runtime.compile import CompileConfig, compiled, is_compiled, use_cache
from hard_fast.runtime.dist import DistributedConfig, World
from hard_fast.step import DistillStep
from hard_fast.types import Batch, LossTerms, Noise, Outputs, Phase


class Result(NamedTuple):
    """What one step leaves behind, on the device, the mean of all processes.

    error:  [] fp32: what the schedule compares with its thresholds.
    logs:   [] fp32 each.
    """

    error: Tensor
    logs: dict[str, Tensor]


class Engine:
    """Steps the networks of a DistillStep: losses, gradients, their mean, the updates.

    Args:    num_steps, num_steps_per_epoch: of the whole run; the rates follow its steps.
    """

    def __init__(
        self,
        config: RunConfig,
        net: DistillStep,
        world: World,
        *,
        num_steps: int,
        num_steps_per_epoch: int,
    ) -> None:
        self.net, self._world, self._train = net, world, config.train
        check_batches(config.train, world.size, net.augmentor.group)
        # Optimizers take what requires gradients, and in the joint phase all that can does.
        net.learn(Phase.JOINT)
        self.taught = nn.ModuleDict({"student": net.student, "objective": net.objective})
        length = {"num_steps": num_steps, "num_steps_per_epoch": num_steps_per_epoch}
        # A CUDA graph gives gradients the same memory each time, so those that add up stay apart.
        length["keeps_gradients"] = config.train.accumulate > 1
        self.learner = Learner(config.optim, self.taught.named_parameters(), **length)
        self.augmentor_learner = None
        if config.augmentor_optim:
            parameters = net.augmentor.named_parameters()
            self.augmentor_learner = Learner(config.augmentor_optim, parameters, **length)
        self._full_rates = {"student": config.optim.lr}
        if config.augmentor_optim:
            self._full_rates["augmentor"] = config.augmentor_optim.lr
        self.average = WeightAverage(self.taught, config.average) if config.average else None
        is_fp16 = config.train.precision == "fp16"
        self._scaler = torch.amp.GradScaler(world.device.type, enabled=is_fp16)
        self.averager = dist.Averager(world, config.distributed.gradient_dtype)
        self.cache: Path | None = None
        self._not_compiled: set[Phase] = set()
        if is_compiled(config.compile, world.device):
            self.cache, self._not_compiled = use_cache(config.compile), set(Phase)
        self._ddp: nn.Module | None = None
        self._phase = Phase.STUDENT
        self._forward = self._build_forward(config.compile, config.distributed)
        by_ddp = {id(p) for p in net.student.parameters()} if self._ddp else set()
        self._averaged = {
            phase: [p for p in net.learners(phase) if id(p) not in by_ddp] for phase in Phase
        }

    def parts(self) -> dict[str, Any]:
        """What a checkpoint holds of the engine, by name; None: this run has none."""
        return {
            "learner": self.learner,
            "augmentor_learner": self.augmentor_learner,
            "average": self.average,
            "scaler": self._scaler if self._scaler.is_enabled() else None,
        }

    def rates(self, step: int) -> dict[str, float]:
        """The learning rate of each learner at a 0-based step."""
        learners = {"student": self.learner, "augmentor": self.augmentor_learner}
        return {name: learner.lr(step) for name, learner in learners.items() if learner}

    def _build_forward(
        self, compile: CompileConfig, distributed: DistributedConfig
    ) -> Callable[[Phase, Batch, Noise], LossTerms]:
        """The step as one compiled function, or its networks compiled one by one."""
        net, world = self.net, self._world
        is_shared = world.size > 1 and (distributed.overlap or distributed.teacher == "sharded")
        if compile.region == "step" and is_shared:
            raise ValueError(
                "compile.region = 'step': one graph cannot hold a network whose work processes "
                "share (distributed.overlap, distributed.teacher = 'sharded'); use 'auto'"
            )
        if compile.region == "step" or (compile.region == "auto" and not is_shared):
            return compiled(net, compile, world.device)
        student = self._alone = compiled(net.student, compile, world.device)
        if distributed.overlap and world.size > 1:
            self._ddp = parallel.overlapped(net.student, world, distributed.gradient_dtype)
            # DDP cuts the graph where it sends, so that it sends before the backward pass ends.
            self._overlapped = compiled(self._ddp, compile, world.device, whole=False)
            student = self._call_student
        routes = {"student": student}
        if net.teacher is not None:
            is_sharded = distributed.teacher == "sharded" and world.size > 1
            teacher = net.teacher if is_sharded else compiled(net.teacher, compile, world.device)
            routes["teacher"] = teacher
        net.route(**routes)
        return net

    def describe(self) -> str:
        """How the global batch comes about and what it is learned with, in one line."""
        train, world = self._train, self._world
        share = train.batch_size // world.size
        passes = f" in {train.accumulate} passes" if train.accumulate > 1 else ""
        rates = ", ".join(f"{name} {rate:g}" for name, rate in self._full_rates.items())
        return (
            f"{train.batch_size} images a step = {world.size} x {share} on "
            f"{world.device.type}{passes}; full learning rate: {rates}"
        )

    def notice(self, phase: Phase) -> str | None:
        """What to tell before a step that compiles; None before all others."""
        if phase not in self._not_compiled:
            return None
        return f"compiling the {phase.value} phase: minutes, or seconds where {self.cache} has it"

    def step(self, phase: Phase, step: int, batch: Batch, noise: Noise) -> Result:
        """Update the networks that learn in this phase, once, from one batch.

        Args:    step: 0-based number of the step in the run, for the learning rates.
        """
        self._phase = phase
        self._not_compiled.discard(phase)
        parts = list(self._parts(phase, batch, noise))
        sums = None
        for number, (part, its_noise) in enumerate(parts):
            with self._sending(is_last=number == len(parts) - 1):
                terms = self._forward(phase, part, its_noise)
                loss = terms.loss if len(parts) == 1 else terms.loss / len(parts)
                self._scaler.scale(loss).backward()
            # New memory at once: a CUDA graph writes to the old again in its next run.
            values = torch.stack([terms.error, *terms.logs.values()])
            sums = values if sums is None else sums + values
        values = sums / len(parts)
        gradients = [p.grad for p in self._averaged[phase] if p.grad is not None]
        self.averager.mean_(gradients, exact=[values])
        if phase is not Phase.AUGMENTOR:
            self.learner.update(step, self._scaler)
        if phase is not Phase.STUDENT:
            self.augmentor_learner.update(step, self._scaler)
        if self._scaler.is_enabled():
            self._scaler.update()
        if self.average is not None and phase is not Phase.AUGMENTOR:
            self.average.update()
        error, *logs = values.unbind()
        return Result(error, dict(zip(terms.logs, logs, strict=True)))

    def _parts(self, phase: Phase, batch: Batch, noise: Noise) -> Iterator[tuple[Batch, Noise]]:
        """The rows of a batch and of its noise, in the pieces that go through the networks."""
        num = len(batch.label)
        if phase is Phase.AUGMENTOR and self._train.augmentor_batch_size is not None:
            num = self._train.augmentor_batch_size // self._world.size
        size = num // self._train.accumulate
        if size == len(batch.label):
            yield batch, noise
            return
        for start in range(0, num, size):
            rows = slice(start, start + size)
            its_noise = take_rows(noise, rows.start, rows.stop, num_images=len(batch.label))
            yield Batch(batch.image[rows], batch.label[rows]), its_noise

    @property
    def _is_overlapping(self) -> bool:
        return self._ddp is not None and self._phase is not Phase.AUGMENTOR

    def _sending(self, *, is_last: bool) -> contextlib.AbstractContextManager:
        """While gradients still add up, those of an overlapped student stay here."""
        if self._is_overlapping and not is_last:
            return self._ddp.no_sync()
        return contextlib.nullcontext()

    def _call_student(self, image: Tensor) -> Outputs:
        return (self._overlapped if self._is_overlapping else self._alone)(image)


def check_batches(config: TrainConfig, num_processes: int, group: int) -> None:
    """See that batches can be cut into processes, passes and groups without a remainder.

    Args:    group: images that the augmentor mixes together.
    Raises:  ValueError that names the key which is wrong.
    """
    unit = num_processes * config.accumulate * group
    for key in ("batch_size", "augmentor_batch_size"):
        size = getattr(config, key)
        if size is not None and size % unit:
            mixed = f", groups of {group} images that augmentor mixes" if group > 1 else ""
            raise ValueError(
                f"train.{key} = {size}: must be a multiple of {unit} ({num_processes} processes, "
                f"train.accumulate = {config.accumulate}{mixed})"
            )
    if config.augmentor_batch_size and config.augmentor_batch_size > config.batch_size:
        raise ValueError(
            f"train.augmentor_batch_size = {config.augmentor_batch_size}: is the first part of "
            f"train.batch_size = {config.batch_size}, so it cannot be larger"
        )
