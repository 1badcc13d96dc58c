"""Learning rates over a run. The one place where epochs become steps."""

import enum
import logging
import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator
from torch.optim import Optimizer

from hard_fast.runtime.configfile import Config

_Epochs = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_log = logging.getLogger(__name__)


class ConstantRateConfig(Config):
    """The full learning rate throughout, after an optional linear warm-up."""

    kind: Literal["constant"] = "constant"
    warmup_epochs: _Epochs = 0.0  # epochs


class CosineRateConfig(Config):
    """Half a cosine from the full learning rate down to a share of it at the end of the run."""

    kind: Literal["cosine"] = "cosine"
    warmup_epochs: _Epochs = 0.0  # epochs
    final: float = Field(default=0.0, ge=0, le=1)  # share of the full rate


class StepsRateConfig(Config):
    """The full learning rate, and a share of it less from each of some epochs on."""

    kind: Literal["steps"] = "steps"
    warmup_epochs: _Epochs = 0.0  # epochs
    epochs: list[_Epochs] = Field(min_length=1)  # of the run, at which the rate drops
    factor: float = Field(default=0.1, gt=0, lt=1)  # of the rate, at each of them


class PlateauRateConfig(Config):
    """A lower rate, from the best weights, each time the validation score stops getting better.

    Source:  HARD (arXiv 2305.14890) App. A and Nix et al. 2022; the defaults are theirs.
    """

    kind: Literal["plateau"] = "plateau"
    warmup_epochs: _Epochs = 20.0  # epochs
    factor: float = Field(default=0.8, gt=0, lt=1)  # of the rate, at each decay
    patience: int = Field(default=20, ge=1)  # evaluations in a row without a better score
    max_decays: int = Field(default=5, ge=1)  # the last of them ends the run


class SwaRateConfig(Config):
    """The full learning rate, a slope down, and a tail at a rate that still explores: SWA's.

    The tail's rate is constant, or falls along a line in each cycle and jumps back. The weights at
    the ends of cycles are for [average] to gather.
    """

    kind: Literal["swa"] = "swa"
    warmup_epochs: _Epochs = 0.0  # epochs
    start: float = Field(default=0.5, gt=0, lt=1)  # share of the run, where the tail begins
    high: float = Field(default=0.5, gt=0, le=1)  # share of the full rate, at a cycle's start
    # Share of the full rate, at the end of a cycle; None: the tail is constant, at `high`.
    low: Annotated[float, Field(gt=0, le=1)] | None = None
    cycle_epochs: float = Field(default=1.0, gt=0, allow_inf_nan=False)  # epochs

    @model_validator(mode="after")
    def _falls(self) -> "SwaRateConfig":
        if self.low is not None and self.low > self.high:
            raise ValueError(f"low = {self.low}: is above high = {self.high}")
        return self


RateConfig = Annotated[
    ConstantRateConfig | CosineRateConfig | StepsRateConfig | PlateauRateConfig | SwaRateConfig,
    Field(discriminator="kind"),
]


class Verdict(enum.Enum):
    """What a validation score means for the run.

    RESTORE_BEST and STOP come only after a NEW_BEST, so there are weights to go back to. The
    papers restore the weights and leave the optimizer's moments as they are. After STOP the best
    weights are the result.
    """

    GO_ON = "go_on"
    NEW_BEST = "new_best"
    RESTORE_BEST = "restore_best"
    STOP = "stop"


