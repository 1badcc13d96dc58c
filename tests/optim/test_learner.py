import copy

import torch
from torch import nn

from hard_fast.optim.build import OptimConfig
from hard_fast.optim.learner import Learner
from hard_fast.optim.schedule import CosineRateConfig


def make(layer, **changes):
    config = OptimConfig(**{"kind": "sgd", "momentum": 0.0, "lr": 0.1} | changes)
    return Learner(config, layer.named_parameters(), num_steps=4, num_steps_per_epoch=2)


def give_gradient(layer, value):
    for parameter in layer.parameters():
        parameter.grad = torch.full_like(parameter, value)


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


def test_state_round_trip_and_forget():
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
    first.forget()
    assert not first.state_dict()["optimizer"]["state"]
