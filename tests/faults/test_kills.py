"""Runs that are killed anywhere: the same command continues, and nothing shows that it stopped."""

import contextlib
import itertools
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from hard_fast.runtime.configfile import dump
from hard_fast.runtime.pulse import LOST
from hard_fast.runtime.rows import read_rows
from tests.faults.runs import (
    EPOCH,
    LOG_EVERY,
    RUN,
    SAVE_EVERY,
    STEPS,
    Run,
    finish,
    last_step,
    outcome,
    saved_steps,
    state,
)

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
PLACES = ((1, "process"), (2, "torchrun"), (2, "rank 0"), (2, "rank 1"))
# Saving takes much less; the rest is for machines with other work to do.
SECONDS_TO_SAVE = 20.0


def is_writing(folder: Path) -> bool:
    """Whether a file in it has its temporary name yet."""
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        return any(entry.name.startswith(".") for entry in entries)
    return False


def newest_row(run_dir: Path) -> dict:
    return next(reversed(read_rows(run_dir / "metrics.jsonl")), {"kind": "none", "step": 0})


def is_evaluating(run_dir: Path) -> bool:
    """Whether the row before the evaluation is there, and that of the evaluation is not."""
    row = newest_row(run_dir)
    return row["kind"] == "train" and row["step"] > 0 and row["step"] % (3 * EPOCH) == 0


def is_between_epochs(run_dir: Path) -> bool:
    """Whether the newest checkpoint ends an epoch, and of the next nothing has been told."""
    step = max(saved_steps(run_dir), default=0)
    return 0 < step == newest_row(run_dir)["step"] and step % EPOCH == 0


MOMENTS: dict[str, Callable[[Path], bool] | None] = {
    "any step": None,
    "a checkpoint's write": lambda run_dir: is_writing(run_dir / "checkpoints"),
    "an evaluation": is_evaluating,
    "a phase switch": lambda run_dir: newest_row(run_dir)["kind"] == "switch",
    "a bank entry's write": lambda run_dir: is_writing(run_dir / "bank"),
    "an epoch's turn": is_between_epochs,
}


class Case(NamedTuple):
    """What is done to a run, and when. target: the process that it is done to; torchrun passes
    signals on, but for SIGKILL."""

    moment: str
    signal: signal.Signals
    data: str
    ranks: int
    target: str


def cases(num: int) -> list[Case]:
    """Moments and signals in turn, and with each moment all data and targets in another order."""
    rounds = []
    for number in range(len(MOMENTS)):
        rounds.append(list(itertools.product(("arrays", "pictures"), PLACES)))
        # So that the first few start no torchrun, which takes the longest.
        random.Random(number + 13).shuffle(rounds[-1])
    found = []
    for i in range(num):
        turn, number = divmod(i, len(MOMENTS))
        data, place = rounds[number][turn % len(rounds[number])]
        asked = SIGNALS[(turn + number) % len(SIGNALS)]
        found.append(Case(list(MOMENTS)[number], asked, data, *place))
    return found


def test_the_campaign_has_every_moment_with_every_signal():
    found = cases(50)
    each = Counter((case.moment, case.signal) for case in found)
    assert len(each) == len(MOMENTS) * len(SIGNALS) and min(each.values()) >= 2
    assert len({(case.data, case.ranks, case.target, case.signal) for case in found}) >= 25


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        found = cases(metafunc.config.getoption("--tries"))
        names = [
            f"{i}-{c.signal.name}-{c.moment}-{c.data}-{c.ranks}-{c.target}"
            for i, c in enumerate(found)
        ]
        metafunc.parametrize(
            ("case", "number"), list(zip(found, range(len(found)), strict=True)), ids=names
        )


class Unbroken(NamedTuple):
    """A run that nothing happened to: its file, what came out, how long it took to train."""

    config: Path
    weights: dict[str, torch.Tensor]
    rows: list[dict]
    seconds: float


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Unbroken]:
    """The unbroken run of some data and number of ranks, which is trained once."""
    place, known = tmp_path_factory.mktemp("unbroken"), {}
    for part, num in (("train", 8 * EPOCH), ("val", 3)):
        for name, seed in (("cat", 0), ("dog", 100)):
            (place / "pictures" / part / name).mkdir(parents=True)
            for i in range(num):
                noise = np.random.default_rng(seed + i).integers(0, 256, (20, 20, 3), np.uint8)
                Image.fromarray(noise).save(place / "pictures" / part / name / f"{i}.jpg")
    where = str(place / "pictures")
    pictures = {"kind": "pictures", "root": where, "size": 16, "threads": 1, "val_share": 0.0}

    def train(data: str, ranks: int) -> Unbroken:
        if (data, ranks) not in known:
            config, run_dir = place / f"{data}-{ranks}.toml", place / f"{data}-{ranks}"
            config.write_text(dump(RUN if data == "arrays" else RUN | {"data": pictures}))
            run = start(config, run_dir, ranks)
            since = began(run_dir, run)
            assert run.wait() == [0] * ranks, run.said()
            seconds = time.monotonic() - since
            known[data, ranks] = Unbroken(config, *outcome(run_dir), seconds)
        return known[data, ranks]

    return train


