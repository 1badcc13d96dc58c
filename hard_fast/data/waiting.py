"""How long a run waited for its data, without making it wait for the answer."""

import time
from collections import deque
from types import TracebackType
from typing import Self

import torch

# What is worth a word: so large a share of at least so many seconds.
_SHARE, _LONG_S = 0.25, 30.0


class WaitAdvice:
    """Says once that a run waits for its data for too much of its time.

    It depends on the clock, so it is for the person alone and no row of the metrics.
    """

    def __init__(self) -> None:
        self._has_spoken = False
        self._seconds, self._began_s, self._wait_s = None, 0.0, 0.0

    def after(self, share: float, seconds: float) -> str | None:
        """What to tell after some steps of the run, if anything.

        Args:    share: of the time since the last call, which went in waiting. The first call
                 counts for nothing: filling the queues is no steady state.
                 seconds: of the run so far.
        """
        if self._seconds is None:
            self._seconds = self._began_s = seconds
            return None
        self._wait_s += share * (seconds - self._seconds)
        self._seconds, long_s = seconds, seconds - self._began_s
        if self._has_spoken or long_s < _LONG_S:
            return None
        waited = self._wait_s / long_s
        self._began_s, self._wait_s = seconds, 0.0
        self._has_spoken = waited >= _SHARE
        if not self._has_spoken:
            return None
        return (
            f"{waited:.0%} of the last {long_s:.0f} s went in waiting for data; where it is "
            "pictures, a faster disk, tar shards in place of a folder, or more data.threads help"
        )


class HostWait:
    """Adds up the time that the process spends inside `with` blocks."""

    def __init__(self) -> None:
        self._total_s = self._began_s = 0.0

    def __enter__(self) -> Self:
        self._began_s = time.perf_counter()
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._total_s += time.perf_counter() - self._began_s

    def seconds(self) -> float:
        """The time so far."""
        return self._total_s


class DeviceWait:
    """Adds up the time that the GPU's stream is idle between the ends of `with` blocks.

    The host runs ahead of a GPU, so its own waiting says little: a stream that reaches the second
    of two events later than the first had nothing to do.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._total_s = 0.0
        self._pending: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    def __enter__(self) -> Self:
        self._began = self._mark()
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._pending.append((self._began, self._mark()))
        self._collect()

    def seconds(self) -> float:
        """The time so far, without what the GPU has not come to yet."""
        self._collect()
        return self._total_s

    def _mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _collect(self) -> None:
        while self._pending and self._pending[0][1].query():
            began, ended = self._pending.popleft()
            self._total_s += began.elapsed_time(ended) / 1000
