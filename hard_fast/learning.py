"""What one batch changes in a run: its networks, whose turn it is, and the augmentors it keeps."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hard_fast.augment.base import Augmentor
from hard_fast.bank import AugmentorBank
from hard_fast.checkpoint import Stateful
from hard_fast.config import RunConfig
from hard_fast.draws import Draws
from hard_fast.engine import Engine, Result
from hard_fast.metrics import Meter
from hard_fast.phases import PhaseController, Switch
from hard_fast.rescue import Rescue
from hard_fast.runtime.dist import World
from hard_fast.step import DistillStep
from hard_fast.types import Batch, Noise, Phase


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


class Learning:
    """Steps the networks of a run and gives them their turns; where batches come from, and what
    is told or saved on the way, is for others.

    Args:    num_steps, num_steps_per_epoch: of the whole run.
             make_bank: asked for a bank where the augmentor learns.
             warn: tells a person.
    """

    def __init__(
        self,
        config: RunConfig,
        net: DistillStep,
        world: World,
        *,
        num_steps: int,
        num_steps_per_epoch: int,
        make_bank: Callable[[Augmentor], AugmentorBank],
        warn: Callable[[str], None],
    ) -> None:
        self.net, self._schedule = net, config.schedule
        per_epoch = num_steps_per_epoch
        self.engine = Engine(config, net, world, num_steps=num_steps, num_steps_per_epoch=per_epoch)
        # After the engine, which lets everything learn that can.
        self.bank = make_bank(net.augmentor) if config.augmentor_optim else None
        self.controller = PhaseController(config.schedule, per_epoch)
        self.rescue = Rescue(self.engine, self.bank, world, warn)
        self.phase_meter = Meter()
        self._draws = Draws(net, self.bank, config.seed, world)

    def begin(self) -> None:
        """Keep the untouched augmentor: a new run begins."""
        if self.bank is not None:
            self.bank.save()

    def draw(self, step: int, batch: Batch) -> Noise:
        """All that is random in a 0-based step."""
        return self._draws.draw(step, self.controller.phase, batch.image.shape)

    def learn(self, step: int, batch: Batch, noise: Noise) -> tuple[Result, Switch | None]:
        """Update the networks whose turn it is, once; what that gave, and the switch it led to.

        A switch is to be followed by `end_turn`.
        """
        phase = self.controller.phase
        result = self.engine.step(phase, step, batch, noise)
        if phase is Phase.AUGMENTOR:
            self.phase_meter.add(phase, result.logs, result.is_skipped)
        return result, self.controller.observe(step, result.error)

    def end_turn(self, step: int, switch: Switch) -> float | None:
        """Save or reset the augmentor whose turn ended, and let the next network learn.

        Args:    step: how many steps the run has made.
        Returns: the share of its images, over its turn, on which the teacher changed its mind; None
                 where that is not known.
        """
        change = None
        if switch.before is Phase.AUGMENTOR:
            ended = self.phase_meter.take().means()["augmentor"]
            change = ended["teacher_change"] if "teacher_change" in ended else None
            then = self._schedule.on_timeout if switch.has_timed_out else "keep"
            self.rescue.end_turn(step, then)
        self.net.learn(switch.after)
        return change

    def parts(self) -> dict[str, Stateful]:
        """What a checkpoint holds of it, by name."""
        own: dict[str, Any] = {"student": self.net.student, "objective": self.net.objective}
        own |= {"augmentor": self.net.augmentor, "bank": self.bank}
        own |= {"controller": self.controller, "phase_meter": self.phase_meter}
        own |= self.engine.parts()
        return {name: part for name, part in own.items() if part is not None}
