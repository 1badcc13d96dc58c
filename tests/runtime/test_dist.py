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
# Each element meets its own in the other process, whatever the layout.
layouts = [torch.arange(24.0).view(2, 3, 2, 2), torch.arange(6.0).view(2, 3).t()]
layouts.append(layouts[0].to(memory_format=torch.channels_last))
shifted = [t + 0 if world.is_main else t + 2 for t in layouts]
dist.mean_(shifted)
assert all(torch.equal(new, old + 1) for new, old in zip(shifted, layouts, strict=True))
assert shifted[2].is_contiguous(memory_format=torch.channels_last)
# bf16 keeps 8 bits: 1 + 1/512 becomes 1. What is exact, or not fp32, travels as it is.
def travellers():
    return [torch.full((3,), 1 + 1 / 512), torch.full((2,), 1 + 1 / 512, dtype=torch.float64)]
averager = dist.Averager(world, "bf16")
assert averager.seconds() == 0.0
gradients, exact = travellers(), travellers()
averager.mean_(gradients, exact)
assert gradients[0].tolist() == [1.0] * 3 and gradients[0].dtype == torch.float32
assert gradients[1].tolist() == [1 + 1 / 512] * 2
assert all(torch.equal(a, b) for a, b in zip(exact, travellers(), strict=True))
# Nothing overflows on the way, though the sum is beyond bf16's largest number.
large = [torch.full((2,), 3e38)]
averager.mean_(large)
assert large[0].isfinite().all()
assert 0 < averager.seconds() < 60 and averager.seconds() == 0.0
assert dist.sum_(torch.ones(1)).item() == 2.0
assert dist.broadcast_object({"step": 7} if world.is_main else None) == {"step": 7}
layer = torch.nn.BatchNorm1d(2)
layer.weight.data.fill_(world.rank)
layer.running_mean.fill_(world.rank)
dist.broadcast_module(layer)
assert layer.weight.sum() == 0 and layer.running_mean.sum() == 0
dist.barrier()
dist.end(0)
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


ENDING = """
import atexit, sys
from hard_fast.runtime import dist

class Last:
    def __del__(self):
        print("the interpreter has ended")

last = Last()
atexit.register(print, "all is written")
print("unflushed", end=" ", file=sys.stdout)
dist.end(3)
"""


@pytest.mark.parametrize("rank", [None, "1"])
def test_under_a_launcher_a_process_ends_before_its_interpreter_does(rank):
    """Threads of a group must not meet an interpreter that goes down."""
    env = {name: value for name, value in os.environ.items() if name != "RANK"}
    if rank:
        env["RANK"] = rank
    done = subprocess.run(
        [sys.executable, "-c", ENDING], capture_output=True, text=True, env=env, timeout=60
    )
    assert done.returncode == 3, done.stderr
    end = "" if rank else "the interpreter has ended\n"
    assert done.stdout == f"unflushed all is written\n{end}"


def test_one_process_stands_alone_and_changes_nothing(monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert dist.join("cpu") == dist.World(0, 1, torch.device("cpu"))
    tensor = torch.ones(2)
    dist.mean_([tensor])
    averager = dist.Averager(dist.World(0, 1, torch.device("cpu")), "bf16")
    averager.mean_([tensor], [tensor])
    assert averager.seconds() == 0.0 and list(dist.in_step("ab")) == ["a", "b"]
    assert tensor.tolist() == [1.0, 1.0] and dist.broadcast_object(3) == 3
    dist.broadcast_module(nn.Linear(1, 1))
    dist.barrier()
    dist.leave()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_asking_for_a_gpu_that_is_not_there_is_one_line():
    with pytest.raises(ValueError, match="sees no GPU"):
        dist.join("cuda")


def test_the_configuration_refuses_what_it_does_not_know():
    assert dist.DistributedConfig().gradient_dtype == "fp32"
    for wrong in ({"gradient_dtype": "fp8"}, {"teacher": "split"}, {"timeout_s": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            dist.DistributedConfig(**wrong)


@pytest.mark.gpu
def test_the_cost_of_averaging_on_a_gpu_is_read_without_waiting():
    device = torch.device("cuda", 0)
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("nccl", store=store, rank=0, world_size=1)
    try:
        averager = dist.Averager(dist.World(0, 1, device), "bf16")
        gradients = [torch.full((8, 4, 3, 3), 1 + 1 / 512, device=device) for _ in range(3)]
        gradients[0] = gradients[0].to(memory_format=torch.channels_last)
        averager.mean_(gradients)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(20):
                averager.mean_(gradients)
            averager.seconds()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        averager.mean_(gradients)
        torch.cuda.synchronize()
        assert 0 < averager.seconds() < 60 and averager.seconds() == 0.0
        assert all((g == 1.0).all() for g in gradients)
    finally:
        dist.leave()
