"""Several teachers as one: values by hand, gradient through all, each in a precision of its own."""

import math

import pytest
import torch
from torch import nn

from hard_fast.models.ensemble import Ensemble
from hard_fast.models.taps import Normalized, set_dtype
from hard_fast.objectives.terms import kd_kl


class Says(nn.Module):
    """A network that answers every image with the same logits."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits), requires_grad=False)

    def forward(self, image):
        return self.logits.expand(len(image), -1)


def linear(seed, dtype=None, mean=0.0, std=1.0):
    """A small network with statistics, and perhaps a dtype, of its own."""
    torch.manual_seed(seed)
    network = Normalized(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), (mean,), (std,))
    network.eval().requires_grad_(False)
    if dtype is not None:
        set_dtype(network, dtype)
    return network


def saying(*answers, weights=(1.0, 3.0)):
    return Ensemble([Normalized(Says(a), (0.0,), (1.0,)) for a in answers], weights)


def test_the_mean_probability_and_its_temperature_by_hand():
    # Logits are known up to a constant; the second's are not logarithms of probabilities.
    first = [math.log(p) for p in (0.5, 0.3, 0.2)]
    second = [math.log(p) + 5.0 for p in (0.1, 0.1, 0.8)]
    answer = saying(first, second)(torch.zeros(2, 1, 2, 2))
    assert answer.shape == (2, 3) and answer.dtype == torch.float32
    # A quarter of (0.5, 0.3, 0.2) and three of (0.1, 0.1, 0.8).
    torch.testing.assert_close(answer.exp()[0], torch.tensor([0.2, 0.15, 0.65]))
    # At T = 2 it is the square roots that are in proportion: 0.44721, 0.38730, 0.80623.
    soft = (answer / 2.0).softmax(1)[0]
    torch.testing.assert_close(soft, torch.tensor([0.27257, 0.23605, 0.49138]), atol=1e-5, rtol=0)
    # T^2 KL to a student that says nothing: 4 (ln 3 - the entropy), the entropy 1.04424.
    found = kd_kl(torch.zeros(1, 3), answer[:1], torch.tensor(2.0))
    assert found.item() == pytest.approx(4.0 * (math.log(3.0) - 1.04424), abs=1e-4)


def test_members_that_agree_are_one_teacher_at_every_temperature():
    logits = [3.0, -2.0, 0.5]
    answer = saying(logits, logits)(torch.zeros(1, 1, 2, 2))
    for temperature in (1.0, 4.0):
        expected = (torch.tensor([logits]) / temperature).softmax(1)
        torch.testing.assert_close((answer / temperature).softmax(1), expected)
    # Sure beyond what a probability in fp32 can say, and still with a finite logarithm.
    assert saying([200.0, 0.0], [300.0, 0.0])(torch.zeros(1, 1, 2, 2)).isfinite().all()


def test_at_temperature_1_a_student_learns_as_from_the_mean_of_the_divergences():
    members, weights = (linear(0), linear(1)), (1.0, 2.0)
    image, one = torch.rand(5, 1, 2, 2), torch.tensor(1.0)
    student = torch.randn(5, 3, requires_grad=True)
    together = kd_kl(student, Ensemble(members, weights)(image), one).sum()
    apart = [
        w / 3.0 * kd_kl(student, m(image), one).sum() for m, w in zip(members, weights, strict=True)
    ]
    (found,), (expected,) = (torch.autograd.grad(loss, student) for loss in (together, sum(apart)))
    torch.testing.assert_close(found, expected)


def test_gradient_reaches_the_image_through_every_member():
    image = torch.rand(2, 1, 2, 2, requires_grad=True, dtype=torch.float64)
    members = [linear(0).double(), linear(1, mean=0.5, std=0.25).double()]
    ensemble = Ensemble(members, (1.0, 1.0))
    (whole,) = torch.autograd.grad(ensemble(image)[:, 0].sum(), image)
    for network in members:
        network.net[1].weight.data.zero_()
        (rest,) = torch.autograd.grad(ensemble(image)[:, 0].sum(), image)
        assert not torch.equal(rest, whole)
    assert not rest.any(), "nothing is left once neither member looks at the image"


def test_each_member_computes_in_its_own_precision():
    image = torch.rand(3, 1, 2, 2)
    plain = linear(0)(image).log_softmax(1)
    with torch.autocast("cpu", torch.bfloat16):
        kept = Ensemble([linear(0, torch.float32)], (1.0,))(image)
        rounded = Ensemble([linear(0)], (1.0,))(image)
    torch.testing.assert_close(kept, plain)
    error = (rounded - plain).abs().max()
    assert 1e-4 < error < 0.05
    mixed = Ensemble([linear(0), linear(1, torch.bfloat16)], (1.0, 1.0))(image)
    expected = (linear(0)(image).softmax(1) + linear(1)(image).softmax(1)) / 2
    torch.testing.assert_close(mixed.exp(), expected, atol=0.01, rtol=0)


def test_it_is_one_graph():
    ensemble = Ensemble([linear(0), linear(1, torch.bfloat16)], (1.0, 2.0))
    compiled = torch.compile(ensemble, fullgraph=True, backend="aot_eager")
    image = torch.rand(3, 1, 2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(compiled(image), ensemble(image))


def test_a_member_that_answers_twice_is_refused():
    class Twice(nn.Module):
        def forward(self, image):
            return image, image

    with pytest.raises(ValueError, match="teacher.also: each teacher must return one tensor"):
        Ensemble([Normalized(Twice(), (0.0,), (1.0,))], (1.0,))(torch.zeros(1, 1, 2, 2))
