import math

import pytest
import torch

from hard_fast.objectives.terms import cross_entropy, disagreement, kd_kl, squared_error


def test_kd_kl_by_hand():
    # Teacher softmax (3/4, 1/4) at T = 2, student (1/2, 1/2): KL = ln 2 - H(3/4, 1/4), times 4.
    teacher = torch.tensor([[2.0 * math.log(3.0), 0.0]])
    want = 4.0 * (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))
    got = kd_kl(torch.zeros(1, 2), teacher, torch.tensor(2.0))
    assert got.item() == pytest.approx(want, rel=1e-6)
    assert kd_kl(teacher, teacher, torch.tensor(2.0)).item() == pytest.approx(0.0, abs=1e-7)


def test_kd_kl_is_differentiable_in_both_logits():
    student = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert kd_kl(student, teacher, torch.tensor(3.0)).dtype == torch.float32
    grads = torch.autograd.grad(
        kd_kl(student, teacher, torch.tensor(3.0)).sum(), [student, teacher]
    )
    for logits, grad in zip((student, teacher), grads, strict=True):
        step = 1e-2 * torch.randn_like(logits)
        moved = [
            (s + step, t) if logits is student else (s, t + step) for s, t in [(student, teacher)]
        ]
        back = [
            (s - step, t) if logits is student else (s, t - step) for s, t in [(student, teacher)]
        ]
        up, down = (kd_kl(*pair[0], torch.tensor(3.0)).sum() for pair in (moved, back))
        assert ((up - down) / 2).item() == pytest.approx(
            (grad * step).sum().item(), rel=2e-2, abs=1e-5
        )


def test_squared_error_by_hand():
    got = squared_error(
        torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 4.0], [0.0, 0.0]])
    )
    assert got.tolist() == [2.5, 0.0]


def test_cross_entropy_agrees_with_torch_and_leaves_unlabelled_rows_out():
    logits, label = torch.randn(6, 5), torch.tensor([0, 4, 2, 2, 1, 3])
    target = torch.eye(5)[label]
    want = torch.nn.functional.cross_entropy(logits, label, label_smoothing=0.1)
    torch.testing.assert_close(cross_entropy(logits, target, 0.1), want)
    padded = torch.cat([target, torch.zeros(3, 5)])
    got = cross_entropy(torch.cat([logits, torch.randn(3, 5)]), padded, 0.1)
    torch.testing.assert_close(got, want)
    assert cross_entropy(logits, torch.zeros(6, 5)).item() == 0.0


def test_disagreement_by_hand_and_without_labels():
    logits = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    reference = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.0, 1.0], [0.0, 0.0]])
    assert disagreement(logits, reference).item() == pytest.approx(1 / 3)
    assert disagreement(logits, torch.zeros(4, 2)).item() == 0.0
