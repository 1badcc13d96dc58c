import math

import pytest
import torch
from torch import nn

from hard_fast.augment import build_augmentor
from hard_fast.augment.copies import CopiesConfig
from hard_fast.augment.fixed import CutmixConfig, IdentityConfig
from hard_fast.models.taps import Tapped
from hard_fast.objectives import build_objective
from hard_fast.objectives.cutmixpick import CutmixpickConfig
from hard_fast.step import DistillStep
from hard_fast.types import Batch, Outputs, Phase, Seen, View

# Logits whose softmax is known: 1/2 1/2, 3/4 1/4, 1/4 3/4.
EVEN, LEFT, RIGHT = [0.0, 0.0], [math.log(3.0), 0.0], [0.0, math.log(3.0)]


def out(rows):
    return Outputs(torch.tensor(rows, requires_grad=True), {})


def seen(label=(0,)):
    """One original, EVEN to the student and LEFT to the teacher; two copies, the other way round
    and alike."""
    batch = Batch(torch.zeros(1, 1, 1, 1), torch.tensor(label))
    view = View(torch.zeros(2, 1, 1, 1), None)
    student, teacher = out([LEFT, RIGHT]), out([EVEN, RIGHT])
    return Seen(batch, view, {}, (student,), teacher, out([EVEN]), out([LEFT]))


def test_the_loss_by_hand():
    found = build_objective(CutmixpickConfig(temperature=1.0, ce_share=0.25)).student_loss(seen())
    original = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    copies = (0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)) / 2
    want = 0.25 * math.log(2.0) + 0.75 * (original + copies)
    assert found.loss.item() == pytest.approx(want, rel=1e-6)
    assert found.logs["kl_originals"].item() == pytest.approx(original, rel=1e-6)
    assert found.logs["kl_copies"].item() == pytest.approx(copies, rel=1e-6)


def test_the_temperature_is_in_both_softmaxes_and_squared_before_them():
    # Logits four times as large at T = 4 are the same softmaxes.
    one = seen()
    large = [Outputs(4.0 * x.logits_BK, {}) for x in (one.student[0], *one[4:])]
    four = Seen(*one[:3], (large[0],), *large[1:])
    small = CutmixpickConfig(temperature=1.0, ce_share=0.0)
    got = build_objective(CutmixpickConfig(ce_share=0.0)).student_loss(four).loss
    want = build_objective(small).student_loss(one).loss
    torch.testing.assert_close(got, 16.0 * want)


def test_an_original_without_a_label_has_no_cross_entropy():
    objective = build_objective(CutmixpickConfig())
    assert objective.student_loss(seen(label=(-1,))).logs["ce"].item() == 0.0


def test_the_score_is_the_entropy_at_temperature_1():
    objective = build_objective(CutmixpickConfig())
    want = [math.log(2.0), 0.75 * math.log(4 / 3) + 0.25 * math.log(4.0), 0.0]
    got = objective.keep_score(out([EVEN, LEFT, [1000.0, 0.0]]))
    torch.testing.assert_close(got, torch.tensor(want))


class Spy(nn.Module):
    """Logits that are a linear function of the mean pixel, and how many images came each time."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope, self.seen = nn.Parameter(torch.tensor([0.0, slope])), []

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.seen.append(image.flatten(1).mean(1).tolist())
        return image.mean((1, 2, 3))[:, None] * self.slope


def make(entropy_of="teacher", part=None, num=2):
    config = CopiesConfig(base=IdentityConfig(), part=part or IdentityConfig(), num=num)
    augmentor = build_augmentor(config, torch.Size([1, 8, 8]), is_picture=True)
    objective = build_objective(CutmixpickConfig(keep=1.0 / num, entropy_of=entropy_of))
    student, teacher = Spy(-1.0), Spy(2.0)
    return DistillStep(augmentor, Tapped(student), Tapped(teacher), objective, 2), student, teacher


def batch():
    grey = torch.tensor([0, 51, 102, 204], dtype=torch.uint8)
    return Batch(grey.view(4, 1, 1, 1).expand(4, 1, 8, 8).contiguous(), torch.tensor([0, 1, 0, 1]))


@pytest.mark.parametrize("judge", ["teacher", "student"])
def test_a_batch_of_the_pool_is_kept_and_the_originals_are_seen_whole(judge):
    """The darker, the less sure: both copies of the two darkest are the half that is kept."""
    step, student, teacher = make(judge)
    step(Phase.STUDENT, batch(), {})
    originals, pool = [0.0, 0.2, 0.4, 0.8], [0.0, 0.2, 0.4, 0.8] * 2
    shown = ([pool] if judge == "student" else []) + [[0.0, 0.0, 0.2, 0.2], originals]
    assert [sorted(one) for one in student.seen] == [pytest.approx(sorted(one)) for one in shown]
    wanted = [sorted(pool), originals]
    assert [sorted(one) for one in teacher.seen] == [pytest.approx(one) for one in wanted]


def test_gradients_reach_the_student_alone():
    step, student, teacher = make(part=CutmixConfig())
    noise = step.augmentor.draw_noise(batch().image.shape, torch.Generator().manual_seed(0))
    step(Phase.STUDENT, batch(), noise).loss.backward()
    assert student.slope.grad.abs().sum() > 0.0 and teacher.slope.grad is None


@pytest.mark.parametrize("judge", ["teacher", "student"])
def test_one_graph_equals_eager(judge):
    torch.manual_seed(0)
    config = CopiesConfig(part=CutmixConfig(), num=2)
    augmentor = build_augmentor(config, torch.Size([1, 8, 8]), is_picture=True)
    objective = build_objective(CutmixpickConfig(entropy_of=judge))
    nets = [nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 2)) for _ in range(2)]
    step = DistillStep(augmentor, *map(Tapped, nets), objective, 2)
    noise = augmentor.draw_noise(torch.Size([4, 1, 8, 8]), torch.Generator().manual_seed(0))
    eager = step(Phase.STUDENT, batch(), noise)
    torch._dynamo.reset()
    whole = torch.compile(step, fullgraph=True, dynamic=False, backend="aot_eager")
    torch.testing.assert_close(whole(Phase.STUDENT, batch(), noise), eager)


def test_it_has_no_loss_for_an_augmentor():
    with pytest.raises(ValueError, match="no loss for an augmentor"):
        build_objective(CutmixpickConfig()).augmentor_loss(seen())
