"""CuDFKD's curricula and losses by hand, and whom their gradients reach."""

import math

import pytest
import torch
from torch import nn

from hard_fast.augment import build_augmentor
from hard_fast.augment.generator import GeneratorConfig
from hard_fast.models.statistics import NORM_GAP
from hard_fast.models.taps import Tapped
from hard_fast.objectives import build_objective
from hard_fast.objectives.cudfkd import CudfkdConfig, easiness
from hard_fast.step import DistillStep
from hard_fast.types import Batch, Phase


def test_easiness_by_hand():
    pace = torch.tensor(math.log(3.0))
    # (1 + 1/3) / (1 + x/3) for e^loss = x.
    found = easiness(torch.tensor([0.0, math.log(3.0), math.log(9.0)]), pace)
    torch.testing.assert_close(found, torch.tensor([1.0, 2.0 / 3.0, 1.0 / 3.0]))


@pytest.mark.parametrize(
    ("step", "adversarial"),
    [
        (0, 0.0),
        (29, 0.0),
        (30, 0.0),
        (39, 0.0),
        (40, 0.5),
        (59, 1.0),
        (60, 1.5),
        (70, 2.0),
        (99, 2.0),
    ],
)
def test_the_ramp_grows_after_each_epoch_strictly_between_its_ends(step, adversarial):
    # Ten epochs of ten steps: int(2.5) = 2 and int(7.5) = 7, so epochs 3, 4, 5 and 6 add 0.5 each.
    objective = build_objective(CudfkdConfig())
    objective.advance(step, num_steps=100, num_steps_per_epoch=10)
    assert objective.adversarial.item() == adversarial
    assert objective.pace.item() == pytest.approx(2.0 + 1e-4 * step)


def test_the_students_loss_by_hand(seen):
    objective = build_objective(CudfkdConfig(pace=math.log(3.0)))
    student = torch.tensor([[2.0, 1.0], [0.0, 4.0 * math.log(3.0)]], requires_grad=True)
    teacher = torch.tensor([[2.0, 1.0], [0.0, 2.0 * math.log(3.0)]])
    found = objective.student_loss(seen(student, teacher))
    # Losses 0 and log 3, weights 1 and 2/3; no gradient through a weight.
    assert found.loss.item() == pytest.approx(math.log(3.0) / 3.0)
    assert found.logs["sample_weight"].item() == pytest.approx(5.0 / 6.0)
    found.loss.backward()
    assert student.grad[1, 1].item() == pytest.approx(0.5 * (2.0 / 3.0) * 0.5)


def test_the_generators_loss_by_hand(seen):
    config = CudfkdConfig(entropy=2.0, temperature=2.0, adversarial_temperature=3.0, statistics=3.0)
    objective = build_objective(config)
    objective.adversarial.fill_(4.0)
    # Of the first class: 64/65 at T = 1, 8/9 at 2, 4/5 at 3; of the second picture 1/10 and 1/4.
    teacher = torch.tensor([[math.log(64.0), 0.0], [0.0, math.log(9.0)]])
    # They agree on the first picture only: KL of (4/5, 1/5) from (1/2, 1/2) there, at T = 3.
    student = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    given = seen(student, teacher)
    taps = {NORM_GAP: torch.tensor([0.25, 0.5])}
    found = objective.augmentor_loss(given._replace(teacher=given.teacher._replace(taps=taps)))
    apart = 9.0 * (0.8 * math.log(1.6) + 0.2 * math.log(0.4))
    one_hot = (math.log(65.0 / 64.0) + math.log(10.0 / 9.0)) / 2.0
    share = (8.0 / 9.0 + 1.0 / 4.0) / 2.0
    entropy = -share * math.log(share) - (1.0 - share) * math.log(1.0 - share)
    want = one_hot - 2.0 * entropy - 4.0 * apart / 2.0 + 3.0 * 0.75
    assert found.loss.item() == pytest.approx(want)
    assert found.error.item() == 0.5


def make():
    torch.manual_seed(0)
    shape = torch.Size([1, 8, 8])
    generator = GeneratorConfig(latent=3, width=2, norm_eps=1e-5, output="sigmoid")

    def network(*taps):
        layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
        return Tapped(nn.Sequential(*layers), taps)

    step = DistillStep(
        build_augmentor(generator, shape, is_picture=True),
        network(),
        network(NORM_GAP),
        build_objective(CudfkdConfig()),
        num_classes=3,
    )
    batch = Batch(torch.zeros(6, *shape, dtype=torch.uint8), torch.full((6,), -1))
    noise = step.augmentor.draw_noise(batch.image.shape, torch.Generator().manual_seed(1))
    return step, batch, noise


@pytest.mark.parametrize("phase", [Phase.STUDENT, Phase.AUGMENTOR])
def test_gradients_reach_the_learners_of_the_phase_and_no_other(phase):
    step, batch, noise = make()
    step.objective.adversarial.fill_(1.0)
    step.learn(phase)
    step(phase, batch, noise).loss.backward()
    found = {id(p) for p in step.parameters() if p.grad is not None}
    assert found == {id(p) for p in step.learners(phase)}


@pytest.mark.parametrize("phase", [Phase.STUDENT, Phase.AUGMENTOR])
def test_compiled_it_is_the_same_and_the_curricula_do_not_recompile(phase):
    step, batch, noise = make()
    step.learn(phase)
    whole = torch.compile(step, fullgraph=True, backend="aot_eager")
    for number in (0, 60):
        step.objective.advance(number, num_steps=100, num_steps_per_epoch=10)
        with torch.compiler.set_stance("fail_on_recompile" if number else "default"):
            found = whole(phase, batch, noise)
        eager = step(phase, batch, noise)
        torch.testing.assert_close(found.loss, eager.loss)


def test_a_ramp_that_ends_before_it_begins_is_refused():
    with pytest.raises(ValueError, match=r"begin = 0.8 must be below end = 0.5"):
        CudfkdConfig(begin=0.8, end=0.5)
