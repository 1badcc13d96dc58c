"""One learning network's optimizer, learning rate and clipping, as one thing to step and save."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from hard_fast.optim.build import OptimConfig, build_optimizer, clip_
from hard_fast.optim.schedule import build_rate, set_rate
from hard_fast.optim.standstill import Standstill
from hard_fast.runtime.cycle import Cycle


class Learner:
    """Updates the parameters that require gradients now, at the rate of each step.

    Gradients of several backward passes may add up before an update, and those of several steps
    are gathered beside them where `update_every` says so.

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
        self._gathered: dict[int, Tensor] = {}  # sums over steps, by the parameters' places
        self._num_gathered = 0
        if keeps_gradients:
            for parameter in self._parameters:
                parameter.grad = torch.zeros_like(parameter)
        self.rate = build_rate(
            config.rate, num_steps=num_steps, num_steps_per_epoch=num_steps_per_epoch
        )
        self._standstill = None
        if config.standstill is not None:
            self._standstill = Standstill(config.standstill, num_steps_per_epoch)
        self._last_step = -1

    def update(
        self, step: int, scaler: GradScaler | None = None, loss: Tensor | None = None
    ) -> None:
        """Clip, descend at the rate of this 0-based step, and forget the gradients.

        Or gather them, while more steps are to come before the next update.

        With an enabled scaler, gradients are unscaled first, and if one is infinite or NaN, in any
        step since the last update, the weights and moments stay as they are. That verdict never
        leaves the device with `adam`, `adamw` and `sgd`; the other kinds wait for it at each
        update. Afterwards, once for all that learned in a step, the caller owes `scaler.update()`.

        Args:    loss: [] of this step, the mean of all processes, for `standstill` alone.
        """
        if self._config.fresh_turns and step > self._last_step + 1:
            self.forget()
            if self._standstill is not None:
                self._standstill.restart()
        self._last_step = step
        self._num_gathered += 1
        is_last = step + 1 >= self._num_steps
        if is_last or self._num_gathered >= round(self._now(self._config.update_every, step)):
            self._descend(step, scaler)
        else:
            self._gather(scaler)
        if self._standstill is not None:
            assert loss is not None
            self._standstill.learned(loss)

    def finish(self, step: int, scaler: GradScaler | None = None) -> None:
        """Learn from what is still gathered, in a run's last step, if that brings no gradients."""
        if self._num_gathered:
            for parameter in self._parameters:
                parameter.grad = torch.zeros_like(parameter)
            self._descend(step, scaler)

    def _gather(self, scaler: GradScaler | None) -> None:
        """Add the gradients to those of earlier steps, without their scale, and forget them."""
        if scaler is not None:
            scaler.unscale_(self._optimizer)
        for place, parameter in enumerate(self._parameters):
            if parameter.grad is not None:
                # Memory of their own: DDP and CUDA graphs write to the gradients' again.
                if place in self._gathered:
                    self._gathered[place].add_(parameter.grad)
                else:
                    self._gathered[place] = parameter.grad.clone()
        self._optimizer.zero_grad(set_to_none=not self.keeps_gradients)

    def _add_gathered(self, scaler: GradScaler | None) -> None:
        """Turn the gradients into the mean of all steps since the last update."""
        for place, total in self._gathered.items():
            parameter = self._parameters[place]
            # At the scale of now, so that the scaler sees whether a step was not finite.
            scaled = total if scaler is None else scaler.scale(total)
            parameter.grad = scaled if parameter.grad is None else parameter.grad.add_(scaled)
        if self._num_gathered > 1:
            for parameter in self._parameters:
                if parameter.grad is not None:
                    parameter.grad.div_(self._num_gathered)
        self._gathered, self._num_gathered = {}, 0

    def _descend(self, step: int, scaler: GradScaler | None) -> None:
        self._add_gathered(scaler)
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
        still = self._standstill.factor if self._standstill is not None else 1.0
        return self._config.lr * self.rate.factor(step) * still

    def _now(self, value: float | Cycle, step: int) -> float:
        return value.at(step, self._num_steps) if isinstance(value, Cycle) else value

    def forget(self) -> None:
        """Drop the optimizer's moments, since the parameters were set to other values."""
        self._optimizer.state.clear()

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's moments, the rate's place and the gradients that wait for an update."""
        gathered = {"gradients": self._gathered, "num": self._num_gathered}
        own = {"optimizer": self._optimizer.state_dict(), "rate": self.rate.state_dict()}
        own |= {"standstill": self._standstill and self._standstill.state_dict()}
        return own | {"gathered": gathered, "last_step": self._last_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""
        self._optimizer.load_state_dict(state["optimizer"])
        self.rate.load_state_dict(state["rate"])
        self._last_step = int(state["last_step"])
        if self._standstill is not None:
            self._standstill.load_state_dict(state["standstill"])
        gathered = state["gathered"]
        self._num_gathered = int(gathered["num"])
        self._gathered = {
            place: torch.empty_like(self._parameters[place]).copy_(total)
            for place, total in gathered["gradients"].items()
        }
