"""Which network learns now: schedules, and the controller that runs one without ever waiting."""

from collections import deque
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, model_validator
from torch import Tensor

from hard_fast.runtime.configfile import Config
from hard_fast.runtime.late import Late
from hard_fast.types import Phase


class StudentOnlyConfig(Config):
    """The student learns in every step: KD and training alone."""

    kind: Literal["student_only"] = "student_only"


class JointConfig(Config):
    """Student and augmentor learn in every step, from one pass (HARD-Mix)."""

    kind: Literal["joint"] = "joint"


class AlternateConfig(Config):
    """`student_steps` of the student, then `augmentor_steps` of the augmentor, and again."""

    kind: Literal["alternate"] = "alternate"
    student_steps: int = Field(default=10, ge=1)
    augmentor_steps: int = Field(default=1, ge=1)


class EpochsConfig(Config):
    """The augmentor learns for `augmentor_epochs` at the end of every `every` epochs (TST)."""

    kind: Literal["epochs"] = "epochs"
    every: int = Field(default=30, ge=2)
    augmentor_epochs: int = Field(default=5, ge=1)

    @model_validator(mode="after")
    def _student_gets_a_turn(self) -> "EpochsConfig":
        if self.augmentor_epochs >= self.every:
            raise ValueError(
                f"augmentor_epochs = {self.augmentor_epochs} leaves the student none of every = "
                f"{self.every} epochs"
            )
        return self


class ThresholdConfig(Config):
    """HARD's switching: the augmentor learns until the student errs, then the student does."""

    kind: Literal["threshold"] = "threshold"
    l_min: float = Field(default=0.05, ge=0.0)
    """The student's turn ends below this error (share of samples; squared error in regression)."""
    l_max: float = Field(default=0.40, gt=0.0)
    """The augmentor's turn ends above this error."""
    consecutive: int = Field(default=5, ge=1)
    """Steps in a row for which a threshold must be passed."""
    min_student_steps: int = Field(default=0, ge=0)
    """The student's turn lasts this many steps at least, so that an augmentor which finds nothing
    cannot take most of the run."""
    max_student_steps: int = Field(default=10_000, ge=1)
    """The student's turn ends after this many steps at the latest."""
    max_augmentor_steps: int = Field(default=200, ge=1)
    """The augmentor's turn ends after this many steps at the latest."""
    on_timeout: Literal["keep", "identity", "bank"] = "keep"
    """What an augmentor that ran out of steps becomes: it stays, restarts from the untouched one,
    or from a random one of the bank. It enters the bank only if it stays."""
    lag: int = Field(default=2, ge=0)
    """Steps between measuring an error and deciding by it, so that a GPU is never waited for."""

    @model_validator(mode="after")
    def _thresholds_are_apart(self) -> "ThresholdConfig":
        if self.l_min >= self.l_max:
            raise ValueError(f"l_min = {self.l_min} must be below l_max = {self.l_max}")
        if self.max_augmentor_steps < self.consecutive + self.lag:
            raise ValueError(
                f"max_augmentor_steps = {self.max_augmentor_steps} ends the turn before "
                f"consecutive = {self.consecutive} errors are seen at a lag of {self.lag}"
            )
        if self.min_student_steps > self.max_student_steps:
            raise ValueError(
                f"min_student_steps = {self.min_student_steps} is above max_student_steps = "
                f"{self.max_student_steps}"
            )
        return self


ScheduleConfig = Annotated[
    StudentOnlyConfig | JointConfig | AlternateConfig | EpochsConfig | ThresholdConfig,
    Field(discriminator="kind"),
]


class Switch(NamedTuple):
    """One change of phase: at which step, from what to what, why, and at which error.

    has_timed_out: whether a maximum length ended the phase rather than its threshold.
    """

    step: int
    before: Phase
    after: Phase
    reason: str
    error: float | None
    has_timed_out: bool = False


