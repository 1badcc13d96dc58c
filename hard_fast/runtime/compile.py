"""How a step runs on a device: compiled or not, and in which precision."""

from collections.abc import Callable
from typing import Literal

import torch

Precision = Literal["auto", "fp32", "bf16"]
CompileMode = Literal["auto", "off", "default", "reduce-overhead", "max-autotune"]


def compiled(function: Callable, mode: CompileMode, device: torch.device) -> Callable:
    """The function compiled as one graph per phase, or as it is.

    `auto` compiles on a GPU only: on a CPU the gain is at most 1.1x after a minute of warm-up, and
    grid sampling gets slower.
    """
    if mode == "off" or (mode == "auto" and device.type != "cuda"):
        return function
    return torch.compile(
        function, fullgraph=True, dynamic=False, mode="default" if mode == "auto" else mode
    )


def amp_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """What to autocast networks to, None for fp32; `auto` is bf16 on a GPU that has it."""
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    is_bf16 = precision == "bf16" or (precision == "auto" and has_bf16)
    return torch.bfloat16 if is_bf16 else None
