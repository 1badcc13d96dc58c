"""A group of processes that torchrun starts again, because one of them died, goes on by itself."""

from pathlib import Path

import pytest
import torch

from hard_fast.runtime.configfile import dump, merge
from tests.faults.runs import TORCHRUN, finish, outcome, spawn

EVERY = 5
# Rank 1 of the first start dies after a step, when there is a checkpoint to go on from.
MORTAL = """
import os, signal, sys, threading, time
from pathlib import Path
from hard_fast.runtime import dist
from hard_fast.runtime.rendezvous import was_restarted
from hard_fast.runtime.rows import read_rows
from hard_fast.train import main

run_dir, note, step = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
started = time.time()

def newest_checkpoint():
    found = [0]
    for path in (run_dir / "checkpoints").glob("*.json"):
        try:
            if path.stat().st_mtime > started:
                found.append(int(path.stem.removeprefix("step_")))
        except FileNotFoundError:
            pass
    return max(found)

def last_row():
    return max((row["step"] for row in read_rows(run_dir / "metrics.jsonl")), default=0)

def die():
    while not newest_checkpoint() or last_row() < step:
        time.sleep(0.001)
    note.write_text(f"{last_row()} {newest_checkpoint()}")
    os.kill(os.getpid(), signal.SIGKILL)

if os.environ["RANK"] == "1" and not was_restarted():
    threading.Thread(target=die, daemon=True).start()
dist.end(main(sys.argv[4:]))
"""


@pytest.mark.slow
def test_a_run_whose_process_died_is_bit_equal_to_an_unbroken_one(tiny_run, tmp_path, faults):
    changes = {
        "student": {"options": {"hidden": [16], "dropout": 0.1}},
        "train": {"steps": 60, "log_every": 1, "gallery": False},
        "checkpoint": {"every_steps": EVERY},
    }
    config, script = tmp_path / "config-in.toml", tmp_path / "mortal.py"
    config.write_text(dump(merge(tiny_run, changes)))
    script.write_text(MORTAL)
    arguments = ["--config", str(config)]
    whole, run_dir = tmp_path / "whole", Path(tiny_run["run_dir"])
    finish([*arguments, f"run_dir={whole}"], tmp_path / "said", ranks=2)
    want_weights, want_rows = outcome(whole)
    # The second time there is a finished run in the way, which is moved aside once and not twice.
    for resume, step in (("auto", 9), ("never", 33)):
        note, said = tmp_path / f"died-{resume}", tmp_path / f"said-{resume}"
        command = [*TORCHRUN, "--max-restarts=1", str(script), str(run_dir), str(note), str(step)]
        with faults.tried("rank 1 killed, torchrun starts the group again") as attempt:
            run = spawn([*command, *arguments, "--resume", resume], said)
            assert run.wait(timeout=180) == 0, said.read_text()
            told, saved = map(int, note.read_text().split())
            assert 0 < saved < told < 60, "it died on the way"
            attempt.lost_steps = told - saved
            assert attempt.lost_steps <= EVERY + 1
            weights, rows = outcome(run_dir)
            assert rows == want_rows
            assert weights.keys() == want_weights.keys()
            assert all(torch.equal(weights[name], want_weights[name]) for name in weights)
    assert [p.name for p in tmp_path.glob("run.old-*")] == ["run.old-1"]
