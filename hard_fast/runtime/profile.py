"""A trace of a few steps, for the viewer of Chrome or Perfetto, and the names that stand in it."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule

FILE_NAME = "trace.json.gz"
# Compiling, choosing algorithms and filling queues are over by then; the last of them warms the
# profiler up.
NUM_WARM_UP = 10
_is_named = False


def named(name: str) -> contextlib.AbstractContextManager:
    """What a trace calls what runs meanwhile; nothing where none is made, and in compiled code."""
    # In this order: a compiled graph must not depend on whether somebody looks.
    if torch.compiler.is_compiling() or not _is_named:
        return contextlib.nullcontext()
    return record_function(name)


class Trace:
    """While it lasts, records so many steps of a run after `NUM_WARM_UP` others.

    Args:    folder: gets the file, which replaces an earlier one.
             num_steps: 0: nothing is recorded.
             say: tells a person where the file is.
    """

    def __init__(
        self, folder: Path, num_steps: int, device: torch.device, say: Callable[[str], None]
    ) -> None:
        self._path, self._say = folder / FILE_NAME, say
        self._profiler: profile | None = None
        if num_steps:
            # Kineto would tell of its stages, and that there is no GPU, between the run's lines.
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")
            on_gpu = [ProfilerActivity.CUDA] if device.type == "cuda" else []
            self._profiler = profile(
                activities=[ProfilerActivity.CPU, *on_gpu],
                schedule=schedule(wait=NUM_WARM_UP - 1, warmup=1, active=num_steps, repeat=1),
                on_trace_ready=self._write,
            )

    def __enter__(self) -> "Trace":
        self._turn(on=self._profiler is not None)
        if self._profiler is not None:
            self._profiler.start()
        return self

    def __exit__(self, *reason: object) -> None:
        self._turn(on=False)
        if self._profiler is None:
            return
        self._profiler.stop()
        if self._profiler is not None:
            self._say(f"train.profile_steps: the run ended in its first {NUM_WARM_UP} steps")

    def step(self) -> None:
        """Say that a step is done."""
        if self._profiler is not None:
            self._profiler.step()

    def _write(self, profiler: profile) -> None:
        """Keep what was recorded; a full disk costs the trace and not the run."""
        part = self._path.with_name(f"part-{FILE_NAME}")
        try:
            profiler.export_chrome_trace(str(part))
            os.replace(part, self._path)
        except OSError as error:
            self._say(f"{self._path}: cannot be written: {error.strerror}")
        else:
            self._say(f"trace of the last steps: {self._path} (open it at ui.perfetto.dev)")
        self._profiler = None
        self._turn(on=False)

    def _turn(self, *, on: bool) -> None:
        global _is_named
        _is_named = on
