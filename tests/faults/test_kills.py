"""Runs that are killed anywhere: the same command continues, and nothing shows that it stopped."""

import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from hard_fast.runtime.configfile import dump
from hard_fast.runtime.rows import read_rows

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
PLACES = ((1, "launched"), (2, "launched"), (2, "rank 0"), (2, "rank 1"))
SAVE_EVERY = 6
# Saving takes much less; the rest is for machines with other work to do.
SECONDS_TO_SAVE = 20.0

RUN = {
    "student": {"name": "cnn", "options": {"widths": [4, 4, 4], "batch_norm": True}},
    "teacher": {"name": "cnn", "options": {"widths": [4, 4, 4], "dropout": 0.0}},
    "augmentor": {"kind": "affine", "std": 0.1},
    "objective": {"kind": "hard"},
    "schedule": {
        "kind": "threshold",
        "l_min": 0.98,
        "l_max": 0.99,
        "consecutive": 1,
        "max_augmentor_steps": 2,
        "lag": 1,
    },
    "optim": {"lr": 1e-3},
    "augmentor_optim": {"lr": 0.01},
    "average": {"decay": 0.9},
    "train": {
        "steps": 90,
        "batch_size": 16,
        "log_every": 5,
        "eval_every_epochs": 3,
        "tensorboard": False,
        "device": "cpu",
    },
    "checkpoint": {"every_steps": SAVE_EVERY},
}
ARRAYS = {"kind": "synthetic", "size": 16, "channels": 1, "num_train": 72, "num_test": 20}


class Case(NamedTuple):
    """What is done to a run. target: the launched process (of which torchrun passes signals on,
    but for SIGKILL) or one of the ranks."""

    signal: signal.Signals
    data: str
    ranks: int
    target: str


