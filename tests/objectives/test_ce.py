import math

import pytest
import torch

from hard_fast.objectives import build_objective
from hard_fast.objectives.ce import CeConfig, FocalConfig
from hard_fast.runtime.cycle import Cycle
from hard_fast.types import Needs, Phase


def test_value_by_hand(seen):
    logits = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]])
    found = build_objective(CeConfig()).student_loss(seen(logits, target=torch.eye(2).flip(0)))
    assert found.loss.item() == pytest.approx((math.log(2.0) + math.log(4 / 3)) / 2)
    # A tie counts as the first class, so the first sample is wrong and the second right.
    assert found.error.item() == 0.5


def test_needs_no_teacher():
    assert build_objective(CeConfig()).needs(Phase.STUDENT) == Needs()


def test_a_temperature_divides_the_logits_and_goes_its_cycle(seen):
    objective = build_objective(CeConfig(temperature=Cycle(ends=0.5, peak=2.0)))
    parts = seen(torch.tensor([[math.log(4.0), 0.0]]), target=torch.tensor([[0.0, 1.0]]))
    # The wrong class is 4^(1 / T) times as likely as the label.
    for step, odds in ((0, 16.0), (2, 2.0), (4, 16.0)):
        objective.advance(step, num_steps=5, num_steps_per_epoch=1)
        assert objective.student_loss(parts).loss.item() == pytest.approx(math.log(1 + odds))


def test_cyclical_focal_loss_by_hand(seen):
    focal = FocalConfig(gamma=2.0, gamma_sure=3.0, factor=2.0)
    objective = build_objective(CeConfig(focal=focal))
    # p = 1/4 for the label of the first, no label for the second.
    logits = torch.tensor([[0.0, math.log(3.0)], [1.0, 0.0]], requires_grad=True)
    parts = seen(logits, target=torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    sure, unsure = 1.25**3, 0.75**2
    for step, share in ((0, 1.0), (1, 0.5), (2, 0.0), (4, 1.0)):
        objective.advance(step, num_steps=5, num_steps_per_epoch=1)
        loss = objective.student_loss(parts).loss
        weight = share * sure + (1 - share) * unsure
        assert loss.item() == pytest.approx(weight * math.log(4.0), rel=1e-5)


def test_focal_loss_without_exponents_is_the_cross_entropy(seen):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, generator=generator, requires_grad=True)
    target = torch.randn(6, 4, generator=generator).softmax(1)
    focal = FocalConfig(gamma=0.0, gamma_sure=0.0)
    losses = [
        build_objective(CeConfig(label_smoothing=0.1, **options))
        .student_loss(seen(logits, target=target))
        .loss
        for options in ({}, {"focal": focal})
    ]
    torch.testing.assert_close(losses[0], losses[1])


def test_a_sample_that_is_quite_sure_has_a_finite_gradient(seen):
    logits = torch.tensor([[200.0, 0.0]], requires_grad=True)
    objective = build_objective(CeConfig(focal=FocalConfig(gamma=0.5)))
    objective.advance(1, num_steps=5, num_steps_per_epoch=1)
    objective.student_loss(seen(logits, target=torch.tensor([[1.0, 0.0]]))).loss.backward()
    assert logits.grad.isfinite().all()


def test_one_graph_serves_the_whole_cycle(seen):
    objective = build_objective(
        CeConfig(temperature=Cycle(ends=0.5, peak=2.0), focal=FocalConfig())
    )
    torch._dynamo.reset()
    compiled = torch.compile(objective.student_loss, fullgraph=True, backend="aot_eager")
    parts = seen(torch.randn(4, 3), target=torch.eye(4)[:, :3])
    with torch.compiler.set_stance("default"):
        compiled(parts)
    with torch.compiler.set_stance("fail_on_recompile"):
        for step in range(4):
            objective.advance(step, num_steps=4, num_steps_per_epoch=1)
            torch.testing.assert_close(compiled(parts).loss, objective.student_loss(parts).loss)
