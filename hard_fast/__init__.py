"""Knowledge distillation of vision models on inputs that are learned to be hard."""

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = ["Distiller", "Diverged", "Network", "Report"]


def __getattr__(name: str) -> Any:
    """The names of `hard_fast.distiller`, which is imported when one of them is asked for."""
    if name in __all__:
        return getattr(importlib.import_module("hard_fast.distiller"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """What is there without being imported yet, so that pydoc and completion show it too."""
    return sorted({*globals(), *__all__})
