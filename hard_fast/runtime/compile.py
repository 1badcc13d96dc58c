"""How a step runs on a device: compiled or not, and in which precision."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

from hard_fast.runtime.configfile import Config
from hard_fast.runtime.torn import remove_torn_libraries

Precision = Literal["auto", "fp32", "bf16", "fp16"]
CUDA_GRAPH_MODES = ("reduce-overhead", "max-autotune")
_CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


class CompileConfig(Config):
    """What torch.compile makes of a step."""

    mode: Literal["auto", "off", "default", "reduce-overhead", "max-autotune"] = "auto"
    """auto: `default` on a GPU; off on a CPU, where it gains at most 1.1x after a minute of warm-up
    and makes grid sampling slower. The two longer names are torch.compile's own."""
    region: Literal["auto", "step", "networks"] = "auto"
    """step: one graph per phase, from the bytes to the loss. networks: each network by itself.
    auto: step, but networks where [distributed] overlap or a sharded teacher needs it."""
    cache: str | None = None
    """Folder of what was compiled, so that a restart need not compile again. None: the one that
    TORCHINDUCTOR_CACHE_DIR names, else hard_fast/compile in the user's cache folder."""


def is_compiled(config: CompileConfig, device: torch.device) -> bool:
    """Whether this configuration compiles anything on this device."""
    return config.mode not in ("off", "auto") or (config.mode == "auto" and device.type == "cuda")


def compiled(
    function: Callable, config: CompileConfig, device: torch.device, *, whole: bool = True
) -> Callable:
    """The function compiled for fixed shapes, or as it is.

    Args:    whole: fail where it does not become one graph.
    """
    if not is_compiled(config, device):
        return function
    mode = "default" if config.mode == "auto" else config.mode
    return torch.compile(function, fullgraph=whole, dynamic=False, mode=mode)


def allow_graphs(num: int) -> None:
    """Let torch.compile make so many graphs of one function, each for shapes of its own.

    Its own limit is there to end a run whose shapes change without anybody's knowing.
    """
    import torch._dynamo.config as limits

    limits.recompile_limit = max(limits.recompile_limit, num)


def use_cache(config: CompileConfig) -> Path:
    """Keep what is compiled from now on in the configured folder; returns the folder.

    Raises:  ValueError if a folder that was asked for cannot be made.
    """
    home = os.environ["XDG_CACHE_HOME"] if "XDG_CACHE_HOME" in os.environ else "~/.cache"
    named = config.cache or os.environ.get(_CACHE_VARIABLE) or f"{home}/hard_fast/compile"
    folder = Path(named).expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"compile.cache = {str(folder)!r}: {error.strerror}") from error
    remove_torn_libraries(folder)
    os.environ[_CACHE_VARIABLE] = str(folder)
    return folder


def amp_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """What to autocast networks to, None for fp32; `auto` is bf16 on a GPU that has it."""
    match precision:
        case "bf16":
            return torch.bfloat16
        case "fp16":
            return torch.float16
        case "auto" if device.type == "cuda" and torch.cuda.is_bf16_supported():
            return torch.bfloat16
        case _:
            return None
