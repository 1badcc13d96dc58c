"""One learning network's optimizer, learning rate and clipping, as one thing to step and save."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.amp import GradScaler

from hard_fast.optim.build import OptimConfig, build_optimizer, clip_
from hard_fast.optim.schedule import build_rate, set_rate
from hard_fast.runtime.cycle import Cycle


class Learner:
    """Updates the parameters that require gradients now, at the rate of each step.

    Gradients of several backward passes may add up before an update.

    Args:    parameters: as `named_parameters` yields them.
             num_steps, num_steps_per_epoch: of the whole run; the rate follows its steps.
             keeps_gradients: hold zeros between updates, rather than nothing. Where gradients add
                 up over replays of a CUDA graph this is needed: what was not there is replaced by
                 the graph's own output, which the next replay overwrites.
    """

    def __init__(
        self,
        config: OptimConfig,
        parameters: Iterable[tuple[str, nn.Parameter]],
        *,
        num_steps: int,
        num_steps_per_epoch: int,
        keeps_gradients: bool = False,
    ) -> None:
        self._config = config
        self.keeps_gradients = keeps_gradients
        self._optimizer = build_optimizer(config, parameters)
        groups = self._optimizer.param_groups
        self._decayed = [place for place, group in enumerate(groups) if group["weight_decay"] > 0]
        self._num_steps = num_steps
        self._parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        if keeps_gradients:
            for parameter in self._parameters:
                parameter.grad = torch.zeros_like(parameter)
        self.rate = build_rate(
            config.rate, num_steps=num_steps, num_steps_per_epoch=num_steps_per_epoch
        )

    def update(self, step: int, scaler: GradScaler | None = None) -> None:
        """Clip, descend at the rate of this 0-based step, and forget the gradients.

        With an enabled scaler, gradients are unscaled first, and if one is infinite or NaN the
        weights and moments stay as they are. That verdict never leaves the device with `adam`,
        `adamw` and `sgd`; the other kinds wait for it at each step. Afterwards, once for all that
        learned in a step, the caller owes `scaler.update()`.
        """
        set_rate(self._optimizer, self.lr(step))
        if isinstance(self._config.weight_decay, Cycle):
            for place in self._decayed:
                decay = self._now(self._config.weight_decay, step)
                self._optimizer.param_groups[place]["weight_decay"] = decay
        if self._config.clip_norm is not None:
            if scaler is not None:
                scaler.unscale_(self._optimizer)
            clip_(self._parameters, self._now(self._config.clip_norm, step))
        if scaler is None:
            self._optimizer.step()
        else:
            scaler.step(self._optimizer)
        self._optimizer.zero_grad(set_to_none=not self.keeps_gradients)

    def lr(self, step: int) -> float:
        """The learning rate of a 0-based step."""
        return self._config.lr * self.rate.factor(step)

    def _now(self, value: float | Cycle, step: int) -> float:
        return value.at(step, self._num_steps) if isinstance(value, Cycle) else value

    def forget(self) -> None:
        """Drop the optimizer's moments, since the parameters were set to other values."""
        self._optimizer.state.clear()

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's moments and the rate's place."""
        return {"optimizer": self._optimizer.state_dict(), "rate": self.rate.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""
        self._optimizer.load_state_dict(state["optimizer"])
        self.rate.load_state_dict(state["rate"])
