import pytest
import torch

from hard_fast.objectives import build_objective
from hard_fast.objectives.hard import HardConfig
from hard_fast.objectives.terms import kd_kl
from hard_fast.types import Phase

STUDENT = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
MADE = torch.tensor([[0.0, 1.0], [0.0, 3.0]])
CLEAN = torch.tensor([[1.0, 0.5], [0.0, 3.0]])


def test_augmentor_loss_is_equation_2_by_hand(seen):
    # Squared errors: student against teacher (1 + 0.5) / 2, teacher against clean 0.625 / 2.
    config = HardConfig(distance="mse", lambda_student=2.0, lambda_teacher=4.0)
    found = build_objective(config).augmentor_loss(seen(STUDENT, MADE, CLEAN))
    assert found.loss.item() == pytest.approx(4.0 * 0.3125 - 2.0 * 0.75)
    assert found.logs["student_apart"].item() == pytest.approx(0.75)
    assert found.logs["teacher_apart"].item() == pytest.approx(0.3125)


def test_kl_has_the_right_targets_and_the_gradient_goes_through_both_networks(seen):
    student, made = STUDENT.clone().requires_grad_(), MADE.clone().requires_grad_()
    found = build_objective(HardConfig(temperature=3.0)).augmentor_loss(seen(student, made, CLEAN))
    temperature = torch.tensor(3.0)
    want = kd_kl(MADE, CLEAN, temperature).mean() - kd_kl(STUDENT, MADE, temperature).mean()
    torch.testing.assert_close(found.loss.detach(), want)
    grads = torch.autograd.grad(found.loss, [student, made])
    assert all(grad.abs().max() > 0 for grad in grads)


def test_reference_of_the_error_is_the_teacher_or_the_label(seen):
    given = seen(STUDENT, MADE, CLEAN, target=torch.eye(2))
    assert build_objective(HardConfig()).augmentor_loss(given).error.item() == 0.5
    by_label = build_objective(HardConfig(reference="label"))
    assert by_label.augmentor_loss(given).error.item() == 0.0
    assert by_label.student_loss(given).error.item() == 0.0
    change = build_objective(HardConfig()).augmentor_loss(given).logs["teacher_change"]
    assert change.item() == 0.5


def test_the_clean_teacher_is_asked_for_in_the_augmentors_phase_only():
    objective = build_objective(HardConfig())
    assert objective.needs(Phase.AUGMENTOR).clean_teacher
    assert not objective.needs(Phase.STUDENT).clean_teacher
    assert objective.needs(Phase.STUDENT).teacher
