import math

import pytest
import torch
from torch import nn

from hard_fast.augment.tst import Tst, TstConfig
from hard_fast.models.taps import Tapped
from hard_fast.objectives import build_objective
from hard_fast.objectives.tst import TstLossConfig, not_the_label
from hard_fast.step import DistillStep
from hard_fast.types import Batch, Outputs, Phase

HALF = torch.zeros(2, 2)
SURE = torch.tensor([[math.log(9.0), 0.0], [0.0, math.log(9.0)]])  # 0.9 for the label
LABELS = torch.eye(2)


def network():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)
    )


def make():
    torch.manual_seed(0)
    nets = Tapped(network(), ()), Tapped(network(), ())
    return DistillStep(Tst(TstConfig()), *nets, build_objective(TstLossConfig()), num_classes=3)


def batch():
    image = torch.randint(0, 256, (6, 3, 8, 8), generator=torch.Generator().manual_seed(3))
    image = image.byte().contiguous(memory_format=torch.channels_last)
    return Batch(image, torch.tensor([0, 1, 2, 0, 1, -1]))


def noise_for(step):
    return step.augmentor.draw_noise(torch.Size([6, 3, 8, 8]), torch.Generator().manual_seed(1))


def test_the_augmentors_loss_by_hand(seen):
    objective = build_objective(TstLossConfig(teacher_weight=2.0, student_weight=3.0))
    terms = objective.augmentor_loss(seen(SURE, HALF, target=LABELS))
    # Teacher: -log 0.5; student: -log(1 - 0.9).
    assert terms.loss.item() == pytest.approx(2 * math.log(2) + 3 * math.log(10))
    assert terms.logs["student_wrong"].item() == pytest.approx(math.log(10))
    # What carries no label counts for nothing.
    half = seen(SURE, HALF, target=LABELS * torch.tensor([[1.0], [0.0]]))
    torch.testing.assert_close(objective.augmentor_loss(half).loss, terms.loss)


def test_the_students_loss_by_hand(seen):
    objective = build_objective(TstLossConfig(temperature=1.0, kl_weight=0.5))
    parts = seen(HALF, SURE, HALF, target=LABELS)
    parts = parts._replace(clean_student=Outputs(SURE, {}))
    terms = objective.student_loss(parts)
    # x~: CE log 2, KL of (0.9, 0.1) from a half each; x: CE -log 0.9, KL the other way round.
    made = math.log(2) + 0.5 * (0.9 * math.log(1.8) + 0.1 * math.log(0.2))
    clean = -math.log(0.9) + 0.5 * 0.5 * (math.log(0.5 / 0.9) + math.log(0.5 / 0.1))
    assert terms.loss.item() == pytest.approx((made + clean) / 2)
    assert terms.logs["loss_originals"].item() == pytest.approx(clean)


def test_a_student_that_is_quite_sure_still_gives_a_gradient():
    logits = torch.tensor([[60.0, 0.0, 0.0]], requires_grad=True)
    loss = not_the_label(logits, torch.tensor([[1.0, 0.0, 0.0]]))
    loss.backward()
    assert loss.item() == pytest.approx(60.0 - math.log(2))
    torch.testing.assert_close(logits.grad, torch.tensor([[1.0, -0.5, -0.5]]))


@pytest.mark.parametrize("phase", [Phase.STUDENT, Phase.AUGMENTOR])
def test_gradients_reach_the_learner_of_the_phase_and_no_other(phase):
    step = make()
    step.learn(phase)
    step(phase, batch(), noise_for(step)).loss.backward()
    given = {id(p) for p in step.parameters() if p.grad is not None}
    learner = step.student if phase is Phase.STUDENT else step.augmentor
    assert given == {id(p) for p in learner.parameters()}
    assert all(p.grad.abs().max() > 0 for p in learner.parameters())


@pytest.mark.parametrize("phase", [Phase.STUDENT, Phase.AUGMENTOR])
def test_compiled_and_eager_agree(phase):
    step = make()
    step.learn(phase)
    noise, found = noise_for(step), []
    torch._dynamo.reset()
    for run in (step, torch.compile(step, fullgraph=True, dynamic=False, backend="aot_eager")):
        step.zero_grad()
        terms = run(phase, batch(), noise)
        terms.loss.backward()
        grads = [p.grad.clone() for p in step.parameters() if p.grad is not None]
        found.append((terms.loss, terms.logs, grads))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


def test_a_few_steps_lower_the_augmentors_loss():
    step = make()
    step.learn(Phase.AUGMENTOR)
    optimizer = torch.optim.SGD(step.augmentor.parameters(), lr=0.5)
    noise, losses = noise_for(step), []
    for _ in range(30):
        loss = step(Phase.AUGMENTOR, batch(), noise).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.002
