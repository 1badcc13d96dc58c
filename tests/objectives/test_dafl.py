"""DAFL's terms by hand, and whom their gradients reach."""

import math

import pytest
import torch
from torch import nn

from hard_fast.augment import build_augmentor
from hard_fast.augment.generator import GeneratorConfig
from hard_fast.models.taps import Tapped
from hard_fast.objectives import build_objective
from hard_fast.objectives.dafl import DaflConfig, entropy_digits, one_hot_apart
from hard_fast.objectives.terms import kd_kl
from hard_fast.step import DistillStep
from hard_fast.types import Batch, Phase

# Probabilities 3/4 and 1/4, once for either class.
LOGITS = torch.tensor([[math.log(3.0), 0.0], [0.0, math.log(3.0)]])
DIGITS = -(0.75 * math.log10(0.75) + 0.25 * math.log10(0.25))


@pytest.mark.parametrize(
    ("distance", "apart"), [("ce", -math.log(0.75)), ("l1", 0.5), ("l2", 0.125)]
)
def test_the_distance_from_certainty_by_hand(distance, apart):
    found = one_hot_apart(LOGITS, distance)
    torch.testing.assert_close(found, torch.full((2,), apart))


def test_the_entropy_of_the_batch_and_of_each_sample_by_hand():
    # The mean answer is (1/2, 1/2): log10 2.
    assert entropy_digits(LOGITS, of_batch=True).item() == pytest.approx(math.log10(2.0))
    assert entropy_digits(LOGITS, of_batch=False).item() == pytest.approx(DIGITS)


def test_an_entropy_of_certain_answers_has_a_gradient():
    certain = torch.tensor([[200.0, 0.0]], requires_grad=True)
    for of_batch in (True, False):
        entropy_digits(certain, of_batch=of_batch).backward()
    assert torch.isfinite(certain.grad).all()


@pytest.mark.parametrize(("entropy_of", "digits"), [("batch", math.log10(2.0)), ("sample", DIGITS)])
def test_the_generators_loss_by_hand(seen, entropy_of, digits):
    config = DaflConfig(one_hot=2.0, activation=0.1, entropy=5.0, entropy_of=entropy_of)
    given = seen(LOGITS, LOGITS)
    features = torch.tensor([[1.0, -3.0], [0.0, 2.0]])
    given = given._replace(teacher=given.teacher._replace(taps={"flatten": features}))
    found = build_objective(config).augmentor_loss(given)
    want = -2.0 * math.log(0.75) - 0.1 * 1.5 - 5.0 * digits
    assert found.loss.item() == pytest.approx(want)
    assert found.logs["activation"].item() == pytest.approx(-1.5)
    assert found.error.item() == pytest.approx(0.25)


def make(config=None):
    torch.manual_seed(0)
    shape = torch.Size([1, 8, 8])
    generator = GeneratorConfig(latent=3, width=2)

    def network():
        layers = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)
        return nn.Sequential(*layers)

    step = DistillStep(
        build_augmentor(generator, shape, is_picture=True),
        Tapped(network()),
        Tapped(network(), ("2",)).eval(),
        build_objective(config or DaflConfig(features="2")),
        num_classes=3,
    )
    batch = Batch(torch.zeros(6, *shape, dtype=torch.uint8), torch.full((6,), -1))
    noise = step.augmentor.draw_noise(batch.image.shape, torch.Generator().manual_seed(1))
    return step, batch, noise


@pytest.mark.parametrize("phase", list(Phase))
def test_gradients_reach_the_learners_of_the_phase_and_no_other(phase):
    step, batch, noise = make()
    step.learn(phase)
    step(phase, batch, noise).loss.backward()
    found = {id(p) for p in step.parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert found == {id(p) for p in step.learners(phase)}


def test_in_one_pass_each_network_gets_the_gradient_of_its_own_loss():
    step, batch, noise = make()
    step.learn(Phase.JOINT)
    step(Phase.JOINT, batch, noise).loss.backward()
    joint = {name: p.grad.clone() for name, p in step.named_parameters() if p.grad is not None}
    step.zero_grad()
    image = step.augmentor(step.make_view(Phase.JOINT, batch, noise), noise).image
    apart = kd_kl(
        step.student(image.detach()).logits_BK,
        step.teacher(image.detach()).logits_BK,
        torch.tensor(1.0),
    )
    apart.mean().backward()
    step.learn(Phase.AUGMENTOR)
    step(Phase.AUGMENTOR, batch, noise).loss.backward()
    alone = {name: p.grad for name, p in step.named_parameters() if p.grad is not None}
    assert alone.keys() == joint.keys() and len(joint) > 8
    for name, gradient in joint.items():
        torch.testing.assert_close(gradient, alone[name], rtol=1e-4, atol=1e-6)


def test_the_student_is_not_asked_while_the_generator_learns_alone():
    step, batch, noise = make()
    asked = []
    step.student.register_forward_hook(lambda *call: asked.append(1))
    step.learn(Phase.AUGMENTOR)
    step(Phase.AUGMENTOR, batch, noise)
    assert not asked
    step.learn(Phase.JOINT)
    step(Phase.JOINT, batch, noise)
    assert asked == [1]


@pytest.mark.parametrize("phase", [Phase.JOINT, Phase.STUDENT])
def test_compiled_it_is_the_same(phase):
    step, batch, noise = make()
    step.learn(phase)
    eager = step(phase, batch, noise)
    found = torch.compile(step, fullgraph=True, backend="aot_eager")(phase, batch, noise)
    torch.testing.assert_close(found.loss, eager.loss)
    for name, value in eager.logs.items():
        torch.testing.assert_close(found.logs[name], value)
