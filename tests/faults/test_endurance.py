"""Long runs: what a run takes after its first steps is what it takes at its end.

The campaign trains twice 20,000 steps side by side, with a switch of phase at every third or fourth
step, and looks at the processes from outside; without it a sample of 600 steps is trained.

What does grow is the record: a run writes 150 bytes of metrics.jsonl and 250 of TensorBoard per
step here, where rows, switches and warnings are many, and a picture of 8 KiB at each evaluation.
"""

import json
import os
import random
import re
import shutil
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from hard_fast.runtime.configfile import dump, merge
from hard_fast.runtime.rows import read_rows
from hard_fast.train import main
from tests.faults.runs import Run, finish, outcome, saved_steps, spawn
from tests.tiny import TREE

SAMPLE, CAMPAIGN_PER_TRY = 600, 400
BATCH, CAPACITY, KEEP, LOG_EVERY, SAVE_EVERY = 8, 8, 2, 10, 50
CHANGES = {
    "data": {"size": 8, "num_train": 96, "num_test": 16},
    "teacher": {"name": "mlp", "options": {"hidden": [8]}},
    "schedule": {"max_augmentor_steps": 5},
    "bank": {"capacity": CAPACITY},
    "average": {"decay": 0.9},
    "train": {
        "steps": SAMPLE,
        "batch_size": BATCH,
        "log_every": LOG_EVERY,
        "eval_every_epochs": 10,
        "tensorboard": True,
    },
    "checkpoint": {"every_steps": SAVE_EVERY, "keep": KEEP},
}
RUN = merge(TREE, CHANGES)

# The first fifth of a run is its beginning: libraries load what they put off until it is needed,
# and the queues and the bank fill. The sample has so few steps that it takes two fifths.
FIFTHS = 5
GROWTH_KIB = 4096
# What is open for a moment: a file being written, and its folder.
HANDLES_IN_PASSING = 3
# For machines with other work to do.
SLOWER = 2.0


class Look(NamedTuple):
    """A process, and what it has on disk, after so many steps."""

    step: int
    rss_kib: int
    handles: int
    threads: int
    cpu_s: float
    checkpoints: int
    entries: int
    board_bytes: int


class Watched:
    """A run in a process of its own, looked at while it trains."""

    def __init__(self, config: Path, run_dir: Path, steps: int) -> None:
        self.run_dir, self.steps, self.looks = run_dir, steps, list[Look]()
        command = ["-m", "hard_fast.train", "--config", str(config), f"run_dir={run_dir}"]
        self.process = spawn(command, Path(f"{run_dir}.err"))

    def look(self) -> bool:
        """Look once; whether the run still goes on."""
        if self.process.poll() is not None:
            return False
        try:
            found = self._look()
        except (ProcessLookupError, FileNotFoundError, KeyError):
            return True  # It is about to end.
        # The last row is written when the steps are done and the report is not.
        if 0 < found.step < self.steps:
            self.looks.append(found)
        return True

    def _look(self) -> Look:
        place = Path(f"/proc/{self.process.pid}")
        status = dict(re.findall(r"(\w+):\s+(\d+)", (place / "status").read_text()))
        after_name = (place / "stat").read_text().rpartition(")")[2].split()
        ticks = int(after_name[11]) + int(after_name[12])
        return Look(
            rss_kib=int(status["VmRSS"]),
            handles=len(os.listdir(place / "fd")),
            threads=int(status["Threads"]),
            cpu_s=ticks / os.sysconf("SC_CLK_TCK"),
            checkpoints=len(list((self.run_dir / "checkpoints").glob("step_*.pt"))),
            entries=len(list((self.run_dir / "bank").glob("entry_*"))),
            board_bytes=sum(p.stat().st_size for p in (self.run_dir / "tensorboard").glob("*")),
            # Last, so that the other numbers are no later than it.
            step=newest_step(self.run_dir),
        )

    def fifths(self) -> Iterator[list[Look]]:
        """Looks by the fifth of the steps in which they fell."""
        for number in range(FIFTHS):
            first, end = (self.steps * n // FIFTHS for n in (number, number + 1))
            yield [look for look in self.looks if first <= look.step < end]


def newest_step(run_dir: Path) -> int:
    """The step of the last whole row, read from the end of the file alone."""
    path = run_dir / "metrics.jsonl"
    if not path.exists():
        return 0
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 8192))
        lines = file.read().split(b"\n")[1:-1]
    return max((json.loads(line)["step"] for line in lines), default=0)


