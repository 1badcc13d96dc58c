"""Memory that is too little: one line that says what to lower, wherever it runs out."""

import functools
import resource
from pathlib import Path

import pytest

from hard_fast.runtime.configfile import dump, merge
from tests.faults.runs import TREE, Run

SPARE_BYTES = 2**30
LARGE = {"data": {"size": 160, "num_train": 160}, "train": {"batch_size": 128}}
WIDE = {"name": "cnn", "options": {"widths": [64, 64, 64]}}
MANY = {"num_train": 160, "num_test": 1000, "size": 160}
# By where it runs out; what there is of the run then: nothing, its first checkpoint, a row.
DEMANDS = {
    "the student": ({"student": {"options": {"hidden": [1_000_000, 10_000]}}}, ""),
    "the teacher": ({"teacher": {"name": "mlp", "options": {"hidden": [1_000_000, 10_000]}}}, ""),
    "the data": ({"data": {"size": 1000, "num_train": 1000}}, ""),
    "the first step": ({**LARGE, "student": WIDE}, "checkpoints/step_000000000.json"),
    "the first evaluation": (
        {
            "data": MANY,
            "student": WIDE,
            "schedule": {"kind": "joint"},
            "train": {"batch_size": 4, "eval_every_epochs": 0.01, "log_every": 1},
        },
        "metrics.jsonl",
    ),
}


def spare(num_bytes: int, rank: int) -> None:
    """Give this process so much memory beyond what it has."""
    with open("/proc/self/statm") as file:
        has = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (has + num_bytes, has + num_bytes))


def num_bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


@pytest.mark.parametrize("place", DEMANDS)
def test_too_little_memory_is_one_line(place, tmp_path, faults):
    demand, reached = DEMANDS[place]
    config = tmp_path / "run.toml"
    config.write_text(dump(merge(TREE, demand)))
    arguments = ["--config", str(config), f"run_dir={tmp_path / 'run'}"]
    with faults.tried("out of memory"):
        before = functools.partial(spare, SPARE_BYTES)
        run = Run(arguments, tmp_path / "said", before=before)
        try:
            assert run.wait() == [2], run.said()
        finally:
            run.end()
        assert "Traceback" not in run.said()
        sizes = {name: num_bytes(tmp_path / "run" / name) for _, name in DEMANDS.values() if name}
        assert bool(sizes[reached]) if reached else not any(sizes.values())
        assert reached == "metrics.jsonl" or not sizes["metrics.jsonl"]
        (line,) = (line for line in run.said().splitlines() if line.startswith("error"))
        assert line.startswith("error: out of memory")
        for key in ("train.batch_size", "train.accumulate", "teacher.precision", "checkpointing"):
            assert key in line
