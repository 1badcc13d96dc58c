"""One learning network's optimizer, learning rate and clipping, as one thing to step and save."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from hard_fast.optim.build import OptimConfig, build_optimizer, clip_, total_norm
from hard_fast.optim.schedule import build_rate, set_rate
from hard_fast.optim.standstill import Standstill
from hard_fast.runtime.cycle import Cycle


class Learner:
    """Updates the parameters that require gradients now, at the rate of each step.

    Gradients of several backward passes may add up before an update, and those of several steps
    are gathered beside them where `update_every` says so. `share` is that of the configured rate
    which is left, 1 unless the run had to go back.

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
        self._is_spoilt: Tensor | None = None  # [] bool, of the steps since the last update
        self._norm: Tensor | None = None  # [] of the gradients that the next update takes
        self.share = 1.0
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
    ) -> Tensor:
        """Clip, descend at the rate of this 0-based step, and forget the gradients.

        Or gather them, while more steps are to come before the next update.

        If a gradient or the loss is infinite or NaN, in any step since the last update, weights
        and moments stay as they are. That verdict never leaves the device: it goes the way that
        torch has for its gradient scaler, which its fused kernels and our flat ones read. With an
        enabled scaler, gradients are unscaled first; afterwards, once for all that learned in a
        step, the caller owes `scaler.update()`.

        Args:    loss: [] of this step, the mean of all processes as the gradients are; `standstill`
                     needs it.
        Returns: [] bool, on the device: whether this step's gradients or loss are not finite.
        """
        if self._config.fresh_turns and step > self._last_step + 1:
            self.forget()
            if self._standstill is not None:
                self._standstill.restart()
        self._last_step = step
        if self._standstill is not None:
            self._standstill.settle()
        self._num_gathered += 1
        if scaler is not None:
            scaler.unscale_(self._optimizer)
        # The pass over the gradients that clipping needs anyway.
        self._norm = total_norm(self._parameters)
        is_bad = ~(self._norm if loss is None else self._norm + loss).isfinite()
        self._is_spoilt = is_bad if self._is_spoilt is None else self._is_spoilt | is_bad
        is_last = step + 1 >= self._num_steps
        if is_last or self._num_gathered >= round(self._now(self._config.update_every, step)):
            self._descend(step)
        else:
            self._gather()
        if self._standstill is not None:
            assert loss is not None
            # One NaN would hide two epochs; a zero is lost among the losses of one.
            self._standstill.learned(loss.masked_fill(is_bad, 0.0))
        return is_bad

    def finish(self, step: int) -> None:
        """Learn from what is still gathered, in a run's last step, if that brings no gradients."""
        if self._num_gathered:
            for parameter in self._parameters:
                parameter.grad = torch.zeros_like(parameter)
            self._descend(step)

    def _gather(self) -> None:
        """Add the gradients to those of earlier steps, and forget them."""
        for place, parameter in enumerate(self._parameters):
            if parameter.grad is not None:
                # Memory of their own: DDP and CUDA graphs write to the gradients' again.
                if place in self._gathered:
                    self._gathered[place].add_(parameter.grad)
                else:
                    self._gathered[place] = parameter.grad.clone()
        self._optimizer.zero_grad(set_to_none=not self.keeps_gradients)

    def _add_gathered(self) -> None:
        """Turn the gradients into the mean of all steps since the last update."""
        for place, total in self._gathered.items():
            parameter = self._parameters[place]
            parameter.grad = total if parameter.grad is None else parameter.grad.add_(total)
        for parameter in self._parameters:
            if parameter.grad is not None:
                parameter.grad.div_(self._num_gathered)
        self._norm = total_norm(self._parameters)

    def _descend(self, step: int) -> None:
        if self._gathered:
            self._add_gathered()
        set_rate(self._optimizer, self.lr(step))
        if isinstance(self._config.weight_decay, Cycle):
            for place in self._decayed:
                decay = self._now(self._config.weight_decay, step)
                self._optimizer.param_groups[place]["weight_decay"] = decay
        if self._config.clip_norm is not None:
            clip_(self._parameters, self._now(self._config.clip_norm, step), self._norm)
        self._optimizer.grad_scale, self._optimizer.found_inf = None, self._is_spoilt.float()
        self._optimizer.step()
        self._gathered, self._num_gathered, self._is_spoilt = {}, 0, None
        self._optimizer.zero_grad(set_to_none=not self.keeps_gradients)

    def lr(self, step: int) -> float:
        """The learning rate of a 0-based step."""
        still = self._standstill.factor if self._standstill is not None else 1.0
        return self._config.lr * self.share * self.rate.factor(step) * still

    def _now(self, value: float | Cycle, step: int) -> float:
        return value.at(step, self._num_steps) if isinstance(value, Cycle) else value

    def forget(self) -> None:
        """Drop the optimizer's moments, since the parameters were set to other values."""
        self._optimizer.state.clear()

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's moments, the rate's place and the gradients that wait for an update."""
        gathered = {"gradients": self._gathered, "num": self._num_gathered}
        gathered |= {"is_spoilt": self._is_spoilt}
        own = {"optimizer": self._optimizer.state_dict(), "rate": self.rate.state_dict()}
        own |= {"standstill": self._standstill and self._standstill.state_dict()}
        own |= {"gathered": gathered, "last_step": self._last_step}
        return own | {"share": self.share}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""
        self._optimizer.load_state_dict(state["optimizer"])
        self.rate.load_state_dict(state["rate"])
        self._last_step = int(state["last_step"])
        if self._standstill is not None:
            self._standstill.load_state_dict(state["standstill"])
        gathered, self.share = state["gathered"], float(state["share"])
        self._num_gathered, self._is_spoilt = int(gathered["num"]), gathered["is_spoilt"]
        self._gathered = {
            place: torch.empty_like(self._parameters[place]).copy_(total)
            for place, total in gathered["gradients"].items()
        }
