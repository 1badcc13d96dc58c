"""A group of processes that torchrun starts again, because one of them died, goes on by itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hard_fast.runtime.configfile import dump, merge
from hard_fast.runtime.rows import read_rows

# Rank 1 of the first start dies as soon as there is a checkpoint to go on from.
MORTAL = """
import os, signal, sys, threading, time
from pathlib import Path
from hard_fast.runtime.rendezvous import was_restarted
from hard_fast.train import main

checkpoints, note, started = Path(sys.argv[1]), Path(sys.argv[2]), time.time()

def is_written(path):
    try:
        return path.stat().st_mtime > started
    except FileNotFoundError:
        return False

def die():
    while not any(is_written(path) for path in checkpoints.glob("*.json")):
        time.sleep(0.001)
    note.write_text(str(max(path.stem for path in checkpoints.glob("*.json"))))
    os.kill(os.getpid(), signal.SIGKILL)

if os.environ["RANK"] == "1" and not was_restarted():
    threading.Thread(target=die, daemon=True).start()
sys.exit(main(sys.argv[3:]))
"""


def run_two(*arguments: str) -> str:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [sys.executable, *torchrun, "--max-restarts=1", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def result(run_dir: Path) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """The weights and the rows of a finished run, without what depends on the clock."""
    rows = read_rows(run_dir / "metrics.jsonl")
    rows = [{key: value for key, value in row.items() if key != "timing"} for row in rows]
    return load_file(run_dir / "student.safetensors"), rows


@pytest.mark.slow
def test_a_run_whose_process_died_is_bit_equal_to_an_unbroken_one(tiny_run, tmp_path):
    changes = {
        "student": {"options": {"hidden": [16], "dropout": 0.1}},
        "train": {"steps": 60, "log_every": 7, "gallery": False},
        "checkpoint": {"every_steps": 5},
    }
    config, script = tmp_path / "config-in.toml", tmp_path / "mortal.py"
    config.write_text(dump(merge(tiny_run, changes)))
    script.write_text(MORTAL)
    arguments = ["--config", str(config)]
    whole = tmp_path / "whole"
    run_two("-m", "hard_fast.train", *arguments, f"run_dir={whole}")
    want_weights, want_rows = result(whole)
    # The second time there is a finished run in the way, which is moved aside once and not twice.
    for resume in ("auto", "never"):
        note, run_dir = tmp_path / f"died-{resume}", Path(tiny_run["run_dir"])
        checkpoints = run_dir / "checkpoints"
        run_two(str(script), str(checkpoints), str(note), *arguments, "--resume", resume)
        assert "step_00000000" <= note.read_text() < "step_000000060", "it died on the way"
        weights, rows = result(run_dir)
        assert rows == want_rows
        assert weights.keys() == want_weights.keys()
        assert all(torch.equal(weights[name], want_weights[name]) for name in weights)
    assert [p.name for p in tmp_path.glob("run.old-*")] == ["run.old-1"]
