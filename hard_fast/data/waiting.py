"""How long a run waited for its data, without making it wait for the answer."""

import time
from collections import deque
from types import TracebackType
from typing import Self

import torch


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
