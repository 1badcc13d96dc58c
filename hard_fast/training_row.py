"""The training row that is due: begun at once, written when its numbers have left the device."""

from typing import Any

from hard_fast.data.waiting import WaitAdvice
from hard_fast.engine import Engine
from hard_fast.journal import Journal
from hard_fast.metrics import Meter, Reading
from hard_fast.runtime.clock import Clock
from hard_fast.types import Phase

# Steps between measuring a row and writing it, so that the device is never waited for.
_LAG = 4
_SKIPPED = "a loss or gradient was no finite number: the update was skipped (see `skipped`)"


class TrainingRow:
    """At most one row that is still on its way, of what meter, clock and engine know."""

    def __init__(
        self, engine: Engine, meter: Meter, clock: Clock, num_steps_per_epoch: int
    ) -> None:
        self._engine, self._meter, self._clock = engine, meter, clock
        self._num_steps_per_epoch = num_steps_per_epoch
        self._wait_advice = WaitAdvice()
        self._begun: tuple[int, Reading, dict[str, Any]] | None = None

    def begin(self, journal: Journal, step: int, phase: Phase) -> None:
        """Begin the row after `step` steps, the last in this phase; the one before is written."""
        self.write(journal)
        self._clock.count_averaging(self._engine.averager.seconds())
        row = {"phase": phase.value, "lr": self._engine.rates(step - 1)}
        row["timing"] = timing = self._clock.window()
        if text := self._wait_advice.after(timing["data_wait"], timing["seconds"]):
            journal.say(f"step {step}: {text}")
        self._begun = (step, self._meter.take(), row)

    def is_due(self, step: int) -> bool:
        """Whether there is a row, and its numbers had time to come."""
        return self._begun is not None and step >= self._begun[0] + _LAG

    def write(self, journal: Journal) -> None:
        """Write the row, if there is one."""
        if self._begun is None:
            return
        step, reading, row = self._begun
        self.forget()
        epoch, phases = step / self._num_steps_per_epoch, reading.means()
        journal.write("train", step, epoch, row | phases)
        if self._engine.guard.warns and any("skipped" in phase for phase in phases.values()):
            journal.write("warning", step, epoch, {"text": _SKIPPED})

    def forget(self) -> None:
        """Let go of the row: it tells of steps that the run went back on."""
        self._begun = None
