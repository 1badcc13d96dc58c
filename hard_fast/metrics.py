"""What a run measures: sums of the losses' logs that stay on the device until they are read."""

from typing import Any

import torch
from torch import Tensor

from hard_fast.runtime.late import Late
from hard_fast.types import Phase

Means = dict[str, dict[str, float]]


class Meter:
    """Sums of what the losses logged, per phase. Adding never leaves the device."""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}
        self._sums: dict[str, Tensor] = {}
        self._steps: dict[str, int] = {}

    def add(self, phase: Phase, logs: dict[str, Tensor], is_skipped: Tensor | None = None) -> None:
        """Count one step of a phase with its logs, [] fp32 each, already the mean of the ranks.

        Args:    is_skipped: [] bool: whether its numbers count for nothing.
        """
        values = torch.stack(list(logs.values()))
        # Last, the number of steps that count.
        values = torch.cat([values, values.new_ones(1)])
        if is_skipped is not None:
            values = values.masked_fill(is_skipped, 0.0)
        key = phase.value
        if key in self._sums:
            self._sums[key] += values
            self._steps[key] += 1
        else:
            self._names[key], self._sums[key], self._steps[key] = list(logs), values, 1

    def take(self) -> "Reading":
        """What was added so far, on its way to the host; the meter starts anew."""
        reading = Reading(self._names, self._sums, self._steps)
        self._names, self._sums, self._steps = {}, {}, {}
        return reading

    def state_dict(self) -> dict[str, Any]:
        """The sums not yet reported; a resumed run reports the same rows."""
        return {"names": dict(self._names), "sums": dict(self._sums), "steps": dict(self._steps)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from saved sums."""
        self._names, self._sums = dict(state["names"]), dict(state["sums"])
        self._steps = dict(state["steps"])


class Reading:
    """What a meter held. Asked for its means some steps later, it does not stall the device."""

    def __init__(
        self, names: dict[str, list[str]], sums: dict[str, Tensor], steps: dict[str, int]
    ) -> None:
        self._names, self._steps = names, steps
        self._late = {key: Late(value) for key, value in sums.items()}

    def means(self) -> Means:
        """Per phase its number of steps, how many of them were skipped, if any, and the means over
        the other steps and the ranks; NaN where there are none."""
        found: Means = {}
        for key, late in self._late.items():
            *sums, num = late.value().tensor_split([len(self._names[key])])
            means = (sums[0] / num).tolist()
            found[key] = {"steps": self._steps[key]}
            if skipped := self._steps[key] - int(num):
                found[key]["skipped"] = skipped
            found[key] |= dict(zip(self._names[key], means, strict=True))
        return found
