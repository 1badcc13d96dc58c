import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from hard_fast.runtime import parallel
from hard_fast.runtime.dist import World

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
SCRIPT = Path(__file__).with_name("two_processes.py")


@pytest.mark.slow
@pytest.mark.parametrize("check", ["overlap", "compiled", "sharded"])
def test_two_processes(check):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [sys.executable, *torchrun, str(SCRIPT), check],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    # Both write to one pipe: a line and its end may be parted by the other's.
    assert all(f"rank {rank} is through" in done.stdout for rank in (0, 1))


def test_blocks_are_the_large_members_of_lists_of_layers(monkeypatch):
    def block():
        # What lies inside a block is not taken apart.
        return nn.ModuleDict({"inner": nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))})

    stages = nn.Sequential(nn.Sequential(block(), block()), nn.ReLU(), nn.Linear(1, 1))
    net = nn.ModuleDict({"stem": nn.Linear(4, 4), "stages": stages, "more": nn.ModuleList()})
    net["more"].append(block())
    monkeypatch.setattr(parallel, "_MIN_BLOCK_BYTES", 4 * 40)
    assert list(parallel._blocks(net)) == [*stages[0], net["more"][0]]
    monkeypatch.setattr(parallel, "_MIN_BLOCK_BYTES", 4 * 41)
    assert list(parallel._blocks(net)) == []


def test_one_process_keeps_its_weights_whole():
    net = nn.Linear(2, 2)
    parallel.shard_(net, World(0, 1, CPU))
    assert type(net.weight) is nn.Parameter


def test_batchnorm_cannot_be_shared_on_a_cpu_and_needs_no_sharing_alone():
    net = nn.Sequential(nn.BatchNorm2d(2))
    with pytest.raises(ValueError, match="distributed.sync_batchnorm = true: needs GPUs"):
        parallel.sync_batchnorm(net, World(0, 2, CPU))
    assert parallel.sync_batchnorm(net, World(0, 1, CUDA)) is net
    assert type(net[0]) is nn.BatchNorm2d


def test_sharing_batchnorm_keeps_weights_names_and_timm_s_activations():
    from timm.layers import BatchNormAct2d

    torch.manual_seed(0)
    net = nn.Sequential(nn.BatchNorm2d(2), BatchNormAct2d(2, act_layer=nn.SiLU)).eval()
    for tensor in net.state_dict().values():
        tensor.copy_(torch.rand(tensor.shape) + 0.5)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    image = torch.randn(3, 2, 4, 4)
    want = net(image)
    # In eval mode the layer needs no GPU.
    shared = parallel.sync_batchnorm(net, World(0, 2, CUDA))
    assert all(isinstance(layer, nn.SyncBatchNorm) for layer in shared)
    torch.testing.assert_close(shared(image), want)
    after = shared.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[k], before[k]) for k in after)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_shared_batchnorm_sees_the_whole_batch_on_two_gpus(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(SHARED_BATCHNORM)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [sys.executable, *torchrun, str(script)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


SHARED_BATCHNORM = """
import torch
from torch import nn
from hard_fast.runtime import dist, parallel
world = dist.join()
image = torch.arange(64.0, device=world.device).view(4, 2, 2, 4)
layer = parallel.sync_batchnorm(nn.BatchNorm2d(2).to(world.device), world)
got = layer(image[2 * world.rank : 2 * world.rank + 2])
want = nn.BatchNorm2d(2).to(world.device)(image)[2 * world.rank : 2 * world.rank + 2]
torch.testing.assert_close(got, want)
dist.end(0)
"""
