"""What a run measures: sums of the losses' logs that stay on the device until they are read."""

from typing import Any

import torch
from torch import Tensor

from hard_fast.runtime import dist
from hard_fast.types import Phase


class Meter:
    """Sums of what the losses logged, per phase. Adding never leaves the device."""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}
        self._sums: dict[str, Tensor] = {}
        self._steps: dict[str, int] = {}

    def add(self, phase: Phase, logs: dict[str, Tensor]) -> None:
        """Count one step of a phase with its logs, [] fp32 each."""
        values = torch.stack(list(logs.values()))
        key = phase.value
        if key in self._sums:
            self._sums[key] += values
            self._steps[key] += 1
        else:
            self._names[key], self._sums[key], self._steps[key] = list(logs), values, 1

    def share(self) -> None:
        """Give every rank the mean of their sums; `means` stays what it would have been."""
        dist.mean_(list(self._sums.values()))

    def means(self) -> dict[str, dict[str, float]]:
        """Per phase its number of steps and the means over steps and ranks; starts anew.

        Waits for the device: call it every `log_every` steps, not every step.
        """
        self.share()
        found = {}
        for key, sums in self._sums.items():
            num = self._steps[key]
            values = (sums / num).tolist()
            found[key] = {"steps": num, **dict(zip(self._names[key], values, strict=True))}
        self._names, self._sums, self._steps = {}, {}, {}
        return found

    def state_dict(self) -> dict[str, Any]:
        """The sums not yet reported; a resumed run reports the same rows."""
        return {"names": dict(self._names), "sums": dict(self._sums), "steps": dict(self._steps)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from saved sums."""
        self._names, self._sums = dict(state["names"]), dict(state["sums"])
        self._steps = dict(state["steps"])
