import pytest
import torch

from hard_fast.objectives.base import Objective, constant, terms


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
