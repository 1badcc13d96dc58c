"""bitsandbytes' 8-bit Lion and AdamW, as rules of the flat optimizer."""

from typing import Any, Literal

import torch
from torch import Tensor

from hard_fast.optim.flat import BLOCK_SIZE, EVERY_WEIGHT, Moment, Rule

_CODES = Moment(torch.uint8, 1)
_SCALES = Moment(torch.float32, BLOCK_SIZE)


def eight_bit_rules(name: Literal["lion", "adam"], device: torch.device) -> tuple[Rule, Rule]:
    """bitsandbytes' rule with 8-bit moments, and the one with 32-bit moments for small tensors.

    Its functions are called without its optimizers, which wait for the device after every tensor.
    On a GPU they run on the default stream, whichever one is current (bitsandbytes 0.50).

    Raises:  ImportError without bitsandbytes, RuntimeError if it has no code for the device.
    """
    updates = _Updates(name, device)
    means, scales = updates.means, updates.scales
    large = Rule(dict.fromkeys(means, _CODES) | dict.fromkeys(scales, _SCALES), updates.with_8bit)
    small = Rule(dict.fromkeys(means, EVERY_WEIGHT), updates.with_32bit)
    _try_out(large, device)
    return large, small


class _Updates:
    """One optimizer's updates. What Lion does not have, the second mean, is None for it."""

    def __init__(self, name: Literal["lion", "adam"], device: torch.device) -> None:
        from bitsandbytes import functional

        self._name, self._functional = name, functional
        self.means = ("state1", "state2")[: 1 if name == "lion" else 2]
        self.scales = ("absmax1", "absmax2")[: len(self.means)]
        # The number that each code stands for. The second mean is one of squares, without a sign.
        self._codes = [
            functional.create_dynamic_map(signed=mean == "state1").to(device) for mean in self.means
        ]
        self._absent = [None] * (2 - len(self.means))

    def with_8bit(
        self,
        weight: Tensor,
        grad: Tensor,
        moments: dict[str, Tensor],
        step: int,
        group: dict[str, Any],
    ) -> None:
        """Move weights whose moments are codes, with a scale per block."""
        self._functional.optimizer_update_8bit_blockwise(
            self._name,
            grad,
            weight,
            *(moments[mean] for mean in self.means),
            *self._absent,
            *group["betas"],
            0.0,  # beta3 and alpha are another optimizer's
            0.0,
            group["eps"],
            step,
            group["lr"],
            *self._codes,
            *self._absent,
            *(moments[scale] for scale in self.scales),
            *self._absent,
            weight_decay=group["weight_decay"],
        )

    def with_32bit(
        self,
        weight: Tensor,
        grad: Tensor,
        moments: dict[str, Tensor],
        step: int,
        group: dict[str, Any],
    ) -> None:
        """Move weights whose moments are plain numbers."""
        first, second = (*(moments[mean] for mean in self.means), *self._absent)
        beta1, beta2 = group["betas"]
        self._functional.optimizer_update_32bit(
            self._name,
            grad,
            weight,
            first,
            beta1,
            group["eps"],
            step,
            group["lr"],
            second,
            beta2,
            weight_decay=group["weight_decay"],
        )


def _try_out(rule: Rule, device: torch.device) -> None:
    """Raise now what would fail at the first step: bitsandbytes imports without its kernels too."""
    moments = {
        name: torch.zeros(BLOCK_SIZE // moment.num_weights, dtype=moment.dtype, device=device)
        for name, moment in rule.moments.items()
    }
    group = {"lr": 0.0, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0}
    rule.update(*torch.zeros(2, BLOCK_SIZE, device=device), moments, 1, group)
