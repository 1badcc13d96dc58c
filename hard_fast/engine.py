"""A batch to updated weights: the part of a run that never waits for the device.

Letters: B images of this process's share of a batch, C channels, H rows, W columns.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hard_fast.augment.base import take_rows
from hard_fast.config import RunConfig
from hard_fast.data.growing import MOST_SIZES
from hard_fast.guard import Guard
from hard_fast.optim.averaging import WeightAverage
from hard_fast.optim.learner import Learner
from hard_fast.runtime import dist, parallel
from hard_fast.runtime.compile import (
    CUDA_GRAPH_MODES,
    CompileConfig,
    allow_graphs,
    compiled,
    is_compiled,
    use_cache,
)
from hard_fast.runtime.cycle import Cycle, Held
from hard_fast.runtime.dist import DistributedConfig, World
from hard_fast.runtime.profile import named
from hard_fast.runtime.undo import Undo
from hard_fast.step import DistillStep
from hard_fast.train_config import check_batches
from hard_fast.types import Batch, LossTerms, Noise, Outputs, Phase


class Result(NamedTuple):
    """What one step leaves behind, on the device, the mean of all processes.

    error:  [] fp32: what the schedule compares with its thresholds; NaN where nothing was learned.
    logs:   [] fp32 each.
    is_skipped: [] bool: whether a gradient or the loss was not finite, so that nothing was learned.
    """

    error: Tensor
    logs: dict[str, Tensor]
    is_skipped: Tensor


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
        self._length = {"num_steps": num_steps, "num_steps_per_epoch": num_steps_per_epoch}
        # A forward pass with NaN in it leaves BatchNorm's statistics NaN for ever.
        self._undo = Undo(_statistics(self.taught) + _statistics(net.augmentor))
        self._held = [module for module in net.modules() if isinstance(module, Held)]
        # A run that is resumed at its end uses what its last step did.
        self._advance(num_steps - 1)
        length = dict(self._length)
        # A CUDA graph gives gradients the same memory each time, so those that add up stay apart.
        has_graphs = config.compile.mode in CUDA_GRAPH_MODES
        length["keeps_gradients"] = config.train.accumulate > 1 and has_graphs
        self.learner = Learner(config.optim, self.taught.named_parameters(), **length)
        self.augmentor_learner = None
        if config.augmentor_optim:
            if config.augmentor_optim.update_every != 1:
                raise ValueError("augmentor_optim.update_every: must be 1, an update in each step")
            parameters = net.augmentor.named_parameters()
            self.augmentor_learner = Learner(config.augmentor_optim, parameters, **length)
        self._update_every = config.optim.update_every
        self._full_rates = {"student": config.optim.lr}
        if config.augmentor_optim:
            self._full_rates["augmentor"] = config.augmentor_optim.lr
        self.average = None
        if config.average:
            self.average = WeightAverage(self.taught, config.average, **self._length)
        is_fp16 = config.train.precision == "fp16"
        self._scaler = torch.amp.GradScaler(world.device.type, enabled=is_fp16)
        self.guard = Guard(config.guard, is_fp16=is_fp16)
        self.averager = dist.Averager(world, config.distributed.gradient_dtype)
        self.cache: Path | None = None
        self._stepped: set[tuple[Phase, int]] = set()
        if is_compiled(config.compile, world.device):
            self.cache = use_cache(config.compile)
            if config.train.resolution:
                allow_graphs(len(Phase) * MOST_SIZES)
        self._ddp: nn.Module | None = None
        self._routes: dict[Phase, dict[str, Callable[[Tensor], Outputs]]] = {}
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
            "guard": self.guard,
        }

    def statistics(self) -> list[Tensor]:
        """BatchNorm's running statistics and their averages, in which processes differ."""
        own = _statistics(self.taught)
        averages = self.average.of(own) if self.average else []
        return own + averages + _statistics(self.net.augmentor)

    def learners(self) -> dict[str, Learner]:
        """What steps each network that learns, by the network's name."""
        both = {"student": self.learner, "augmentor": self.augmentor_learner}
        return {name: learner for name, learner in both.items() if learner}

    def num_images(self, phase: Phase) -> int:
        """Images that a step of this phase takes, over all processes."""
        smaller = self._train.augmentor_batch_size
        is_smaller = phase is Phase.AUGMENTOR and smaller is not None
        return smaller if is_smaller else self._train.batch_size

    def rates(self, step: int) -> dict[str, float]:
        """The learning rate of each learner at a 0-based step."""
        return {name: learner.lr(step) for name, learner in self.learners().items()}

    def _build_forward(
        self, compile: CompileConfig, distributed: DistributedConfig
    ) -> Callable[[Phase, Batch, Noise], LossTerms]:
        """The step as one compiled function, or its networks compiled one by one."""
        net, world = self.net, self._world
        is_sharded = distributed.teacher == "sharded" and world.size > 1
        is_overlapping = distributed.overlap and world.size > 1
        by_network = compile.region == "networks" or is_sharded or is_overlapping
        if compile.region == "step" and by_network:
            raise ValueError(
                "compile.region = 'step': one graph cannot hold a network whose work processes "
                "share (distributed.overlap, distributed.teacher = 'sharded'); use 'auto'"
            )
        if not is_compiled(compile, world.device):
            pass
        elif distributed.sync_batchnorm and world.size > 1:
            raise ValueError(
                "distributed.sync_batchnorm = true: cannot be compiled; set compile.mode = 'off'"
            )
        elif by_network and compile.mode in CUDA_GRAPH_MODES:
            raise ValueError(
                f"compile.mode = {compile.mode!r}: its CUDA graphs need the whole step as one "
                "graph, and here networks are compiled one by one; use 'default'"
            )
        if not by_network:
            return compiled(net, compile, world.device)
        student = learning = compiled(net.student, compile, world.device)
        if is_overlapping:
            self._ddp = parallel.overlapped(net.student, world, distributed.gradient_dtype)
            # DDP cuts the graph where it sends, so that it sends before the backward pass ends.
            learning = compiled(self._ddp, compile, world.device, whole=False)
        teacher: dict[str, Callable[[Tensor], Outputs]] = {}
        if net.teacher is not None and not is_sharded:
            teacher["teacher"] = compiled(net.teacher, compile, world.device)
        # DDP would wait for the gradients of a student that is idle.
        self._routes = {phase: {"student": learning, **teacher} for phase in Phase}
        self._routes[Phase.AUGMENTOR]["student"] = student
        return net

    def describe(self) -> str:
        """How the global batch comes about and what it is learned with, in one line."""
        train, world = self._train, self._world
        share = train.batch_size // world.size
        passes = f" in {train.accumulate} passes" if train.accumulate > 1 else ""
        every = self._update_every
        if isinstance(every, Cycle):
            passes += f", an update after {every.ends:g} to {every.peak:g} steps"
        elif every > 1:
            passes += f", an update after {every} steps"
        rates = ", ".join(f"{name} {rate:g}" for name, rate in self._full_rates.items())
        return (
            f"{train.batch_size} images a step = {world.size} x {share} on "
            f"{world.device.type}{passes}; full learning rate: {rates}"
        )

    def notice(self, phase: Phase, size_px: int) -> str | None:
        """What to tell before a step that compiles; None before all others.

        Args:    size_px: of the step's pictures.
        """
        if self.cache is None or (phase, size_px) in self._stepped:
            return None
        what = f"{phase.value} phase at {size_px} px"
        return f"compiling the {what}: minutes, or seconds where {self.cache} has it"

    def step(self, phase: Phase, step: int, batch: Batch, noise: Noise) -> Result:
        """Update the networks that learn in this phase, once, from one batch.

        Args:    step: 0-based number of the step in the run, for the learning rates.
        """
        self._stepped.add((phase, batch.image.shape[3]))
        self._advance(step)
        if self._routes:
            self.net.route(**self._routes[phase])
        parts = list(self._parts(phase, batch, noise))
        self._undo.remember()
        sums = None
        for number, (part, its_noise) in enumerate(parts):
            with self._sending(phase, is_last=number == len(parts) - 1):
                terms = self.gradients(phase, part, its_noise, len(parts))
            # New memory at once: a CUDA graph writes to the old again in its next run.
            values = torch.stack([terms.error, *terms.logs.values()])
            sums = values if sums is None else sums + values
        values = sums / len(parts)
        gradients = [p.grad for p in self._averaged[phase] if p.grad is not None]
        with named("averaging"):
            self.averager.mean_(gradients, exact=[values])
        error, *rest = values.unbind()
        logs = dict(zip(terms.logs, rest, strict=True))
        with named("optimizer"):
            is_skipped = self._update(phase, step, logs["loss"])
        self._undo.go_back(is_skipped)
        if self._scaler.is_enabled():
            self._scaler.update()
        if self.average is not None and phase is not Phase.AUGMENTOR:
            with named("averaging weights"):
                self.average.update(step)
        self.guard.observe(step, phase, is_skipped, logs)
        return Result(error.masked_fill(is_skipped, torch.nan), logs, is_skipped)

    def gradients(self, phase: Phase, batch: Batch, noise: Noise, num_passes: int = 1) -> LossTerms:
        """One pass forth and back: its share of a step's gradients adds up, nothing is updated."""
        with named("forward"):
            terms = self._forward(phase, batch, noise)
        loss = terms.loss if num_passes == 1 else terms.loss / num_passes
        with named("backward"):
            self._scaler.scale(loss).backward()
        return terms

    def _update(self, phase: Phase, step: int, loss: Tensor) -> Tensor:
        """Let what learns descend; [] bool, whether a gradient or the loss was not finite."""
        is_skipped = torch.zeros_like(loss, dtype=torch.bool)
        if phase is not Phase.AUGMENTOR:
            is_skipped |= self.learner.update(step, self._scaler, loss)
        elif step + 1 == self._length["num_steps"]:
            self.learner.finish(step)
        if phase is not Phase.STUDENT:
            is_skipped |= self.augmentor_learner.update(step, self._scaler, loss)
        return is_skipped

    def _advance(self, step: int) -> None:
        """Set all that changes over a run to a 0-based step."""
        for module in self._held:
            module.advance(step, **self._length)

    def _parts(self, phase: Phase, batch: Batch, noise: Noise) -> Iterator[tuple[Batch, Noise]]:
        """The rows of a batch and of its noise, in the pieces that go through the networks."""
        num = self.num_images(phase) // self._world.size
        size = num // self._train.accumulate
        if size == len(batch.label):
            yield batch, noise
            return
        for start in range(0, num, size):
            rows = slice(start, start + size)
            its_noise = take_rows(noise, rows.start, rows.stop, num_images=len(batch.label))
            yield Batch(batch.image[rows], batch.label[rows]), its_noise

    def _sending(self, phase: Phase, *, is_last: bool) -> contextlib.AbstractContextManager:
        """While gradients still add up, those of an overlapped student stay here."""
        if self._ddp is None or phase is Phase.AUGMENTOR or is_last:
            return contextlib.nullcontext()
        return self._ddp.no_sync()


def _statistics(network: nn.Module) -> list[Tensor]:
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    return [b for norm in norms for b in norm.buffers() if b.is_floating_point()]
