"""What this machine can run; the only place here that reads the environment."""

import importlib.util
import os
from functools import cache


@cache
def has_triton() -> bool:
    """Whether Triton is installed; asked once, and without importing it."""
    return importlib.util.find_spec("triton") is not None


def is_interpreted() -> bool:
    """Whether Triton kernels run in its interpreter, on tensors of any device."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def is_debugged() -> bool:
    """Whether indices are checked on a GPU too, which waits for the device at every call."""
    return os.environ.get("HARD_KERNELS_DEBUG", "0") == "1"
