"""What a result was made with: versions, hardware, memory."""

import platform
from importlib import metadata
from pathlib import Path

import torch

from hard_fast.runtime.memory import process_peak_bytes

_PACKAGES = ("torch", "timm", "numpy", "bitsandbytes", "lion-pytorch", "hard-fast")


def versions(device: torch.device) -> dict[str, str]:
    """Versions and hardware that a result was made with."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    is_cuda = device.type == "cuda"
    found["device"] = torch.cuda.get_device_name(device) if is_cuda else _processor()
    return found


def peak_memory_gib(device: torch.device) -> float:
    """Most memory in use so far: of the GPU where there is one, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return process_peak_bytes() / 2**30


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor() or "CPU"
