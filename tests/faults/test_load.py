"""Pictures from a slow disk, from one that stalls, and on a busy machine: later, and the same.

A disk is made slow without leave of the system's: a small library in front of it (LD_PRELOAD) waits
whenever a file below a folder is opened, and as long as a certain file exists, the stall. DALI and
our readers of shards open a file for every picture, so every picture waits; what is read from it
afterwards is here less than a block. A machine is made busy by processes that count, of a higher
priority than the run.
"""

import contextlib
import io
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from hard_fast.runtime.configfile import dump, merge
from hard_fast.runtime.rows import read_rows
from hard_fast.train import main
from tests.faults.runs import RUN, last_step, outcome

SAMPLE, CAMPAIGN = 40, 300
LOG_EVERY = 5
# Steps that the batches decoded ahead suffice for, and that a row is late.
AHEAD = 10
STALL_S, TIMEOUT_S = 3.0, 400.0
# A folder's pictures are opened one after the other by one thread of DALI, those in shards by eight
# of ours: either way a batch takes 160 ms.
OPENING_US = {"folder": 10_000, "shards": 80_000}
SPINNERS_PER_CORE = 3

SLOW_DISK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void wait_for_disk(const char *path) {
    const char *folder = getenv("SLOW_FOLDER");
    if (folder && path && !strncmp(path, folder, strlen(folder))) {
        usleep(atoi(getenv("SLOW_US")));
        while (!access(getenv("SLOW_STALL"), F_OK)) usleep(10000);
    }
}

#define OPEN(name)                                                                     \\
    int name(const char *path, int flags, ...) {                                       \\
        va_list rest;                                                                  \\
        va_start(rest, flags);                                                         \\
        int mode = va_arg(rest, int);                                                  \\
        va_end(rest);                                                                  \\
        wait_for_disk(path);                                                           \\
        int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, #name);                 \\
        return real(path, flags, mode);                                                \\
    }