class PhaseController:
    """Says which phase each step has. Every rank decides alike: it is fed rank-averaged errors.

    Errors are read `lag` steps after they were measured, and those of an ended phase are dropped,
    so the decision costs no wait and does not depend on timing.
    """

    def __init__(self, config: ScheduleConfig, num_steps_per_epoch: int = 1) -> None:
        self.config = config
        self._num_steps_per_epoch = num_steps_per_epoch
        self.phase = Phase.JOINT if isinstance(config, JointConfig) else Phase.STUDENT
        self.phase_step = 0
        self._passed = 0
        self._late: deque[Late | float] = deque()

    def observe(self, step: int, error: Tensor) -> Switch | None:
        """Take the error of step `step` (0-based) and return the switch that follows it, if any.

        Args:    error: [] fp32 on any device, already averaged over the ranks.
        """
        self.phase_step += 1
        match self.config:
            case ThresholdConfig():
                switch = self._by_threshold(step, error)
            case AlternateConfig(student_steps=student, augmentor_steps=augmentor):
                length = student if self.phase is Phase.STUDENT else augmentor
                switch = self._after(step, self.phase_step >= length, f"{length} steps done")
            case EpochsConfig(every=every, augmentor_epochs=share):
                epoch = (step + 1) // self._num_steps_per_epoch
                due = Phase.AUGMENTOR if epoch % every >= every - share else Phase.STUDENT
                switch = self._after(step, due is not self.phase, f"epoch {epoch} begins")
            case _:
                switch = None
        if switch:
            self.phase, self.phase_step, self._passed = switch.after, 0, 0
            self._late.clear()
        return switch

    def state_dict(self) -> dict[str, Any]:
        """Phase, counters and the errors not yet acted on, as plain values."""
        return {
            "phase": self.phase.value,
            "phase_step": self.phase_step,
            "passed": self._passed,
            "late": [_number(error) for error in self._late],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""
        self.phase = Phase(state["phase"])
        self.phase_step, self._passed = state["phase_step"], state["passed"]
        self._late = deque(state["late"])

    def _after(self, step: int, is_due: bool, reason: str) -> Switch | None:
        return Switch(step, self.phase, self._other(), reason, None) if is_due else None

    def _by_threshold(self, step: int, error: Tensor) -> Switch | None:
        config = self.config
        is_student = self.phase is Phase.STUDENT
        self._late.append(Late(error))
        seen = None
        if len(self._late) > config.lag:
            seen = _number(self._late.popleft())
            has_passed = seen < config.l_min if is_student else seen > config.l_max
            self._passed = self._passed + 1 if has_passed else 0
        may_end = not is_student or self.phase_step >= config.min_student_steps
        if may_end and self._passed >= config.consecutive:
            bound = (
                f"below l_min {config.l_min:g}" if is_student else f"above l_max {config.l_max:g}"
            )
            reason = f"error {seen:.3g} {bound} for {config.consecutive} steps"
            return Switch(step, self.phase, self._other(), reason, seen)
        longest = config.max_student_steps if is_student else config.max_augmentor_steps
        if self.phase_step >= longest:
            bound = f"l_min {config.l_min:g}" if is_student else f"l_max {config.l_max:g}"
            at = "no error yet" if seen is None else f"error {seen:.3g}"
            reason = f"{bound} not reached in {longest} steps ({at})"
            return Switch(step, self.phase, self._other(), reason, seen, has_timed_out=True)
        return None

    def _other(self) -> Phase:
        return Phase.AUGMENTOR if self.phase is Phase.STUDENT else Phase.STUDENT


def _number(error: Late | float) -> float:
    return error if isinstance(error, float) else float(error.value())


def advice(switch: Switch, teacher_change: float | None) -> str | None:
    """What a person should know about a switch, in one line; None if all went as intended.

    Args:    teacher_change: share of augmented images on which the teacher left its clean answer,
                 over the augmentor's phase that ended; None where unknown.
    """
    if switch.has_timed_out and switch.before is Phase.STUDENT:
        return f"{switch.reason}; the student may be too small, or learn too slowly, for the bank"
    changed = "its answers on augmented images are not known"
    if teacher_change is not None:
        changed = f"it changes {teacher_change:.0%} of its answers on augmented images"
    if switch.has_timed_out:
        return (
            f"{switch.reason}: the student has caught up with all that the augmentor finds, or the "
            f"teacher is not invariant to it ({changed})"
        )
    if teacher_change is not None and teacher_change > 0.3:
        return f"the teacher is not invariant to the augmentor and may mislead: {changed}"
    return None