def test_nothing_grows_and_one_seed_gives_one_run(request, tmp_path, faults):
    config, tries = tmp_path / "run.toml", request.config.getoption("--tries")
    steps = SAMPLE if tries < 10 else CAMPAIGN_PER_TRY * tries
    config.write_text(dump(merge(RUN, {"train": {"steps": steps}})))
    with faults.tried(f"{steps:,} steps, twice"):
        runs = [Watched(config, tmp_path / name, steps) for name in ("one", "two")]
        # A sum, since any() would stop looking at the first.
        while sum(run.look() for run in runs):
            time.sleep(0.02 if steps == SAMPLE else 0.25)
        for run in runs:
            assert run.process.returncode == 0, Path(f"{run.run_dir}.err").read_text()
            check_process(run)
            check_steps(run)
            check_files(run)
        assert_alike(runs[0].run_dir, runs[1].run_dir)


def assert_alike(run_dir: Path, other_dir: Path) -> None:
    """The same weights, and the same rows but for what depends on the clock."""
    (weights, rows), (others, other_rows) = outcome(run_dir), outcome(other_dir)
    assert rows == other_rows
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def check_process(run: Watched) -> None:
    """Memory, handles and threads at the end are those after the beginning."""
    _, second, third, later, last = run.fifths()
    early = second if run.steps > SAMPLE else third
    assert min(len(early), len(last)) >= 3, "too few looks to judge by"
    # Between evaluations, whose pictures take 9 MiB for a moment.
    before, after = (statistics.median(look.rss_kib for look in looks) for looks in (early, last))
    assert after - before < GROWTH_KIB, f"memory has grown by {after - before} KiB"
    handles = [min(look.handles for look in looks) for looks in (early, later, last)]
    assert handles[0] == handles[1] == handles[2], f"open handles: {handles}"
    assert max(look.handles for look in last) <= handles[0] + HANDLES_IN_PASSING
    threads = [max(look.threads for look in looks) for looks in (early, last)]
    assert threads[0] == threads[1], f"threads: {threads}"


def check_steps(run: Watched) -> None:
    """A step takes as long at the end as after the beginning."""
    _, early, *_, last = (
        (looks[-1].cpu_s - looks[0].cpu_s) / (looks[-1].step - looks[0].step)
        for looks in run.fifths()
    )
    assert last < SLOWER * early, f"a step took {early:.2g} s, then {last:.2g} s of the processor"
    if run.steps > SAMPLE:
        # By the clock only here: what else the machine does in a few seconds would count.
        rows = [row for row in read_rows(run.run_dir / "metrics.jsonl") if row["kind"] == "train"]
        times = [BATCH / row["timing"]["images_per_s"] for row in rows]
        fifth = len(times) // FIFTHS
        early, last = (statistics.median(times[n * fifth :][:fifth]) for n in (1, FIFTHS - 1))
        assert last < SLOWER * early, f"a step took {early:.2g} s, then {last:.2g} s"


