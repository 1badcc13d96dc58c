import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from hard_fast.augment import AugmentorConfig, build_augmentor
from hard_fast.augment.affine import AffineConfig
from hard_fast.augment.fixed import IdentityConfig
from hard_fast.models.taps import Tapped
from hard_fast.objectives import build_objective
from hard_fast.objectives.base import Objective, terms
from hard_fast.objectives.ce import CeConfig
from hard_fast.objectives.hard import HardConfig
from hard_fast.step import DistillStep
from hard_fast.types import Batch, Needs, Phase


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)
    )


def batch() -> Batch:
    generator = torch.Generator().manual_seed(3)
    image = torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8, generator=generator)
    image = image.contiguous(memory_format=torch.channels_last)
    return Batch(image, torch.tensor([0, 1, 2, 0, 1, -1]))


def make(config=None, objective=None, teacher=True, amp_dtype=None):
    torch.manual_seed(0)
    config = config or AffineConfig(std=0.1)
    augmentor = build_augmentor(config, torch.Size([1, 8, 8]), is_picture=True)
    objective = objective or build_objective(HardConfig())
    student = Tapped(network(), amp_dtype=amp_dtype)
    judge = Tapped(network(), amp_dtype=amp_dtype) if teacher else None
    return DistillStep(augmentor, student, judge, objective, num_classes=3)


def noise_for(step):
    return step.augmentor.draw_noise(torch.Size([6, 1, 8, 8]), torch.Generator().manual_seed(1))


def gradients(module):
    return [p.grad for p in module.parameters() if p.grad is not None]


@pytest.mark.parametrize("phase", list(Phase))
def test_gradients_reach_the_learners_of_the_phase_and_no_other(phase):
    step = make()
    step.learn(phase)
    step(phase, batch(), noise_for(step)).loss.backward()
    for module, learns in (
        (step.student, phase is not Phase.AUGMENTOR),
        (step.augmentor, phase is not Phase.STUDENT),
        (step.teacher, False),
        (step.drawn, False),
    ):
        found = gradients(module)
        assert len(found) == (len(list(module.parameters())) if learns else 0)
    assert {id(p) for p in step.learners(phase)} == {
        id(p) for p in step.parameters() if p.grad is not None
    }


def test_an_idle_network_does_not_move_its_batch_statistics():
    step = make()
    means = {
        name: m[1].running_mean
        for name, m in (("s", step.student.network), ("t", step.teacher.network))
    }
    before = {name: mean.clone() for name, mean in means.items()}
    step.learn(Phase.AUGMENTOR)
    step(Phase.AUGMENTOR, batch(), noise_for(step))
    assert all(torch.equal(before[name], means[name]) for name in means)
    step.learn(Phase.STUDENT)
    step(Phase.STUDENT, batch(), noise_for(step))
    assert not torch.equal(before["s"], means["s"]) and torch.equal(before["t"], means["t"])


def test_joint_gives_the_student_its_gradient_and_the_augmentor_the_reversed_one():
    step = make()
    step.learn(Phase.JOINT)
    joint = step(Phase.JOINT, batch(), noise_for(step))
    joint.loss.backward()
    reversed_grad = step.augmentor.mean.grad.clone()
    student_grad = gradients(step.student)[0].clone()
    step.zero_grad()
    # The same loss by hand, without the reversal.
    seen = step.make_view(Phase.JOINT, batch(), noise_for(step))
    plain = step.objective.apart(
        step.student(seen.image).logits_BK, step.teacher(seen.image).logits_BK
    ).mean()
    plain.backward()
    torch.testing.assert_close(joint.loss, plain)
    torch.testing.assert_close(reversed_grad, -step.augmentor.mean.grad)
    torch.testing.assert_close(student_grad, gradients(step.student)[0])


def test_the_student_sees_the_drawn_augmentor_and_the_augmentor_phase_the_learner():
    step = make()
    with torch.no_grad():
        step.drawn.mean[2] = 0.5
    made = {phase: step.make_view(phase, batch(), noise_for(step)).image for phase in Phase}
    assert not torch.equal(made[Phase.STUDENT], made[Phase.AUGMENTOR])
    assert torch.equal(made[Phase.JOINT], made[Phase.AUGMENTOR])


def test_the_drawn_copy_shares_what_is_frozen():
    class HalfFrozen(type(make().augmentor)):
        def __init__(self):
            super().__init__(AffineConfig())
            self.scale.requires_grad_(False)

    step = DistillStep(
        HalfFrozen(), Tapped(network()), Tapped(network()), build_objective(HardConfig()), 3
    )
    assert step.drawn.scale is step.augmentor.scale
    assert step.drawn.mean is not step.augmentor.mean
    fixed = make(IdentityConfig())
    assert fixed.drawn is fixed.augmentor


