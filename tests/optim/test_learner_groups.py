"""Updates that gather the gradients of several steps."""

import copy

import pytest
import torch
from torch import nn

from hard_fast.runtime.cycle import Cycle
from tests.optim.learners import SCALED, give_gradient, make


@pytest.mark.parametrize("changes", SCALED)
def test_gathered_steps_make_one_update_of_their_mean(changes):
    torch.manual_seed(0)
    layer, other = nn.Linear(64, 64), nn.Linear(64, 64)
    other.load_state_dict(layer.state_dict())
    learner, plain = make(layer, update_every=2, **changes), make(other, **changes)
    for step in range(4):
        before = layer.weight.detach().clone()
        give_gradient(layer, 1.0 if step % 2 else 3.0)
        learner.update(step)
        if step % 2 == 0:
            assert torch.equal(layer.weight, before) and layer.weight.grad is None
        else:
            give_gradient(other, 2.0)
            plain.update(step)
        assert torch.equal(layer.weight, other.weight)
    assert not torch.equal(before, layer.weight)


@pytest.mark.parametrize("keeps_gradients", [False, True])
def test_groups_follow_their_cycle_and_the_run_ends_with_what_there_is(keeps_gradients):
    # Of 4 steps: 1, 7/3, 7/3, 1, rounded 1, 2, 2, 1.
    cycle = Cycle(ends=1.0, peak=3.0)
    for every, wanted in ((cycle, [1, 0, 1, 1]), (3, [0, 0, 1, 1]), (8, [0, 0, 0, 1])):
        layer = nn.Linear(2, 1, bias=False)
        learner = make(layer, update_every=every, keeps_gradients=keeps_gradients)
        for step, moves in enumerate(wanted):
            before = layer.weight.detach().clone()
            (layer(torch.ones(1, 2)) * (step + 1)).sum().backward()
            learner.update(step)
            assert torch.equal(layer.weight, before) != bool(moves), (every, step)


def test_a_last_step_without_gradients_learns_from_those_gathered():
    layer = nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(1.0)
    learner = make(layer, update_every=4)
    learner.finish(3)
    assert layer.weight.item() == 1.0
    for step, value in ((0, 1.0), (1, 2.0)):
        give_gradient(layer, value)
        learner.update(step)
    learner.finish(3)
    assert layer.weight.item() == pytest.approx(1.0 - 0.1 * 1.5)


def test_the_mean_of_gathered_gradients_is_what_is_clipped():
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.data.fill_(0.0)
    learner = make(layer, update_every=2, clip_norm=1.0)
    for step, value in ((0, 0.9), (1, -0.5)):
        give_gradient(layer, value)
        learner.update(step)
    # Their mean 0.2 has a norm of 0.4, though the first alone has one of 1.8.
    torch.testing.assert_close(layer.weight, torch.full((1, 4), -0.02))


def test_a_group_continues_from_a_saved_state():
    layers = [nn.Linear(4, 4).to(memory_format=torch.contiguous_format) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    first, second = (make(layer, kind="adam", momentum=0.9, update_every=3) for layer in layers)
    for step, value in ((0, 0.3), (1, 0.7)):
        give_gradient(layers[0], value)
        first.update(step)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for layer, learner in zip(layers, (first, second), strict=True):
        give_gradient(layer, -0.1)
        learner.update(2)
    assert torch.equal(layers[0].weight, layers[1].weight)
    assert not first.state_dict()["gathered"]["gradients"]


@pytest.mark.parametrize("changes", SCALED)
@pytest.mark.parametrize("bad_step", [None, 0, 1])
def test_scaled_groups_equal_plain_ones_and_one_that_overflows_changes_nothing(changes, bad_step):
    torch.manual_seed(0)
    layer, other = nn.Linear(64, 64), nn.Linear(64, 64)
    other.load_state_dict(layer.state_dict())
    learner = make(layer, update_every=2, **changes)
    plain = make(other, update_every=2, **changes)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    scaler.scale(torch.zeros(()))
    before = layer.weight.detach().clone()
    for step in range(2):
        give_gradient(layer, 0.25 * (step + 1) * scaler.get_scale())
        give_gradient(other, 0.25 * (step + 1))
        if step == bad_step:
            layer.weight.grad[3, 5] = torch.inf
        learner.update(step, scaler)
        plain.update(step)
        scaler.update()
    if bad_step is None:
        assert torch.equal(layer.weight, other.weight)
        assert not torch.equal(layer.weight, before)
    else:
        assert torch.equal(layer.weight, before) and scaler.get_scale() < 64.0
        assert (
            not learner.state_dict()["optimizer"]["state"]
            or changes["kind"] == "sgd"
            or all(
                torch.isfinite(value).all()
                for state in learner.state_dict()["optimizer"]["state"].values()
                for value in state.values()
                if isinstance(value, torch.Tensor)
            )
        )


def test_a_group_stays_spoilt_across_a_restart():
    layers = [nn.Linear(4, 4) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    first, second = (make(layer, kind="adam", momentum=0.9, update_every=2) for layer in layers)
    give_gradient(layers[0], torch.nan)
    assert first.update(0)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    give_gradient(layers[1], 1.0)
    # This step was fine, and still there is nothing to learn from.
    assert not second.update(1)
    assert torch.equal(layers[0].weight, layers[1].weight)
    give_gradient(layers[1], 1.0)
    second.update(2)
    give_gradient(layers[1], 1.0)
    second.update(3)
    assert not torch.equal(layers[0].weight, layers[1].weight) and second.share == 1.0