#define FOPEN(name)                                                                    \\
    FILE *name(const char *path, const char *mode) {                                   \\
        wait_for_disk(path);                                                           \\
        FILE *(*real)(const char *, const char *) = dlsym(RTLD_NEXT, #name);           \\
        return real(path, mode);                                                       \\
    }
OPEN(open)
OPEN(open64)
FOPEN(fopen)
FOPEN(fopen64)
"""

both_layouts = pytest.mark.parametrize(
    "layout", ["folder", pytest.param("shards", marks=pytest.mark.slow)]
)


class Idle(NamedTuple):
    """A run that nothing was beside: its file, what came out, and its share of waiting."""

    config: Path
    pictures: Path
    weights: dict[str, torch.Tensor]
    rows: list[dict]
    wait: float

    def assert_same(self, run_dir: Path) -> None:
        weights, rows = outcome(run_dir)
        assert rows == self.rows
        assert weights.keys() == self.weights.keys()
        assert all(torch.equal(weights[name], self.weights[name]) for name in weights)


@pytest.fixture(scope="module")
def num_steps(request: pytest.FixtureRequest) -> int:
    return SAMPLE if request.config.getoption("--tries") < 10 else CAMPAIGN


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory, num_steps: int) -> Callable[[str], Idle]:
    """The run of a layout that nothing was beside, which is trained once."""
    place, known = tmp_path_factory.mktemp("idle"), dict[str, Idle]()
    pictures = place / "pictures"
    data = draw_pictures(pictures)
    changes = {"train": {"steps": num_steps, "log_every": LOG_EVERY, "gallery": False}}

    def train(layout: str) -> Idle:
        if layout not in known:
            config, run_dir = place / f"{layout}.toml", place / layout
            config.write_text(dump(merge(RUN | {"data": data[layout]}, changes)))
            assert main(["--config", str(config), f"run_dir={run_dir}"]) == 0
            known[layout] = Idle(config, pictures, *outcome(run_dir), wait_of(run_dir))
        return known[layout]

    return train


def draw_pictures(place: Path) -> dict[str, dict]:
    """The same pictures as a folder and as shards: the `data` of each."""
    shared = {"kind": "pictures", "size": 16, "threads": 1, "val_share": 0.0}
    for part, num in (("train", 48), ("val", 2)):
        (place / part).mkdir(parents=True)
        with tarfile.open(place / f"{part}.tar", "w") as shard:
            for i in range(2 * num):
                noise = np.random.default_rng(i).integers(0, 256, (20, 20, 3), np.uint8)
                picture = place / part / ("cat", "dog")[i % 2] / f"{i}.jpg"
                picture.parent.mkdir(exist_ok=True)
                Image.fromarray(noise).save(picture)
                held = {f"{i}.jpg": picture.read_bytes(), f"{i}.cls": b"%d" % (i % 2)}
                for name, payload in held.items():
                    member = tarfile.TarInfo(name)
                    member.size = len(payload)
                    shard.addfile(member, io.BytesIO(payload))
    shards = {"root": f"{place}/train.tar", "val_root": f"{place}/val.tar", "num_classes": 2}
    return {"folder": shared | {"root": str(place)}, "shards": shared | shards}


def wait_of(run_dir: Path) -> float:
    """The share of waiting in the rows, but for the first: the pipeline is built in it."""
    rows = [row for row in read_rows(run_dir / "metrics.jsonl") if row["kind"] == "train"]
    return statistics.median(row["timing"]["data_wait"] for row in rows[1:])


@pytest.fixture(scope="module")
def slow_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that waits."""
    place = tmp_path_factory.mktemp("slow_disk")
    if (compiler := shutil.which("cc") or shutil.which("gcc")) is None:
        pytest.skip("needs a C compiler")
    (place / "slow_disk.c").write_text(SLOW_DISK)
    built = [compiler, "-shared", "-fPIC", "-o", "slow_disk.so", "slow_disk.c", "-ldl"]
    subprocess.run(built, cwd=place, check=True)
    return place / "slow_disk.so"


def start(idle: Idle, run_dir: Path, *before: str) -> subprocess.Popen:
    """The same run in a process of its own, with some words before its command."""
    command = [*before, sys.executable, "-m", "hard_fast.train", "--config", str(idle.config)]
    return subprocess.Popen(
        [*command, f"run_dir={run_dir}"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=run_dir.with_suffix(".err").open("w"),
    )


def wait_for_step(step: int, run_dir: Path, process: subprocess.Popen) -> None:
    until = time.monotonic() + TIMEOUT_S
    while last_step(run_dir) < step:
        assert process.poll() is None, run_dir.with_suffix(".err").read_text()
        assert time.monotonic() < until, f"step {step} does not come"
        time.sleep(0.02)


@both_layouts
def test_a_slow_disk_that_stalls(layout, idle, slow_disk, num_steps, tmp_path, faults):
    known, run_dir, stall = idle(layout), tmp_path / "run", tmp_path / "stall"
    given = {
        "LD_PRELOAD": str(slow_disk),
        "SLOW_FOLDER": str(known.pictures),
        "SLOW_US": str(OPENING_US[layout]),
        "SLOW_STALL": str(stall),
    }
    with faults.tried(f"slow disk that stalls, {layout}"):
        process = start(
            known, run_dir, "env", *(f"{name}={value}" for name, value in given.items())
        )
        wait_for_step(num_steps // 2, run_dir, process)
        stall.touch()
        before = last_step(run_dir)
        time.sleep(STALL_S)
        # Not only slower: what was decoded ahead is used up, and then nothing comes.
        stuck = last_step(run_dir)
        time.sleep(1.0)
        assert before <= stuck == last_step(run_dir) <= before + AHEAD < num_steps
        assert process.poll() is None
        stall.unlink()
        assert process.wait(timeout=TIMEOUT_S) == 0, run_dir.with_suffix(".err").read_text()
        known.assert_same(run_dir)
        assert wait_of(run_dir) > max(0.5, known.wait + 0.2)
        told = run_dir.with_suffix(".err").read_text()
        assert "% waiting for data)" in told
        # One line of advice, once thirty seconds have passed.
        assert told.count("went in waiting for data") == (num_steps == CAMPAIGN)


@contextlib.contextmanager
def busy() -> Iterator[None]:
    """While it lasts, several processes take each core."""
    count = ["nice", "-n", "12", sys.executable, "-c", "while True: pass"]
    num = SPINNERS_PER_CORE * len(os.sched_getaffinity(0))
    processes = [subprocess.Popen(count) for _ in range(num)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["folder", "shards"])
def test_a_busy_machine(layout, idle, tmp_path, faults):
    known, run_dir = idle(layout), tmp_path / "run"
    with faults.tried(f"busy processor, {layout}"):
        process = start(known, run_dir, "nice", "-n", "19")
        wait_for_step(LOG_EVERY, run_dir, process)
        with busy():
            began_at, used_s = time.monotonic(), processor_s(process)
            wait_for_step(SAMPLE, run_dir, process)
            share = (processor_s(process) - used_s) / (time.monotonic() - began_at)
        assert process.wait(timeout=TIMEOUT_S) == 0, run_dir.with_suffix(".err").read_text()
        # Else the machine was not busy.
        assert share < 0.5
        known.assert_same(run_dir)


def processor_s(process: subprocess.Popen) -> float:
    """The time that processors have worked for a process."""
    after_name = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")
