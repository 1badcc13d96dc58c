import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from hard_fast.runtime import dist

WORKER = """
import sys, torch
from hard_fast.runtime import dist
world = dist.join("cpu", timeout_s=60)
assert (world.size, world.is_main) == (2, world.rank == 0)
# Two dtypes and more than one bucket.
dist._BUCKET_BYTES = 64
tensors = [torch.full((n,), float(world.rank + n)) for n in (3, 40, 5)]
tensors.append(torch.full((2,), float(world.rank), dtype=torch.float64))
view = torch.zeros(4, 2).t()
view.fill_(world.rank)
tensors.append(view)
dist.mean_(tensors)
assert [t.flatten()[0].item() for t in tensors] == [3.5, 40.5, 5.5, 0.5, 0.5]
assert all((t == t.flatten()[0]).all() for t in tensors)
assert dist.sum_(torch.ones(1)).item() == 2.0
assert dist.broadcast_object({"step": 7} if world.is_main else None) == {"step": 7}
layer = torch.nn.BatchNorm1d(2)
layer.weight.data.fill_(world.rank)
layer.running_mean.fill_(world.rank)
dist.broadcast_module(layer)
assert layer.weight.sum() == 0 and layer.running_mean.sum() == 0
dist.barrier()
dist.leave()
"""


def test_two_processes_average_broadcast_and_leave(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    run_two(script)


def run_two(script: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(script), *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_one_process_stands_alone_and_changes_nothing(monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert dist.join("cpu") == dist.World(0, 1, torch.device("cpu"))
    tensor = torch.ones(2)
    dist.mean_([tensor])
    assert tensor.tolist() == [1.0, 1.0] and dist.broadcast_object(3) == 3
    dist.broadcast_module(nn.Linear(1, 1))
    dist.barrier()
    dist.leave()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_asking_for_a_gpu_that_is_not_there_is_one_line():
    with pytest.raises(ValueError, match="sees no GPU"):
        dist.join("cuda")
