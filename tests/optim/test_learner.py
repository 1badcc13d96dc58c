import copy

import pytest
import torch
from torch import nn

from hard_fast.optim.schedule import CosineRateConfig
from hard_fast.optim.standstill import StandstillConfig
from hard_fast.runtime.cycle import Cycle
from tests.optim.learners import SCALED, give_gradient, make


def test_update_descends_at_the_steps_rate_and_forgets_the_gradient():
    layer = nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(1.0)
    learner = make(layer, rate=CosineRateConfig())
    give_gradient(layer, 1.0)
    learner.update(2)
    torch.testing.assert_close(layer.weight.item(), 1.0 - 0.1 * 0.5)
    assert layer.weight.grad is None and learner.lr(0) == 0.1


def test_gradients_are_clipped_to_their_total_norm():
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.data.fill_(0.0)
    learner = make(layer, clip_norm=1.0)
    give_gradient(layer, 5.0)
    learner.update(0)
    torch.testing.assert_close(layer.weight.norm().item(), 0.1, rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", ["sgd", "adamw", "lion"])
def test_weight_decay_goes_its_cycle_where_there_is_any(kind):
    layer = nn.Linear(2, 2)
    changes = {} if kind == "sgd" else {"momentum": 0.9}
    decay = Cycle(ends=0.1, peak=0.5)
    learner = make(layer, kind=kind, weight_decay=decay, **changes)
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    for step, share in ((0, 0.1), (3, 0.1)):
        give_gradient(layer, 0.0)
        learner.update(step)
        before["weight"] *= 1 - 0.1 * share
    learner.load_state_dict(copy.deepcopy(learner.state_dict()))
    give_gradient(layer, 0.0)
    learner.update(1)
    # A third of the run is done: 2/3 of the way to the peak.
    before["weight"] *= 1 - 0.1 * (0.1 + 0.4 * 2 / 3)
    torch.testing.assert_close(layer.weight, before["weight"])
    assert torch.equal(layer.bias, before["bias"])


def test_clipping_goes_its_cycle():
    layer = nn.Linear(4, 1, bias=False)
    learner = make(layer, clip_norm=Cycle(ends=1.0, peak=4.0))
    for step, norm in ((0, 1.0), (1, 3.0), (3, 1.0)):
        layer.weight.data.fill_(0.0)
        give_gradient(layer, 50.0)
        learner.update(step)
        torch.testing.assert_close(layer.weight.norm().item(), 0.1 * norm, rtol=1e-4, atol=0)


def test_kept_gradients_are_zero_in_the_same_memory():
    layer = nn.Linear(2, 1)
    learner = make(layer, keeps_gradients=True)
    give_gradient(layer, 1.0)
    gradients = [p.grad for p in layer.parameters()]
    learner.update(0)
    for parameter, gradient in zip(layer.parameters(), gradients, strict=True):
        assert parameter.grad is gradient and not gradient.any()


@pytest.mark.parametrize("keeps_gradients", [False, True])
def test_gradients_of_two_backward_passes_add_up(keeps_gradients):
    layer = nn.Linear(2, 1, bias=False)
    learner = make(layer, keeps_gradients=keeps_gradients)
    for step in range(2):
        before = layer.weight.detach().clone()
        for size in (1.0, 2.0):
            layer(torch.full((1, 2), size)).sum().backward()
        learner.update(step)
        torch.testing.assert_close(before - layer.weight, torch.full((1, 2), 0.3))


@pytest.mark.parametrize("is_enabled", [True, False])
@pytest.mark.parametrize("changes", SCALED)
def test_scaled_steps_equal_plain_ones(changes, is_enabled):
    torch.manual_seed(0)
    scaled, plain = nn.Linear(64, 64), nn.Linear(64, 64)
    plain.load_state_dict(scaled.state_dict())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=is_enabled)
    learners = make(scaled, **changes), make(plain, **changes)
    for step in range(3):
        image = torch.randn(8, 64, generator=torch.Generator().manual_seed(step))
        scaler.scale(scaled(image).square().mean()).backward()
        plain(image).square().mean().backward()
        before = scaled.weight.detach().clone()
        learners[0].update(step, scaler)
        learners[1].update(step)
        scaler.update()
        assert not torch.equal(scaled.weight, before)
    for one, other in zip(scaled.parameters(), plain.parameters(), strict=True):
        # The scale is a power of two, so scaling rounds nothing.
        assert torch.equal(one, other)


@pytest.mark.parametrize("num_before", [0, 1])
@pytest.mark.parametrize("changes", SCALED)
def test_an_infinite_gradient_changes_nothing(changes, num_before):
    torch.manual_seed(0)
    layer, other = nn.Linear(64, 64), nn.Linear(64, 64)
    other.load_state_dict(layer.state_dict())
    learner, untroubled = make(layer, **changes), make(other, **changes)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    scaler.scale(torch.zeros(()))

    def update_both(step):
        give_gradient(layer, 0.25 * (step + 1) * scaler.get_scale())
        give_gradient(other, 0.25 * (step + 1))
        learner.update(step, scaler)
        scaler.update()
        untroubled.update(step)

    for step in range(num_before):
        update_both(step)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    give_gradient(layer, 1.0)
    layer.weight.grad[3, 5] = torch.inf
    learner.update(num_before, scaler)
    scaler.update()
    assert scaler.get_scale() == 32.0
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    for step in range(num_before, num_before + 2):
        update_both(step)
    for one, same in zip(layer.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, same)
    assert not torch.equal(layer.weight, before["weight"])


