"""A moving average of a network's weights, which often scores better than the weights."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from hard_fast.runtime.configfile import Config


class AverageConfig(Config):
    """An exponential moving average of the weights."""

    decay: float = Field(default=0.9998, gt=0, lt=1)
    """Share of the old average at each step; early on (1 + n) / (10 + n) after n steps, if that is
    less, so that the initial weights are soon forgotten."""


class WeightAverage:
    """The average of what a module's state dict holds, kept beside it on the same device.

    Float parameters and buffers are averaged; the others, such as counters, are copied.

    Args:    module: on its device already, since buffers that move are replaced.
    Source:  The warm-up is that of TensorFlow's ExponentialMovingAverage with `num_updates`.
    """

    def __init__(self, module: nn.Module, config: AverageConfig) -> None:
        # Tied weights stand under several names; they are averaged once.
        seen: dict[int, str] = {}
        self._weights: dict[str, Tensor] = {}
        for name, value in module.state_dict(keep_vars=True).items():
            if isinstance(value, Tensor) and seen.setdefault(id(value), name) == name:
                self._weights[name] = value
        self._averages = {name: value.detach().clone() for name, value in self._weights.items()}
        self._floats = [name for name, value in self._weights.items() if value.is_floating_point()]
        self._rest = [name for name in self._weights if name not in set(self._floats)]
        self._decay = config.decay
        self._num_updates = 0
        self._is_applied = False

    @torch.no_grad()
    def update(self) -> None:
        """Move the averages towards the weights as they are now; nothing waits for the device."""
        assert not self._is_applied, "the module holds the averages themselves"
        decay = min(self._decay, (1 + self._num_updates) / (10 + self._num_updates))
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

    def of(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The averages of some of the module's own tensors."""
        names = {id(weight): name for name, weight in self._weights.items()}
        return [self._averages[names[id(tensor)]] for tensor in tensors]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """While it lasts, the module holds the averages; then exactly its own weights again.

        Values are copied and storages stay, so that compiled code and optimizers notice nothing.
        What changes the weights meanwhile is undone at the end.
        """
        assert not self._is_applied, "the averages are applied already"
        kept = {name: weight.detach().clone() for name, weight in self._weights.items()}
        self._is_applied = True
        try:
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
