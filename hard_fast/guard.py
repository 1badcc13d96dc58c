"""What a run does about numbers that are not finite, and about an augmentor that is lost."""

from collections import deque
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from hard_fast.runtime.configfile import Config
from hard_fast.runtime.late import Late
from hard_fast.types import Phase

# Steps between a verdict and acting on it, so that the device is never waited for.
_LAG = 2
# Below this share of what the originals have, nothing is left of an augmentor's pictures.
_LOST = {"contrast": (0.05, "are of one colour"), "sure": (0.1, "mean nothing to the teacher")}


class GuardConfig(Config):
    """What follows a step whose loss or gradients are not finite. Its update is skipped always."""

    on_nonfinite: Literal["skip", "rollback", "stop"] = "skip"
    """skip: go on, and back to the last good checkpoint after `max_in_a_row` such steps; rollback:
    back after the first; stop: end after the first. Steps that fp16's loss scale overflows in are
    its usual way of finding the scale, and `max_in_a_row` of them are what counts as one."""
    max_in_a_row: int = Field(default=20, ge=1)
    rate_factor: float = Field(default=0.5, gt=0.0, le=1.0)
    """Of the learning rate of what was learning, at each return. An augmentor whose own turn it
    was goes back alone, to one of the bank."""
    max_rollbacks: int = Field(default=3, ge=0)
    """Returns to a checkpoint before the run ends with an error."""


class Diverged(ValueError):
    """A run that cannot go on: its numbers are not finite."""


class Back(NamedTuple):
    """Where to go back: AUGMENTOR, its own weights alone; else the run, for what learned then."""

    phase: Phase
    why: str


class _Seen(NamedTuple):
    """One step's verdict on its way: [1 if skipped, 0 else; the looks of the made pictures]."""

    phase: Phase
    names: tuple[str, ...]
    values: Late | list[float]

    def numbers(self) -> list[float]:
        """The verdict, waited for."""
        return self.values if isinstance(self.values, list) else self.values.value().tolist()


class Guard:
    """Counts what was skipped, and says when to go back. Every process decides alike.

    Verdicts are means of all processes, read a fixed number of steps after they were made; those
    on their way are part of the checkpoint.

    warns:  whether a skipped step is worth a warning.
    counts: of the whole run, what it went back on included.
    back, has_skipped: what followed from verdicts, until whoever acts on it sets it back.
    """

    def __init__(self, config: GuardConfig, *, is_fp16: bool) -> None:
        self.config = config
        is_patient = config.on_nonfinite == "skip" or is_fp16
        self._limit = config.max_in_a_row if is_patient else 1
        self.warns = not is_fp16
        self._pending: deque[_Seen] = deque()
        self._in_a_row, self._has_reset = 0, False
        self._looks: dict[str, float] = {}
        self._num_old = 0  # verdicts on their way whose looks are of an augmentor that is gone
        self.counts = {"skipped": 0, "rollbacks": 0, "resets": 0}
        self.back: Back | None = None
        self.has_skipped = False

    def observe(self, step: int, phase: Phase, is_skipped: Tensor, logs: dict[str, Tensor]) -> None:
        """Take in a 0-based step: [] bool whether it was skipped, and what the losses logged.

        Raises:  Diverged, as `judge` does for the verdicts that are due by now.
        """
        names = tuple(name for name in _LOST if name in logs)
        values = torch.stack([is_skipped.float(), *(logs[name] for name in names)])
        self._pending.append(_Seen(phase, names, Late(values)))
        self.judge(step + 1, num_pending=_LAG)

    def judge(self, step: int, *, num_pending: int = 0) -> None:
        """Read the verdicts, for which the device is waited for.

        Args:    step: how many steps the run has made.
                 num_pending: how many of the newest are left for later.
        Raises:  Diverged where the configuration wants an end.
        """
        while len(self._pending) > num_pending:
            seen = self._pending.popleft()
            has_skipped, *looks = seen.numbers()
            if has_skipped:
                self.has_skipped = True
                self.counts["skipped"] += 1
                self._in_a_row += 1
            else:
                self._in_a_row, self._has_reset = 0, False
                if looks and not self._num_old:
                    self._looks = dict(zip(seen.names, looks, strict=True))
            self._num_old = max(0, self._num_old - 1)
            if self._in_a_row == self._limit:
                self.back = self._give_up_on(seen.phase, step)

    def _give_up_on(self, phase: Phase, step: int) -> Back:
        seen = f"{_steps(self._limit)} had a loss or gradient that is no finite number"
        if self.config.on_nonfinite == "stop":
            raise Diverged(
                f"step {step}: {seen}; the weights are as they were before. Try a lower learning "
                "rate, or guard.on_nonfinite = 'skip'"
            )
        self._in_a_row = 0
        # An augmentor of the bank that does no better was not to blame.
        if phase is Phase.AUGMENTOR and not self._has_reset:
            self._has_reset = True
            return Back(phase, f"{seen} in the augmentor's turn")
        if self.counts["rollbacks"] == self.config.max_rollbacks:
            raise Diverged(
                f"step {step}: {seen}, also after {self.counts['rollbacks']} returns to a "
                "checkpoint at a lower learning rate. Look for NaN in the teacher's weights and "
                "the data, try a lower learning rate, or raise guard.max_rollbacks"
            )
        return Back(Phase.JOINT if phase is Phase.JOINT else Phase.STUDENT, seen)

    def lost(self) -> str | None:
        """What is wrong with the newest pictures of a learned augmentor, if anything; asked once.

        Looks that are no finite number say nothing: their step was skipped.
        """
        looks, self._looks = self._looks, {}
        for name, (bound, words) in _LOST.items():
            if name in looks and looks[name] < bound:
                return f"the augmentor's pictures {words} ({name} {looks[name]:.2g} of 1)"
        return None

    def forget_looks(self) -> None:
        """Say nothing of the pictures made so far: the augmentor was set to other values."""
        self._looks, self._num_old = {}, len(self._pending)

    def is_calm(self) -> bool:
        """Whether the newest step was finite, so that its weights are worth saving."""
        newest = self._pending[-1].numbers()[0] if self._pending else self._in_a_row
        return not newest

    def state_dict(self) -> dict[str, Any]:
        """The counts, and the verdicts not yet acted on, as plain values."""
        pending = [(seen.phase.value, list(seen.names), seen.numbers()) for seen in self._pending]
        own = {"in_a_row": self._in_a_row, "has_reset": self._has_reset, "num_old": self._num_old}
        return {"pending": pending, "counts": dict(self.counts), "looks": dict(self._looks), **own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""
        self._pending = deque(
            _Seen(Phase(phase), tuple(names), list(values))
            for phase, names, values in state["pending"]
        )
        self.counts, self._looks = dict(state["counts"]), dict(state["looks"])
        self._in_a_row, self._has_reset = state["in_a_row"], state["has_reset"]
        self._num_old = state["num_old"]


def is_finite(module: nn.Module) -> bool:
    """Whether every parameter is finite; waits for the device, once."""
    return bool(nn.utils.get_total_norm(module.parameters()).isfinite())


def _steps(num: int) -> str:
    return "a step" if num == 1 else f"{num} steps in a row"