def cases(num: int) -> list[Case]:
    """Every combination in turn, in an order that any few of them cover much of."""
    everything = itertools.product(SIGNALS, ("arrays", "pictures"), PLACES)
    found = [Case(number, data, *place) for number, data, place in everything]
    random.Random(1).shuffle(found)
    return [found[i % len(found)] for i in range(num)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        found = cases(metafunc.config.getoption("--tries"))
        names = [f"{i}-{c.signal.name}-{c.data}-{c.ranks}-{c.target}" for i, c in enumerate(found)]
        metafunc.parametrize(
            ("case", "number"), list(zip(found, range(len(found)), strict=True)), ids=names
        )


def start(config: Path, run_dir: Path, ranks: int) -> subprocess.Popen:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    torchrun += ["--signals-to-handle", "SIGTERM,SIGINT,SIGUSR1"]
    launch = torchrun if ranks == 2 else []
    return subprocess.Popen(
        [
            sys.executable,
            *launch,
            "-m",
            "hard_fast.train",
            "--config",
            str(config),
            f"run_dir={run_dir}",
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=(run_dir.parent / f"{run_dir.name}.err").open("a"),
        start_new_session=True,
    )


def finish(config: Path, run_dir: Path, ranks: int) -> None:
    process = start(config, run_dir, ranks)
    assert process.wait(timeout=300) == 0, (run_dir.parent / f"{run_dir.name}.err").read_text()


def outcome(run_dir: Path) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """Final weights, and the rows without what depends on the clock."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    rows = [{key: value for key, value in row.items() if key != "timing"} for row in rows]
    return load_file(run_dir / "student.safetensors"), rows


def saved_steps(run_dir: Path) -> list[int]:
    notes = (run_dir / "checkpoints").glob("step_*.json")
    return sorted(int(note.stem.removeprefix("step_")) for note in notes)


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
    for part, num in (("train", 12), ("val", 3)):
        for name, seed in (("cat", 0), ("dog", 100)):
            (place / "pictures" / part / name).mkdir(parents=True)
            for i in range(num):
                noise = np.random.default_rng(seed + i).integers(0, 256, (20, 20, 3), np.uint8)
                Image.fromarray(noise).save(place / "pictures" / part / name / f"{i}.jpg")
    where = str(place / "pictures")
    pictures = {"kind": "pictures", "root": where, "size": 16, "threads": 1, "val_share": 0.0}

    def train(data: str, ranks: int) -> Unbroken:
        if (data, ranks) not in known:
            config = place / f"{data}-{ranks}.toml"
            config.write_text(dump({"data": ARRAYS if data == "arrays" else pictures, **RUN}))
            run_dir = place / f"{data}-{ranks}"
            process = start(config, run_dir, ranks)
            since = began(run_dir, process)
            assert process.wait(timeout=300) == 0, (place / f"{run_dir.name}.err").read_text()
            known[data, ranks] = Unbroken(config, *outcome(run_dir), time.monotonic() - since)
        return known[data, ranks]

    return train


def began(run_dir: Path, process: subprocess.Popen) -> float:
    """Wait for the first step; when that was."""
    while not (run_dir / "metrics.jsonl").exists():
        assert process.poll() is None, (run_dir.parent / f"{run_dir.name}.err").read_text()
        time.sleep(0.01)
    return time.monotonic()


def pid_of(process: subprocess.Popen, rank: int) -> int:
    """The process of a rank below torchrun."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for child in children:
        environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        if f"RANK={rank}".encode() in environment:
            return int(child)
    raise ProcessLookupError(f"rank {rank} is gone")


def test_a_killed_run_ends_like_one_that_nothing_happened_to(
    case: Case, number: int, unbroken, tmp_path, faults
):
    whole, run_dir = unbroken(case.data, case.ranks), tmp_path / "run"
    what = f"{case.signal.name}, {case.data}, {case.ranks} rank(s), to {case.target}"
    with faults.tried(what) as attempt:
        process = start(whole.config, run_dir, case.ranks)
        wait_for_a_moment(random.Random(number), whole, run_dir, process)
        attempt.lost_steps = strike(case, process, run_dir)
        finish(whole.config, run_dir, case.ranks)
        weights, rows = outcome(run_dir)
        assert rows == whole.rows
        assert weights.keys() == whole.weights.keys()
        assert all(torch.equal(weights[name], whole.weights[name]) for name in weights)


def wait_for_a_moment(
    chance: random.Random, whole: Unbroken, run_dir: Path, process: subprocess.Popen
) -> None:
    """Until any moment of the run; by steps, since the machine may be slower than it was."""
    began(run_dir, process)
    steps = RUN["train"]["steps"]
    step = chance.uniform(0.0, 0.9) * steps
    while last_step(run_dir) < step - RUN["train"]["log_every"] and process.poll() is None:
        time.sleep(0.005)
    time.sleep(chance.uniform(0.0, RUN["train"]["log_every"] / steps) * whole.seconds)


def strike(case: Case, process: subprocess.Popen, run_dir: Path) -> int:
    """Send the signal and see how the run ends; the steps that were told and not saved."""
    try:
        pid = process.pid if case.target == "launched" else pid_of(process, int(case.target[-1]))
        since, last = time.monotonic(), last_step(run_dir)
        os.kill(pid, case.signal)
    except ProcessLookupError:
        # Nor did it end by itself for another reason.
        assert process.wait(timeout=120) == 0
        pytest.skip("the run was over before its time")
    code = process.wait(timeout=120)
    took = time.monotonic() - since
    if case.ranks == 2:
        # Ranks whose launcher is gone would go on without it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    steps = saved_steps(run_dir)
    if (run_dir / "summary.json").exists():
        return 0
    lost = max(0, last - (steps[-1] if steps else 0))
    if case.signal is signal.SIGKILL:
        assert lost <= SAVE_EVERY + 1
    else:
        assert took < SECONDS_TO_SAVE and lost == 0
        assert case.ranks == 2 or code == 128 + case.signal
    return lost


def last_step(run_dir: Path) -> int:
    """The step of the last row told so far."""
    return max((row["step"] for row in read_rows(run_dir / "metrics.jsonl")), default=0)
