import os
import subprocess
import sys
import time

import pytest
import torch

from hard_fast.runtime.dist import World
from hard_fast.runtime.pulse import Pulse

TOGETHER = """
import sys
from hard_fast.runtime import dist
from hard_fast.runtime.pulse import Lost, Pulse
world = dist.join("cpu", timeout_s=30)
pulse = Pulse(world, timeout_s=30)
for place in range(3):
    # One process wants something, and all hear it in the same step.
    pulse.beat(place, 15 if (place, world.rank) == (1, 1) else 0)
    assert pulse.agreed("here") == (15 if place == 1 else 0)
pulse.beat(10 + world.rank, 0)
try:
    pulse.agreed(f"step {10 + world.rank}")
except Lost as error:
    assert f"not at the same place: this one is at step {10 + world.rank}" in str(error)
    dist.end(0)
dist.end(1)
"""
ABSENT = """
import sys, time
from hard_fast.runtime import dist
from hard_fast.runtime.pulse import Lost, Pulse
world = dist.join("cpu", timeout_s=30)
pulse = Pulse(world, timeout_s=2)
if world.rank == 1:
    time.sleep(60)
pulse.beat(4, 0)
try:
    pulse.agreed("step 4 (student)")
except Lost as error:
    print("LOST:", error, file=sys.stderr)
    dist.end(75)
"""


def run_two(script, tmp_path) -> subprocess.CompletedProcess:
    file = tmp_path / "worker.py"
    file.write_text(script)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, str(file)], capture_output=True, text=True, env=env, timeout=120
    )


def test_one_process_agrees_with_itself():
    pulse = Pulse(World(0, 1, torch.device("cpu")), timeout_s=1)
    pulse.beat(7, 15)
    assert pulse.agreed("step 7") == 15
    pulse.beat(8, 0)
    assert pulse.agreed("step 8") == 0


@pytest.mark.slow
def test_two_processes_agree_and_notice_that_they_differ(tmp_path):
    done = run_two(TOGETHER, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_who_does_not_come_is_named(tmp_path):
    since = time.monotonic()
    done = run_two(ABSENT, tmp_path)
    line = next(line for line in done.stderr.splitlines() if line.startswith("LOST:"))
    assert "rank 1 did not come to step 4 (student) within 2 s: it hangs or is gone" in line
    assert done.returncode != 0 and time.monotonic() - since < 50
