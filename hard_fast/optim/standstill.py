"""A learning rate that falls where a network's own loss stands still."""

import math

from pydantic import Field
from torch import Tensor

from hard_fast.runtime.configfile import Config


class StandstillConfig(Config):
    """When an epoch of a network's own updates lowers its rate, and to which share."""

    factor: float = Field(default=0.9, gt=0, lt=1)
    """Of the rate, after each epoch whose mean loss stood still."""
    least: float = Field(default=0.02, gt=0)
    """A fall of the loss, from one epoch to the next, that is enough to keep the rate."""
    least_share: float = Field(default=0.02, gt=0)
    """A change, up or down, as a share of the epoch before, that is enough to keep it too."""


class Standstill:
    """A multiplier of the rate that shrinks after each epoch in which the loss stood still.

    Losses are added up on their device, which is waited for once an epoch.

    Source:  ALRS (Chen et al. 2022, "Bootstrap Generalization Ability from Loss Landscape
             Perspective") as in shaoshitong/TST, SDAKD_FOR_BASELINE/datas/SDAGAN.py, where, too,
             a loss that rises by more than `least_share` keeps the rate.
    """

    def __init__(self, config: StandstillConfig, num_steps_per_epoch: int) -> None:
        self._config, self._num_steps_per_epoch = config, num_steps_per_epoch
        self.restart()

    def restart(self) -> None:
        """Go back to the full rate, with no epoch to compare the next one with."""
        self._last, self._num_still = math.inf, 0
        self._sum: Tensor | float = 0.0
        self._num = 0

    @property
    def factor(self) -> float:
        """The multiplier of the learning rate now, in (0, 1]."""
        return self._config.factor**self._num_still

    def learned(self, loss: Tensor) -> None:
        """Take in the loss of one step, [] on any device, the same in all processes."""
        self._sum, self._num = self._sum + loss, self._num + 1

    def settle(self) -> None:
        """Judge the epoch that is complete, if one is; to be called before each step."""
        if self._num < self._num_steps_per_epoch:
            return
        mean = float(self._sum) / self._num
        fell = self._last - mean
        is_still = fell < self._config.least and abs(fell) < self._config.least_share * self._last
        self._num_still += is_still
        self._last, self._sum, self._num = mean, 0.0, 0

    def state_dict(self) -> dict[str, float]:
        """The epochs so far and the one that is under way, as plain numbers."""
        began = {"sum": float(self._sum), "num": self._num}
        return {"last": self._last, "num_still": self._num_still, **began}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue from saved numbers."""
        self._last, self._num_still = float(state["last"]), int(state["num_still"])
        self._sum, self._num = float(state["sum"]), int(state["num"])
