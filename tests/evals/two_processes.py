"""One of two gloo processes that torchrun starts for test_runner.py: both find what one finds."""

import copy

import pytest
import torch
from torch import nn

from hard_fast.data import Arrays
from hard_fast.evals import runner
from hard_fast.evals.robustness import attacked_top1
from hard_fast.evals.runner import compare, evaluate
from hard_fast.evals.sharpness import landscape_of, sharpness, top_eigenvalue
from hard_fast.evals.suites import Loaded
from hard_fast.models.taps import Tapped
from hard_fast.runtime import dist, parallel
from hard_fast.runtime.dist import World


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return Tapped(nn.Sequential(nn.Flatten(), nn.Linear(12, 7)))


def suite(num: int) -> tuple[Loaded, Loaded]:
    generator = torch.Generator().manual_seed(num)
    image = torch.randint(256, (num, 3, 2, 2), dtype=torch.uint8, generator=generator)
    label = torch.randint(7, (num,), generator=generator)
    sets = torch.randint(-1, 7, (num, 2), generator=generator)
    rows = Arrays(image, torch.arange(num))
    return Loaded({"test": Arrays(image, label)}, 7), Loaded({"test": rows}, 7, None, sets)


def found_by(world: World, student: nn.Module, teacher: nn.Module, num: int) -> list:
    labelled, rows = suite(num)
    results = [compare(student, teacher, loaded, world) for loaded in (labelled, rows)]
    flat = [scores["test"] for one in results for scores in one]
    return [*flat, evaluate(student, labelled.parts, world)]


def check(world: World) -> None:
    runner._MAX_BATCH, runner._DRAW_SIZE = 3, 4
    student, teacher = network(0), network(1)
    sharded = copy.deepcopy(teacher)
    parallel.shard_(sharded, world)
    # The real sum, but for one process that has all samples.
    sum_ = dist.sum_
    # 13: the first process has a batch less. 1: it has no sample at all.
    for num in (13, 1):
        dist.sum_ = lambda tensor: tensor
        want = found_by(World(0, 1, world.device), student, teacher, num)
        dist.sum_ = sum_
        for other in (teacher, sharded):
            got = found_by(world, student, other, num)
            for ours, theirs in zip(got, want, strict=True):
                assert ours == pytest.approx(theirs, rel=1e-6, nan_ok=True), (num, got, want)
    assert "t_stddev" in found_by(world, student, teacher, 13)[0]
    part, own = suite(13)[0].parts["test"], suite(60)[0].parts["test"]
    # All are right before the attack, and what a random start leaves of them is chance.
    with torch.no_grad():
        own = own._replace(label=student(own.image / 255).logits_BK.argmax(1))
    dist.sum_ = lambda tensor: tensor
    alone = World(0, 1, world.device)
    want, stands = sharpness_by(alone, student, part), attack_by(alone, student, own)
    dist.sum_ = sum_
    assert sharpness_by(world, student, part) == pytest.approx(want, rel=1e-5)
    assert attack_by(world, student, own) == stands and 10.0 < stands < 90.0


def sharpness_by(world: World, network: nn.Module, part: Arrays) -> list[float]:
    weights, landscape = list(network.parameters()), landscape_of(network, part, world)
    return [sharpness(weights, landscape, 0.1, 3), top_eigenvalue(weights, landscape, 5)]


def attack_by(world: World, network: nn.Module, part: Arrays) -> float:
    return attacked_top1(network, part, world, radius=0.5, num_steps=0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    check(here := dist.join("cpu", timeout_s=60))
    dist.barrier()
    print(f"rank {here.rank} is through")
    dist.end(0)