def test_labels_become_targets_and_unlabelled_rows_are_zero():
    target = make().make_view(Phase.STUDENT, batch(), noise_for(make())).target_BK
    assert target.tolist()[:3] == [[1, 0, 0], [0, 1, 0], [0, 0, 1]] and target[5].sum() == 0


def test_phases_are_one_graph_each_and_nothing_recompiles_between_them():
    step = make()
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    whole = torch.compile(step, fullgraph=True, dynamic=False, backend=count)
    phases = [Phase.STUDENT, Phase.AUGMENTOR, Phase.JOINT]
    eager, seen = [], []
    for phase in phases:
        step.learn(phase)
        eager.append(step(phase, batch(), noise_for(step)).loss.item())
        seen.append(whole(phase, batch(), noise_for(step)).loss.item())
    assert len(graphs) == 3 and seen == pytest.approx(eager, rel=1e-5, abs=1e-6)
    with torch.compiler.set_stance("fail_on_recompile"):
        for phase in phases * 2:
            with torch.no_grad():
                step.drawn.mean.add_(0.01)
            step.learn(phase)
            whole(phase, batch(), noise_for(step)).loss.backward()
    assert len(graphs) == 3


class Picky(Objective):
    """Uses every part of the contract that HARD does not."""

    def __init__(self, by_student):
        super().__init__()
        self.by_student, self.seen = by_student, None

    def needs(self, phase):
        return Needs(
            teacher=not self.by_student,
            clean_teacher=True,
            clean_student=True,
            student_copies=2,
            student_taps=("2",),
            keep=0.5,
            keep_by_student=self.by_student,
        )

    def keep_score(self, outputs):
        return outputs.logits_BK[:, 0]

    def student_loss(self, seen):
        self.seen = seen
        return terms(seen.student[0].logits_BK.mean(), seen.student[0].logits_BK.mean())


@pytest.mark.parametrize("by_student", [False, True])
def test_the_whole_contract_copies_clean_views_and_keeping_the_highest_scores(by_student):
    objective = Picky(by_student)
    step = make(IdentityConfig(), objective)
    step.student.eval()
    step(Phase.STUDENT, batch(), {})
    seen, judge = objective.seen, step.student if by_student else step.teacher
    image = batch().image / 255.0
    best = judge(image).logits_BK[:, 0].topk(3).indices
    assert torch.equal(seen.view.image, image[best]) and len(seen.view.target_BK) == 3
    assert len(seen.student) == 2 and len(seen.student[0].logits_BK) == 3
    assert len(seen.clean_student.logits_BK) == len(seen.clean_teacher.logits_BK) == 6
    if not by_student:
        torch.testing.assert_close(seen.teacher.logits_BK, judge(image).logits_BK[best])


def test_no_teacher_is_run_where_none_is_needed():
    step = make(IdentityConfig(), build_objective(CeConfig()), teacher=False)
    assert step(Phase.STUDENT, batch(), {}).loss.item() > 0


def test_losses_are_fp32_under_autocast():
    step = make(amp_dtype=torch.bfloat16)
    step.learn(Phase.AUGMENTOR)
    found = step(Phase.AUGMENTOR, batch(), noise_for(step))
    assert found.loss.dtype == torch.float32
    found.loss.backward()
    assert step.augmentor.mean.grad.dtype == torch.float32


def test_networks_are_called_through_their_routes():
    step, calls = make(), []

    def through(image):
        calls.append(image.shape)
        return step.student(image)

    plain = step(Phase.STUDENT, batch(), noise_for(step)).loss
    step.route(student=through)
    step.student.train(False)
    step.student.train(True)
    assert torch.equal(step(Phase.STUDENT, batch(), noise_for(step)).loss, plain)
    assert len(calls) == 1 and "through" not in "".join(step.state_dict())


def test_the_clean_view_is_what_reached_the_first_part_that_learns():
    parts = [{"kind": "mixup"}, {"kind": "affine", "std": 0.0}]
    config = TypeAdapter(AugmentorConfig).validate_python({"kind": "compose", "parts": parts})
    step = make(config)
    step.learn(Phase.AUGMENTOR)
    noise = noise_for(step)
    logs = step(Phase.AUGMENTOR, batch(), noise).logs
    # An untouched affine part changes nothing, though mixup before it does.
    assert logs["teacher_apart"].item() == pytest.approx(0.0, abs=1e-6)
    view = step.make_view(Phase.AUGMENTOR, batch(), noise)
    torch.testing.assert_close(view.original, view.image, rtol=0, atol=1e-5)
    assert (view.original - batch().image / 255).abs().max() > 0.1
    first = make(AffineConfig(std=0.0)).make_view(Phase.AUGMENTOR, batch(), noise_for(make()))
    assert first.original is None
