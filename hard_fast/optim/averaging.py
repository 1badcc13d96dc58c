"""An average of a network's weights over a run, which often scores better than the weights."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from hard_fast.optim.schedule import RateConfig, SwaRateConfig
from hard_fast.runtime.configfile import Config


class AverageConfig(Config):
    """An average of the weights: moving (ema), or equal over the tail of the run (swa).

    swa with start = 0.1 and the defaults is WAKD (arXiv:2309.11446): all iterates but the first
    tenth, for which no validation is needed. SWA (arXiv:1803.05407) takes one of each epoch, later
    in the run and at a constant or cyclic rate (optim.rate.kind = "swa"), and computes BatchNorm's
    statistics anew.
    """

    kind: Literal["ema", "swa"] = "ema"
    decay: float = Field(default=0.9998, gt=0, lt=1)
    """Of ema: share of the old average at each step; early on (1 + n) / (10 + n) after n steps, if
    that is less, so that the initial weights are soon forgotten."""
    start: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of the run after which averaging begins; the weights before count for nothing."""
    every_epochs: float = Field(default=0.0, ge=0.0)
    """Epochs between the weights that are averaged; 0: those of every step."""
    batchnorm_batches: int = Field(default=0, ge=0)
    """Training batches from which the averaged network computes BatchNorm's statistics anew, each
    time it is evaluated or saved; 0: the statistics are averaged as the weights are."""

    @model_validator(mode="after")
    def _uses_every_setting(self) -> "AverageConfig":
        if self.kind == "swa" and self.decay != type(self).model_fields["decay"].default:
            raise ValueError(f"decay = {self.decay}: kind = 'swa' weighs all alike; leave it out")
        return self


def check_tail(average: AverageConfig | None, rate: RateConfig) -> None:
    """See that a rate made for SWA has an average that begins with its tail.

    Raises:  ValueError, one line, if it has none, or one whose weights are not its cycles' ends.
    """
    if not isinstance(rate, SwaRateConfig):
        return
    if average is None or average.kind != "swa" or average.start != rate.start:
        raise ValueError(
            f"optim.rate.kind = 'swa': set average.kind = 'swa', average.start = {rate.start}"
        )
    if rate.low is not None and average.every_epochs != rate.cycle_epochs:
        raise ValueError(
            f"average.every_epochs = {average.every_epochs:g}: the weights at the end of each of "
            f"optim.rate's cycles are averaged; use its cycle_epochs = {rate.cycle_epochs:g}"
        )


class WeightAverage:
    """The average of what a module's state dict holds, kept beside it on the same device.

    Float parameters and buffers are averaged; the others, such as counters, are copied.

    Args:    module: on its device already, since buffers that move are replaced.
             num_steps, num_steps_per_epoch: of the whole run.
    Source:  The warm-up is that of TensorFlow's ExponentialMovingAverage with `num_updates`.
    """

    def __init__(
        self,
        module: nn.Module,
        config: AverageConfig,
        *,
        num_steps: int = 1,
        num_steps_per_epoch: int = 1,
    ) -> None:
        # Tied weights stand under several names; they are averaged once.
        seen: dict[int, str] = {}
        self._weights: dict[str, Tensor] = {}
        for name, value in module.state_dict(keep_vars=True).items():
            if isinstance(value, Tensor) and seen.setdefault(id(value), name) == name:
                self._weights[name] = value
        self._averages = {name: value.detach().clone() for name, value in self._weights.items()}
        self._floats = [name for name, value in self._weights.items() if value.is_floating_point()]
        self._rest = [name for name in self._weights if name not in set(self._floats)]
        self._is_equal, self._decay = config.kind == "swa", config.decay
        self._first = int(config.start * num_steps)
        self._every = max(1, round(config.every_epochs * num_steps_per_epoch))
        self._num_updates = 0
        self._is_applied = False

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a 0-based step, if they count; nothing waits for the device."""
        assert not self._is_applied, "the module holds the averages themselves"
        if step < self._first or (step + 1 - self._first) % self._every:
            return
        decay = self._share_of_old()
        self._num_updates += 1
        averages, weights = self._averages, self._weights
        if self._floats:
            torch._foreach_lerp_(
                [averages[name] for name in self._floats],
                [weights[name] for name in self._floats],
                1.0 - decay,
            )
        if self._rest:
            torch._foreach_copy_(
                [averages[name] for name in self._rest], [weights[name] for name in self._rest]
            )

    def _share_of_old(self) -> float:
        num = self._num_updates
        if self._is_equal:
            return num / (num + 1)
        # Untrained weights count in a run's first step alone.
        return 0.0 if self._first and not num else min(self._decay, (1 + num) / (10 + num))

    def of(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The averages of some of the module's own tensors."""
        names = {id(weight): name for name, weight in self._weights.items()}
        return [self._averages[names[id(tensor)]] for tensor in tensors]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """While it lasts, the module holds the averages; then exactly its own weights again.

        Before anything was averaged it holds its own. Values are copied and storages stay, so that
        compiled code and optimizers notice nothing. What changes the weights meanwhile is undone
        at the end.
        """
        assert not self._is_applied, "the averages are applied already"
        kept = {name: weight.detach().clone() for name, weight in self._weights.items()}
        self._is_applied = True
        try:
            if self._num_updates:
                self._fill(self._averages)
            yield
        finally:
            self._fill(kept)
            self._is_applied = False

    def state_dict(self) -> dict[str, Any]:
        """The averages by name, and how many updates they have seen."""
        return {"averages": self._averages, "num_updates": self._num_updates}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state.

        Raises:  ValueError if it is another network's.
        """
        saved = state["averages"]
        if saved.keys() != self._averages.keys() or any(
            saved[name].shape != average.shape for name, average in self._averages.items()
        ):
            raise ValueError("[average] the saved averages are another network's")
        for name, average in self._averages.items():
            average.copy_(saved[name])
        self._num_updates = int(state["num_updates"])

    @torch.no_grad()
    def _fill(self, values: dict[str, Tensor]) -> None:
        torch._foreach_copy_(list(self._weights.values()), list(values.values()))
