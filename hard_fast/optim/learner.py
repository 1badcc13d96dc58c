"""One learning network's optimizer, learning rate and clipping, as one thing to step and save."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from hard_fast.optim.build import OptimConfig, build_optimizer, clip_
from hard_fast.optim.schedule import build_rate, set_rate


class Learner:
    """Updates the parameters that require gradients now, at the rate of each step.

    Args:    parameters: as `named_parameters` yields them.
             num_steps, num_steps_per_epoch: of the whole run; the rate follows its steps.
    """

    def __init__(
        self,
        config: OptimConfig,
        parameters: Iterable[tuple[str, nn.Parameter]],
        *,
        num_steps: int,
        num_steps_per_epoch: int,
    ) -> None:
        self._config = config
        self._optimizer = build_optimizer(config, parameters)
        self._parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        self.rate = build_rate(
            config.rate, num_steps=num_steps, num_steps_per_epoch=num_steps_per_epoch
        )

    def update(self, step: int) -> None:
        """Clip, descend at the rate of this 0-based step, and forget the gradients."""
        set_rate(self._optimizer, self.lr(step))
        if self._config.clip_norm is not None:
            clip_(self._parameters, self._config.clip_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def lr(self, step: int) -> float:
        """The learning rate of a 0-based step."""
        return self._config.lr * self.rate.factor(step)

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
