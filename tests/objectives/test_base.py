import pytest
import torch

from hard_fast.objectives import build_objective
from hard_fast.objectives.base import Objective, constant, terms
from hard_fast.objectives.hard import HardConfig
from hard_fast.objectives.kd import KdConfig
from hard_fast.objectives.tst import TstLossConfig
from hard_fast.runtime.cycle import Cycle


def test_terms_keep_the_gradient_in_the_loss_alone():
    x = torch.ones((), requires_grad=True)
    found = terms(2 * x, x + 1, extra=3 * x)
    assert found.loss.requires_grad and not found.error.requires_grad
    assert {k: v.item() for k, v in found.logs.items()} == {"loss": 2.0, "error": 2.0, "extra": 3.0}
    assert not any(value.requires_grad for value in found.logs.values())


def test_a_constant_is_a_tensor_that_is_not_saved():
    objective = Objective()
    objective.temperature = constant(5.0)
    assert objective.temperature.dtype == torch.float32 and objective.temperature.ndim == 0
    assert not objective.state_dict()


def test_an_objective_without_a_loss_for_augmentors_says_so():
    with pytest.raises(ValueError, match="student_only"):
        Objective().augmentor_loss(None)


@pytest.mark.parametrize("config", [KdConfig, HardConfig, TstLossConfig])
def test_a_temperature_goes_through_its_cycle_in_place(config):
    objective = build_objective(config(temperature=Cycle(ends=1.0, peak=4.0)))
    held = objective.temperature
    for step, wanted in ((0, 1.0), (1, 2.5), (2, 4.0), (4, 1.0), (1, 2.5)):
        objective.advance(step, num_steps=5, num_steps_per_epoch=1)
        assert objective.temperature is held and held.item() == wanted
    assert not objective.state_dict()
    fixed = build_objective(config(temperature=3.0))
    fixed.advance(2, num_steps=5, num_steps_per_epoch=1)
    assert fixed.temperature.item() == 3.0
