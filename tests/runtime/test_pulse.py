import os
import subprocess
import sys
import time

import pytest

from hard_fast.runtime import pulse

TOGETHER = """
from hard_fast.runtime import dist, pulse
world = dist.join("cpu", timeout_s=30)
dist.barrier()
for place in range(3):
    # One process wants something, and all hear it in the same step.
    pulse.beat(place, 15 if (place, world.rank) == (1, 1) else 0)
    assert pulse.agreed("here") == (15 if place == 1 else 0)
pulse.at("there")
pulse.meet()
pulse.beat(10 + world.rank, 0)
try:
    pulse.agreed(f"step {10 + world.rank}")
except pulse.Lost as error:
    assert f"not at the same place: this one is at step {10 + world.rank}" in str(error)
else:
    dist.end(1)
pulse.at(f"place {world.rank}")
try:
    pulse.meet()
except pulse.Lost as error:
    assert f"not at the same place: this one is at place {world.rank}" in str(error)
    dist.end(0)
dist.end(1)
"""
ABSENT = """
import sys, time
import torch
from hard_fast.runtime import dist, pulse
world = dist.join("cpu", timeout_s=2)
dist.barrier()
if world.rank == 1:
    time.sleep(60)
try:
    {wait}
except RuntimeError as error:
    sys.stderr.write(f"LOST: {{type(error).__name__}} {{pulse.explained(error)}}\\n")
    dist.end(pulse.LOST)
"""
LATE = """
import sys, time
from hard_fast.runtime import dist, pulse
world = dist.join("cpu", timeout_s=9)
dist.barrier()
pulse.at("step 3")
if world.rank == 1:
    time.sleep(60)
if world.rank == 2:
    # Later than the others by more than the least time of a roll call.
    time.sleep(6)
try:
    pulse.meet()
except pulse.Lost as error:
    # One write: what print writes in parts, several processes mix.
    sys.stderr.write(f"LOST: {error}\\n")
    time.sleep(4)
    dist.end(pulse.LOST)
"""
# By how a process waits: what is raised, by the meeting before the work or in the work itself.
WAITS = {
    "pulse.beat(4, 0), pulse.agreed('step 4')": ("Lost", "step 4"),
    "pulse.at('the sum'), dist.sum_(torch.ones(1))": ("Lost", "the sum"),
    "dist.mean_([torch.ones(1)])": ("RuntimeError", "the start"),
}


def run_some(script, tmp_path, num=2) -> subprocess.CompletedProcess:
    file = tmp_path / "worker.py"
    file.write_text(script)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={num}",
    ]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, str(file)], capture_output=True, text=True, env=env, timeout=120
    )


def test_one_process_agrees_with_itself():
    pulse.beat(7, 15)
    assert pulse.agreed("step 7") == 15
    pulse.beat(8, 0)
    assert pulse.agreed("step 8") == 0
    pulse.meet()


def test_errors_of_other_kinds_miss_nobody():
    assert pulse.explained(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    lost = pulse.Lost("rank 1")
    assert pulse.explained(lost) is lost


@pytest.mark.slow
def test_two_processes_agree_and_notice_that_they_differ(tmp_path):
    done = run_some(TOGETHER, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("wait", WAITS)
def test_who_does_not_come_is_named(wait, tmp_path):
    since = time.monotonic()
    done = run_some(ABSENT.format(wait=wait), tmp_path)
    line = next(line for line in done.stderr.splitlines() if line.startswith("LOST:"))
    kind, where = WAITS[wait]
    assert f"LOST: {kind} rank 1 did not answer at {where}: it hangs or is gone (" in line
    assert "(distributed.timeout_s = 2; Timed out waiting" in line
    assert done.returncode != 0 and time.monotonic() - since < 50


@pytest.mark.slow
def test_who_only_came_late_is_not_named(tmp_path):
    said = run_some(LATE, tmp_path, num=4).stderr.splitlines()
    lines = [line.partition(" (")[0] for line in said if line.startswith("LOST:")]
    assert lines == ["LOST: rank 1 did not answer at step 3: it hangs or is gone"] * 3
