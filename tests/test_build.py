import pytest
import torch

from hard_fast.build import build_step
from hard_fast.config import RunConfig
from hard_fast.data import load_data
from hard_fast.runtime.configfile import Source, merge, parse
from hard_fast.runtime.dist import World

WORLD = World(0, 1, torch.device("cpu"))


def build(tree, **changes):
    config = parse(RunConfig, Source(merge(tree, changes), {}))
    return build_step(config, load_data(config.data, WORLD.device), WORLD)


def test_a_seed_decides_the_weights_and_the_teacher_is_frozen(tiny_run):
    first, second, other = (build(tiny_run, seed=seed) for seed in (0, 0, 1))
    state = first.state_dict()
    assert all(torch.equal(state[name], value) for name, value in second.state_dict().items())
    weights = [net.student.state_dict() for net in (first, other)]
    assert not all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not any(p.requires_grad for p in first.teacher.parameters())


def test_each_network_has_its_own_precision(tiny_run):
    net = build(tiny_run, train={"precision": "bf16"}, teacher={"precision": "fp32"})
    assert net.student.amp_dtype == torch.bfloat16 and net.teacher.amp_dtype is None
    net = build(tiny_run, teacher={"precision": "bf16"})
    assert net.student.amp_dtype is None
    dtypes = {p.dtype for p in net.teacher.parameters()}
    assert torch.bfloat16 in dtypes and {p.dtype for p in net.student.parameters()} == {
        torch.float32
    }


def test_what_cannot_be_built_names_its_table(tiny_run):
    with pytest.raises(ValueError, match=r"^\[teacher\] .*none.pth"):
        build(tiny_run, teacher={"checkpoint": "none.pth"})
    with pytest.raises(ValueError, match=r"^\[student\] "):
        build(tiny_run, student={"name": "mlpp"})