@pytest.mark.parametrize("kind", ["adam", "lion", "lion8bit"])
def test_forgetting_starts_the_moments_anew(kind):
    layer, other = nn.Linear(64, 64), nn.Linear(64, 64)
    learner = make(layer, kind=kind, momentum=0.9)
    give_gradient(layer, 1.0)
    learner.update(0)
    learner.forget()
    assert not learner.state_dict()["optimizer"]["state"]
    other.load_state_dict(layer.state_dict())
    fresh = make(other, kind=kind, momentum=0.9)
    for some, module in ((learner, layer), (fresh, other)):
        give_gradient(module, -0.5)
        some.update(1)
    assert torch.equal(layer.weight, other.weight)


def test_state_round_trip():
    layer, other = nn.Linear(1, 1), nn.Linear(1, 1)
    other.load_state_dict(layer.state_dict())
    first = make(layer, kind="adam", momentum=0.9)
    give_gradient(layer, 1.0)
    first.update(0)
    first.rate.observe(3.0)
    other.load_state_dict(layer.state_dict())
    second = make(other, kind="adam", momentum=0.9)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert second.rate.best == 3.0
    for learner, module in ((first, layer), (second, other)):
        give_gradient(module, -2.0)
        learner.update(1)
    assert torch.equal(layer.weight, other.weight)


@pytest.mark.parametrize("is_fresh", [True, False])
@pytest.mark.parametrize("is_resumed", [True, False])
def test_a_turn_of_its_own_begins_without_moments(is_fresh, is_resumed):
    layer = nn.Linear(1, 1, bias=False)
    learner = make(layer, momentum=0.5, fresh_turns=is_fresh)
    for step in (0, 1):
        give_gradient(layer, 1.0)
        learner.update(step)
    state = copy.deepcopy(learner.state_dict())
    # A step later it is the same turn; two steps later another network has learned in between.
    for step, momentum in ((2, 0.75), (3, 0.0 if is_fresh else 0.75)):
        if is_resumed:
            learner = make(layer, momentum=0.5, fresh_turns=is_fresh)
        learner.load_state_dict(copy.deepcopy(state))
        before = layer.weight.item()
        give_gradient(layer, 1.0)
        learner.update(step)
        assert before - layer.weight.item() == pytest.approx(0.1 * (1.0 + momentum))


def test_a_standstill_lowers_the_rate_until_a_new_turn_begins():
    layer = nn.Linear(1, 1, bias=False)
    changes = {"fresh_turns": True, "standstill": StandstillConfig(factor=0.5)}
    learner, rates = make(layer, **changes), []
    for step in (0, 1, 2, 3, 4, 7):
        again = make(layer, **changes)
        again.load_state_dict(copy.deepcopy(learner.state_dict()))
        learner, before = again, layer.weight.item()
        give_gradient(layer, 1.0)
        learner.update(step, loss=torch.tensor(1.0))
        rates.append(before - layer.weight.item())
        assert learner.lr(step) == pytest.approx(rates[-1], rel=1e-5)
    # Epochs have two steps, and the first has none before it.
    assert rates == pytest.approx([0.1, 0.1, 0.1, 0.1, 0.05, 0.1], rel=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd"])
def test_a_scaled_update_does_not_wait_for_the_device(kind):
    layer = nn.Linear(64, 64).cuda()
    learner = make(layer, kind=kind, momentum=0.9, clip_norm=1.0)
    scaler = torch.amp.GradScaler("cuda")
    scaler.scale(torch.zeros((), device="cuda"))
    for mode in ("default", "error"):
        give_gradient(layer, 1.0)
        torch.cuda.set_sync_debug_mode(mode)
        try:
            learner.update(0, scaler)
            scaler.update()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("num_before", [0, 1])
@pytest.mark.parametrize("changes", SCALED)
@pytest.mark.parametrize("spoilt", ["gradient", "loss"])
def test_what_is_not_finite_changes_nothing_without_a_scaler_too(changes, num_before, spoilt):
    torch.manual_seed(0)
    layer, other = nn.Linear(64, 64), nn.Linear(64, 64)
    other.load_state_dict(layer.state_dict())
    learner, untroubled = make(layer, **changes), make(other, **changes)

    def update_both(step):
        for some, module in ((learner, layer), (untroubled, other)):
            give_gradient(module, 0.25 * (step + 1))
            assert not some.update(step, loss=torch.tensor(0.5))

    for step in range(num_before):
        update_both(step)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    give_gradient(layer, 1.0)
    if spoilt == "gradient":
        layer.weight.grad[3, 5] = torch.inf
    loss = torch.tensor(torch.nan if spoilt == "loss" else 0.5)
    assert learner.update(num_before, loss=loss)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    for step in range(num_before, num_before + 2):
        update_both(step)
    for one, same in zip(layer.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, same)
    assert not torch.equal(layer.weight, before["weight"])


def test_a_share_lowers_the_rate_and_is_saved():
    layer = nn.Linear(1, 1, bias=False)
    learner, again = make(layer), make(nn.Linear(1, 1, bias=False))
    learner.share = 0.25
    again.load_state_dict(learner.state_dict())
    assert learner.lr(0) == again.lr(0) == pytest.approx(0.025)
    before = layer.weight.item()
    give_gradient(layer, 1.0)
    learner.update(0)
    assert before - layer.weight.item() == pytest.approx(0.025, rel=1e-4)