class RateSchedule:
    """A multiplier of the learning rate per step, and the best validation score so far.

    This class itself is the constant rate. The warm-up is linear per step, so that step 0 already
    learns; the papers raise the rate once per epoch, to the values reached here at epoch ends.
    """

    needs_score: ClassVar[bool] = False  # whether the rate depends on `observe`

    def __init__(self, warmup_epochs: float, num_steps: int, num_steps_per_epoch: int) -> None:
        assert num_steps >= 1 and num_steps_per_epoch >= 1
        self.best = -math.inf
        self._num_steps = num_steps
        self._num_warmup_steps = round(warmup_epochs * num_steps_per_epoch)
        if self._num_warmup_steps > num_steps:
            _log.warning(
                "rate.warmup_epochs = %g: the run has only %g epochs, so it never reaches its full "
                "rate",
                warmup_epochs,
                num_steps / num_steps_per_epoch,
            )

    def factor(self, step: int) -> float:
        """The multiplier of the learning rate for a 0-based step, in (0, 1] before the run ends."""
        if step < self._num_warmup_steps:
            return (step + 1) / self._num_warmup_steps * self._decay(step)
        return self._decay(step)

    def observe(self, score: float) -> Verdict:
        """Take in a validation score, higher is better, and say what follows from it.

        A score is better only if it is greater than all before; NaN never is.
        """
        if score > self.best:
            self.best = float(score)
            return Verdict.NEW_BEST
        return Verdict.GO_ON

    def state_dict(self) -> dict[str, float]:
        """What the scores so far amount to, as plain numbers."""
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue from saved numbers."""
        self.best = float(state["best"])

    def _decay(self, step: int) -> float:
        return 1.0


class CosineRate(RateSchedule):
    """Half a cosine over the steps after the warm-up; `final` would be reached one step after."""

    def __init__(self, config: CosineRateConfig, num_steps: int, num_steps_per_epoch: int) -> None:
        super().__init__(config.warmup_epochs, num_steps, num_steps_per_epoch)
        self._final = config.final

    def _decay(self, step: int) -> float:
        length = max(1, self._num_steps - self._num_warmup_steps)
        done = min(max(0, step - self._num_warmup_steps) / length, 1.0)
        return self._final + (1.0 - self._final) * 0.5 * (1.0 + math.cos(math.pi * done))


class StepsRate(RateSchedule):
    """A lower rate from the first step of each given epoch on."""

    def __init__(self, config: StepsRateConfig, num_steps: int, num_steps_per_epoch: int) -> None:
        super().__init__(config.warmup_epochs, num_steps, num_steps_per_epoch)
        self._drops = [round(epoch * num_steps_per_epoch) for epoch in config.epochs]
        self._factor = config.factor

    def _decay(self, step: int) -> float:
        return self._factor ** sum(drop <= step for drop in self._drops)


class SwaRate(RateSchedule):
    """Full for half of the time before the tail, at the tail's rate from nine tenths of it on.

    Source:  Izmailov et al. 2018, arXiv:1803.05407, section 3.1: in step i = 1, 2 ... of the tail
             (1 - t) high + t low, t = (mod(i - 1, c) + 1) / c. Before the tail as in
             timgaripov/swa@090b95e `train.py`, per step, where that code counts epochs.
    """

    def __init__(self, config: SwaRateConfig, num_steps: int, num_steps_per_epoch: int) -> None:
        super().__init__(config.warmup_epochs, num_steps, num_steps_per_epoch)
        self._config, self._first = config, int(config.start * num_steps)
        self._cycle = max(1, round(config.cycle_epochs * num_steps_per_epoch))

    def _decay(self, step: int) -> float:
        high, low = self._config.high, self._config.low
        if step < self._first:
            fallen = (step / self._first - 0.5) / 0.4
            return 1.0 - (1.0 - high) * min(1.0, max(0.0, fallen))
        if low is None:
            return high
        share = ((step - self._first) % self._cycle + 1) / self._cycle
        return (1.0 - share) * high + share * low


class PlateauRate(RateSchedule):
    """Decay and go back to the best weights after `patience` evaluations without a better score.

    The decay number `max_decays` is the STOP, so the lowest rate that still trains has one decay
    less. Evaluations during the warm-up count like any other; those before the first score that
    is a number do not.

    Source:  HARD (arXiv 2305.14890) App. A: "stop after five decays", read as the loop that the
             authors use, which ends with the fifth round of patience. Their lower bound of 1e-5 on
             the rate is left out: five decays of 3e-4 do not reach it.
    """

    needs_score = True

    def __init__(self, config: PlateauRateConfig, num_steps: int, num_steps_per_epoch: int) -> None:
        super().__init__(config.warmup_epochs, num_steps, num_steps_per_epoch)
        self._config = config
        self._num_decays = 0
        self._num_flat = 0

    def observe(self, score: float) -> Verdict:
        """Take in a validation score, higher is better; once it said STOP it always does."""
        if self._num_decays == self._config.max_decays:
            return Verdict.STOP
        verdict = super().observe(score)
        if verdict is Verdict.NEW_BEST:
            self._num_flat = 0
            return verdict
        if self.best == -math.inf:
            return Verdict.GO_ON
        self._num_flat += 1
        if self._num_flat < self._config.patience:
            return Verdict.GO_ON
        self._num_flat = 0
        self._num_decays += 1
        is_last = self._num_decays == self._config.max_decays
        return Verdict.STOP if is_last else Verdict.RESTORE_BEST

    def state_dict(self) -> dict[str, float]:
        """What the scores so far amount to, as plain numbers."""
        return super().state_dict() | {"num_decays": self._num_decays, "num_flat": self._num_flat}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue from saved numbers."""
        super().load_state_dict(state)
        self._num_decays, self._num_flat = int(state["num_decays"]), int(state["num_flat"])

    def _decay(self, step: int) -> float:
        return self._config.factor**self._num_decays


def build_rate(config: RateConfig, *, num_steps: int, num_steps_per_epoch: int) -> RateSchedule:
    """The learning rate's course for a run of `num_steps` steps.

    Warns if the warm-up is longer than the run.
    """
    match config.kind:
        case "constant":
            return RateSchedule(config.warmup_epochs, num_steps, num_steps_per_epoch)
        case "cosine":
            return CosineRate(config, num_steps, num_steps_per_epoch)
        case "steps":
            return StepsRate(config, num_steps, num_steps_per_epoch)
        case "plateau":
            return PlateauRate(config, num_steps, num_steps_per_epoch)
        case "swa":
            return SwaRate(config, num_steps, num_steps_per_epoch)


def set_rate(optimizer: Optimizer, lr: float) -> None:
    """Give every parameter group this learning rate times its factor, from its next step on."""
    for group in optimizer.param_groups:
        group["lr"] = lr * (group["lr_factor"] if "lr_factor" in group else 1.0)