def check_files(run: Watched) -> None:
    """Checkpoints and the bank's files are bounded, and the record grows by the same each step."""
    rows = read_rows(run.run_dir / "metrics.jsonl")
    # One is written before the oldest is removed.
    assert max(look.checkpoints for look in run.looks) <= KEEP + 1
    assert len(list((run.run_dir / "checkpoints").iterdir())) == 2 * KEEP
    saved = 1 + sum(row["kind"] == "switch" and row["to"] == "student" for row in rows)
    assert saved > 5 * CAPACITY, "too few augmentors to see any replaced"
    newest = run.run_dir / "checkpoints" / f"step_{run.steps:09d}.pt"
    bank = torch.load(newest, weights_only=True)["bank"]
    assert len(bank["entries"]) == CAPACITY and bank["num_seen"] == saved
    assert max(bank["entries"]) > saved // 2
    assert {path.name for path in (run.run_dir / "bank").iterdir()} == needed(run.run_dir)
    # Those of the checkpoints, the first, and what has come since the last checkpoint.
    assert max(look.entries for look in run.looks) <= (KEEP + 1) * CAPACITY + 1 + SAVE_EVERY
    sizes = [0] * (FIFTHS + 1)
    for line in (run.run_dir / "metrics.jsonl").read_text().splitlines():
        sizes[json.loads(line)["step"] * FIFTHS // run.steps] += len(line)
    assert sizes[FIFTHS - 1] < 1.2 * sizes[1], f"bytes of metrics.jsonl by fifth: {sizes}"
    if run.steps > SAMPLE:
        # TensorBoard writes now and then, so a sample is too short to see how much.
        boards = [looks[-1].board_bytes - looks[0].board_bytes for looks in run.fifths()]
        assert 0 < boards[-1] < 1.5 * boards[1], f"bytes of TensorBoard by fifth: {boards}"


def needed(run_dir: Path) -> set[str]:
    """The bank's files that some checkpoint names, and the first."""
    names = {"entry_000000.safetensors"}
    for path in (run_dir / "checkpoints").glob("step_*.pt"):
        numbers = torch.load(path, weights_only=True)["bank"]["entries"]
        names |= {f"entry_{number:06d}.safetensors" for number in numbers}
    return names


def test_an_older_checkpoint_still_finds_the_augmentors_it_names(tmp_path, faults):
    config = tmp_path / "run.toml"
    changes = {"bank": {"capacity": 4}, "train": {"steps": 120}, "checkpoint": {"every_steps": 40}}
    config.write_text(dump(merge(RUN, changes)))
    with faults.tried("newest checkpoint damaged, its augmentors replaced") as attempt:
        assert main(["--config", str(config), f"run_dir={tmp_path / 'run'}"]) == 0
        shutil.copytree(tmp_path / "run", tmp_path / "whole")
        older, newest = saved_steps(tmp_path / "run")
        assert len(needed(tmp_path / "run")) > 4 + 1, "nothing was replaced between the two"
        (tmp_path / "run" / "checkpoints" / f"step_{newest:09d}.pt").write_bytes(b"torn")
        (tmp_path / "run" / "summary.json").unlink()
        assert main(["--config", str(config), f"run_dir={tmp_path / 'run'}"]) == 0
        attempt.lost_steps = newest - older
        assert_alike(tmp_path / "run", tmp_path / "whole")


def test_a_run_that_is_killed_again_and_again_finds_the_augmentors_it_needs(
    request, tmp_path, faults
):
    config, run_dir, chance = tmp_path / "run.toml", tmp_path / "run", random.Random(0)
    tries = max(2, request.config.getoption("--tries") // 2)
    every = 6
    changes = {
        "bank": {"capacity": 3},
        "train": {"steps": 60 + 2 * every * tries, "gallery": False, "tensorboard": False},
        "checkpoint": {"every_steps": every},
    }
    config.write_text(dump(merge(RUN, changes)))
    assert main(["--config", str(config), f"run_dir={tmp_path / 'whole'}"]) == 0
    command = ["--config", str(config), f"run_dir={run_dir}"]
    for _ in range(tries):
        with faults.tried("killed while augmentors are replaced") as attempt:
            before = max(saved_steps(run_dir), default=0)
            run = Run(command, tmp_path / "said")
            while max(saved_steps(run_dir), default=0) <= before and not run.is_over():
                time.sleep(0.002)
            time.sleep(chance.uniform(0.0, 0.1))
            assert not run.is_over() or run.codes() == [0], run.said()
            # By SIGKILL.
            run.end()
            attempt.lost_steps = max(0, newest_step(run_dir) - max(saved_steps(run_dir)))
            assert attempt.lost_steps <= every + 1
            assert needed(run_dir) <= {path.name for path in (run_dir / "bank").iterdir()}
    finish(command, tmp_path / "said")
    assert {path.name for path in (run_dir / "bank").iterdir()} == needed(run_dir)
    assert_alike(run_dir, tmp_path / "whole")


@pytest.mark.gpu
def test_device_memory_does_not_grow(tmp_path):
    config, run_dir = tmp_path / "run.toml", tmp_path / "run"
    changes = {"train": {"device": "cuda"}, "compile": {"mode": "off"}}
    config.write_text(dump(merge(RUN, changes)))
    seen, is_over = list[tuple[int, int]](), threading.Event()

    def watch() -> None:
        while not is_over.wait(0.001):
            seen.append((torch.cuda.memory_allocated(), newest_step(run_dir)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        assert main(["--config", str(config), f"run_dir={run_dir}"]) == 0
    finally:
        is_over.set()
        watcher.join()
    # The least of many looks is what stays between steps.
    early, last = (
        min(size for size, step in seen if first <= step < first + SAMPLE // FIFTHS)
        for first in (SAMPLE * 2 // FIFTHS, SAMPLE * 4 // FIFTHS)
    )
    assert last < early + 2**16
