"""A process that hangs, wherever it is: the others end in time, and say which one it was."""

import functools
import itertools
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import NamedTuple

import pytest

from hard_fast.runtime.configfile import dump, merge
from hard_fast.runtime.pulse import LOST
from hard_fast.runtime.rows import read_rows
from tests.faults.runs import Run, state

TIMEOUT_S = 4.0
# Of runs that shall reach their end, where rank 0 writes a report while the other waits.
PATIENCE_S = 12.0
# To hear who is there; the rest is for machines with other work to do.
SECONDS_TO_END = 15.0


class Hang(NamedTuple):
    """Where a rank hangs: as it calls a function for the so-and-so-many-th time.

    place: what the others call it.
    """

    rank: int
    function: str
    call: int
    place: str


HANGS = (
    Hang(1, "join", 1, "the start"),
    Hang(0, "join", 1, "the start"),
    Hang(0, "RunDir._claim", 1, "the start"),
    Hang(1, "Trainer.train_step", 3, "step 2 (augmentor)"),
    Hang(1, "DistillStep.forward", 3, "step 2 (augmentor)"),
    Hang(1, "evaluate", 1, "step 4 (evaluation)"),
    Hang(0, "Checkpointer.save", 2, "step 3 (checkpoint)"),
    Hang(1, "Examiner.finish", 1, "the last evaluation"),
    Hang(0, "write_run_report", 1, "the end"),
)


def kind_of(place: str) -> str:
    """What a place is, for the table."""
    return next((k for k in ("checkpoint", "evaluation", "start", "end") if k in place), "step")


def at_call(function: str, call: int, do: Callable[[], object]) -> None:
    """Do something where this process calls a function for the so-and-so-many-th time."""
    calls = itertools.count(1)

    def look(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_qualname == function and next(calls) == call:
            do()

    sys.setprofile(look)


def stop_self(hang: Hang, rank: int) -> None:
    """Stop this process, if it is of that rank, where it is to hang."""
    if rank == hang.rank:
        at_call(hang.function, hang.call, lambda: os.kill(os.getpid(), signal.SIGSTOP))


def take_long(function: str, _: int) -> None:
    """Be slower than a process may be that others wait for; each rank is."""
    at_call(function, 1, lambda: time.sleep(PATIENCE_S + 2))


def wait_until(is_there, run: Run) -> None:
    deadline = time.monotonic() + 120
    while not is_there():
        assert not run.is_over() and time.monotonic() < deadline, run.said()
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("hang", HANGS, ids=lambda hang: f"rank{hang.rank}-{hang.function}")
def test_a_hung_rank_is_named_wherever_it_hangs(hang, tiny_run, tmp_path, faults):
    changes = {"train": {"steps": 6}, "distributed": {"timeout_s": TIMEOUT_S}}
    config = tmp_path / "in.toml"
    config.write_text(dump(merge(tiny_run, changes)))
    with faults.tried(f"hung rank, {kind_of(hang.place)}"):
        stop = functools.partial(stop_self, hang)
        run = Run(["--config", str(config)], tmp_path / "said", ranks=2, before=stop)
        try:
            wait_until(lambda: state(run.pid(hang.rank)) == "T", run)
            since = time.monotonic()
            other = 1 - hang.rank
            wait_until(lambda: run.codes()[other] is not None, run)
            assert time.monotonic() - since < TIMEOUT_S + SECONDS_TO_END
            assert run.codes()[other] == LOST, run.said()
            lines = [line for line in run.said().splitlines() if line.startswith("error")]
            assert lines == [lines[0]] and lines[0].startswith(
                f"error on rank {other}: rank {hang.rank} did not answer at {hang.place}: it hangs "
                f"or is gone (distributed.timeout_s = {TIMEOUT_S:g}"
            )
            assert "Traceback" not in run.said()
        finally:
            run.end()


@pytest.mark.slow
@pytest.mark.parametrize("function", ["evaluate", "DistillStep.forward"])
def test_what_all_do_together_may_take_longer(function, tiny_run, tmp_path, faults):
    changes = {"train": {"steps": 6}, "distributed": {"timeout_s": PATIENCE_S}}
    config = tmp_path / "in.toml"
    config.write_text(dump(merge(tiny_run, changes)))
    with faults.tried("all ranks slow together"):
        slow = functools.partial(take_long, function)
        run = Run(["--config", str(config)], tmp_path / "said", ranks=2, before=slow)
        try:
            assert run.wait() == [0, 0], run.said()
        finally:
            run.end()


@pytest.mark.slow
def test_a_hung_rank_of_torchrun_is_named(tiny_run, tmp_path, faults):
    changes = {"train": {"steps": 10_000}, "distributed": {"timeout_s": TIMEOUT_S}}
    config, log = tmp_path / "in.toml", tmp_path / "run/metrics.jsonl"
    config.write_text(dump(merge(tiny_run, changes)))
    with faults.tried("hung rank, under torchrun"):
        run = Run(["--config", str(config)], tmp_path / "said", ranks=2, by_torchrun=True)
        try:
            wait_until(lambda: read_rows(log), run)
            hung = run.pid(1)
            os.kill(hung, signal.SIGSTOP)
            wait_until(lambda: "rank 1 did not answer at step" in run.said(), run)
            # The launcher asks it to end, which it cannot hear.
            os.kill(hung, signal.SIGKILL)
            assert run.wait() == [1]
            assert re.search(rf"exitcode *: {LOST}\b", run.said()), run.said()
        finally:
            run.end()
