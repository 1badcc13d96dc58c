"""How much memory tensors take, a backward pass keeps, a piece of work needs, and a device has."""

import contextlib
import ctypes
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

_KIB = 1024
# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def storage_bytes(value: Any) -> int:
    """Bytes of all tensors in nested dicts, lists and tuples; memory that some share counts once.

    Args:    value: the tensors may also come out of an iterator.
    """
    found = list(value) if isinstance(value, Iterator) else value
    return sum({_address(t): t.untyped_storage().nbytes() for t in _tensors_in(found)}.values())


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of an optimizer's state."""
    return storage_bytes(list(optimizer.state.values()))


def saved_bytes(make_loss: Callable[[], Tensor], network: nn.Module) -> int:
    """Bytes that a loss keeps for its backward pass, each storage once, the network's own left out.

    They are the part of a step's memory that grows with the batch.
    """
    own = {_address(tensor) for tensor in (*network.parameters(), *network.buffers())}
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        if _address(tensor) not in own:
            kept.append(tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = make_loss()
    assert loss.requires_grad
    return storage_bytes(kept)


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """The most memory in use while `work` is done.

    On a GPU what PyTorch has given out. On a CPU all that this process has, libraries included;
    where the system does not let it forget earlier peaks, those count too.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    _forget_peak()
    work()
    return process_peak_bytes()


def process_peak_bytes() -> int:
    """The most memory that this process has had since it began, or since a peak was measured."""
    status = Path("/proc/self/status")
    if status.is_file():
        return _number(status, "VmHWM:") * _KIB
    # Where a process was started by a larger one, this may be that one's.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIB


def used_bytes(device: torch.device, system: Path = Path("/")) -> int:
    """What this process has now: of a GPU what PyTorch has set aside, else all of the process.

    What it has freed, and would use again, is given back first and does not count.
    """
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    _give_back()
    return _number(system / "proc/self/status", "VmRSS:") * _KIB


def free_bytes(device: torch.device, system: Path = Path("/")) -> int:
    """What this process may have beside what it has; limits of control groups count on a CPU.

    Args:    system: the root of the file system, for /proc and /sys.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    available = _number(system / "proc/meminfo", "MemAvailable:") * _KIB
    return min([available, *_free_in_groups(system)])


def keep_freed_memory(device: torch.device) -> None:
    """On a CPU let the C library, where it is glibc, keep what is freed for what is asked for next.

    A step frees what the next one needs again, and memory that went back to the system comes again
    in pages that it first has to clear: 18 % of one small run's processor time. This holds for what
    the main thread asks for, and not where the environment has settings of malloc's own.
    """
    is_set = any(name.startswith("MALLOC_") for name in os.environ)
    is_set |= "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if device.type == "cpu" and mallopt is not None and not is_set:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)


def _free_in_groups(system: Path) -> Iterator[int]:
    """What the limits of this process's control groups leave free, of either version."""
    for line in (system / "proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        is_old = bool(controllers)
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        limit, used = names if is_old else ("memory.max", "memory.current")
        top = system / "sys/fs/cgroup" / ("memory" if is_old else "")
        # The limits of the groups that it lies in count as well; inside a container only the
        # outermost of these folders is there.
        for folder in (top / path.lstrip("/"), *(top / path.lstrip("/")).parents):
            if not folder.is_relative_to(top) or not (folder / limit).is_file():
                continue
            if (text := (folder / limit).read_text().strip()) != "max":
                # Pages of files count as used, but those that nobody reads are given back.
                idle = _number(folder / "memory.stat", "inactive_file")
                yield int(text) - int((folder / used).read_text()) + idle


def _number(file: Path, key: str) -> int:
    """The number behind a key in a file of lines."""
    found = [line.split() for line in file.read_text().splitlines() if line.startswith(key)]
    return int(found[0][1])


def _forget_peak() -> None:
    # What was freed, but not given back, would hide what the work needs.
    _give_back()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _give_back() -> None:
    """Give the system what was freed, where the C library is glibc."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors_in(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors_in(item)


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