def start(config: Path, run_dir: Path, ranks: int, *, by_torchrun: bool = False) -> Run:
    arguments = ["--config", str(config), f"run_dir={run_dir}"]
    said = run_dir.with_name(f"{run_dir.name}.said")
    return Run(arguments, said, ranks=ranks, by_torchrun=by_torchrun)


def began(run_dir: Path, run: Run) -> float:
    """Wait for the first step; when that was."""
    while not (run_dir / "metrics.jsonl").exists():
        assert not run.is_over(), run.said()
        time.sleep(0.01)
    return time.monotonic()


def test_a_killed_run_ends_like_one_that_nothing_happened_to(
    case: Case, number: int, unbroken, tmp_path, faults
):
    whole, run_dir = unbroken(case.data, case.ranks), tmp_path / "run"
    how = "killed" if case.signal is signal.SIGKILL else "asked to end"
    with faults.tried(f"{how} in {case.moment}") as attempt:
        run = start(whole.config, run_dir, case.ranks, by_torchrun=case.target == "torchrun")
        try:
            began(run_dir, run)
            wait_for(case.moment, random.Random(number), whole, run_dir, run)
            attempt.lost_steps = strike(case, run, run_dir)
        finally:
            run.end()
        again = ["--config", str(whole.config), f"run_dir={run_dir}"]
        finish(again, tmp_path / "said again", case.ranks)
        weights, rows = outcome(run_dir)
        assert rows == whole.rows
        assert weights.keys() == whole.weights.keys()
        assert all(torch.equal(weights[name], whole.weights[name]) for name in weights)


def wait_for(moment: str, chance: random.Random, whole: Unbroken, run_dir: Path, run: Run) -> None:
    """Until the run is there for one of the first times; rank 0 is left stopped."""
    is_there, times = MOMENTS[moment], chance.randrange(3)
    if is_there is None:
        # By steps, since the machine may be slower than it was.
        step = chance.uniform(0.0, 0.9) * STEPS
        while last_step(run_dir) < step - LOG_EVERY and not run.is_over():
            time.sleep(0.005)
        time.sleep(chance.uniform(0.0, LOG_EVERY / STEPS) * whole.seconds)
        return
    with contextlib.suppress(ProcessLookupError):
        pid = run.pid(0)
        while not run.is_over():
            if is_there(run_dir):
                os.kill(pid, signal.SIGSTOP)
                while state(pid) not in ("T", "Z", None):
                    time.sleep(0.0005)
                # What it did before it stopped may have ended the moment.
                if times <= 0 and is_there(run_dir):
                    return
                os.kill(pid, signal.SIGCONT)
                times -= 1
            time.sleep(0.0002)


def strike(case: Case, run: Run, run_dir: Path) -> int:
    """Send the signal and see how the run ends; the steps that were told and not saved."""
    since, last = time.monotonic(), last_step(run_dir)
    try:
        rank = int(case.target[-1]) if case.target.startswith("rank") else None
        if case.signal is signal.SIGKILL and case.target == "torchrun":
            # Its ranks would go on without it, so they go as well.
            run.end()
        else:
            os.kill(run.pid(rank), case.signal)
        with contextlib.suppress(ProcessLookupError):
            os.kill(run.pid(0), signal.SIGCONT)
    except ProcessLookupError:
        # Nor did it end by itself for another reason.
        assert set(run.wait()) == {0}, run.said()
        pytest.skip("the run was over before its time")
    codes = run.wait()
    took = time.monotonic() - since
    saved = saved_steps(run_dir)
    if (run_dir / "summary.json").exists():
        return 0
    lost = max(0, last - max(saved, default=0))
    if case.signal is signal.SIGKILL:
        assert lost <= SAVE_EVERY + 1
        if rank is not None:
            assert codes[rank] == -case.signal and codes[1 - rank] == LOST, run.said()
        return lost
    assert took < SECONDS_TO_SAVE and lost == 0
    if case.target != "torchrun":
        # Rank 0 leaves an evaluation where it is asked, and the other, if it was not, misses it.
        wanted = {128 + case.signal} | ({LOST} if "(evaluation)" in run.said() else set())
        assert set(codes) <= wanted and codes[0] == 128 + case.signal, run.said()
    return 0
