import math

import pytest
import torch
from timm import create_model

from hard_fast.objectives import build_objective
from hard_fast.objectives.token import TokenConfig
from hard_fast.types import Outputs

LN3 = math.log(3.0)


def given(seen, label_logits, distilled_logits, teacher):
    """Both heads' outputs, their mean as the answer, and labels of class 0."""
    mean = (label_logits + distilled_logits) / 2
    found = seen(mean, teacher, target=torch.eye(2)[:1].expand(len(mean), -1))
    taps = {"head": label_logits, "head_dist": distilled_logits}
    return found._replace(student=(Outputs(mean, taps),))


def test_hard_by_hand(seen):
    # The class head gives its label 3/4; the other head gives the teacher's choice, class 1, 1/2.
    found = build_objective(TokenConfig(teacher_share=0.25)).student_loss(
        given(seen, torch.tensor([[LN3, 0.0]]), torch.zeros(1, 2), torch.tensor([[0.0, 1.0]]))
    )
    label, taught = math.log(4 / 3), math.log(2.0)
    assert found.loss.item() == pytest.approx(0.75 * label + 0.25 * taught)
    assert found.logs["label_loss"].item() == pytest.approx(label)
    assert found.logs["teacher_loss"].item() == pytest.approx(taught)
    assert found.error.item() == 1.0, "the mean of both heads says 0, the teacher 1"


def test_soft_by_hand(seen):
    # At T = 2 the teacher says (3/4, 1/4), the distillation head (1/2, 1/2).
    config = TokenConfig(mode="soft", temperature=2.0, teacher_share=0.1)
    teacher = torch.tensor([[2.0 * LN3, 0.0]])
    found = build_objective(config).student_loss(
        given(seen, torch.zeros(1, 2), torch.zeros(1, 2), teacher)
    )
    kl = 4.0 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert found.loss.item() == pytest.approx(0.9 * math.log(2.0) + 0.1 * kl, rel=1e-5)


def test_only_the_labels_are_smoothed(seen):
    logits = given(seen, torch.tensor([[LN3, 0.0]]), torch.zeros(1, 2), torch.tensor([[0.0, 1.0]]))
    found = build_objective(TokenConfig(label_smoothing=0.2)).student_loss(logits)
    smooth = 0.9 * math.log(4 / 3) + 0.1 * math.log(4.0)
    assert found.logs["label_loss"].item() == pytest.approx(smooth)
    assert found.logs["teacher_loss"].item() == pytest.approx(math.log(2.0))


def distilled():
    torch.manual_seed(0)
    sizes = {"embed_dim": 12, "depth": 1, "num_heads": 2, "patch_size": 8, "img_size": 16}
    net = create_model("deit_tiny_distilled_patch16_224", num_classes=4, **sizes)
    for head in (net.head, net.head_dist):
        torch.nn.init.normal_(head.weight)
    return net


def teacher():
    torch.manual_seed(1)
    return create_model("test_resnet", num_classes=4)


@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_each_head_learns_from_its_own_part_alone(whole_step, student_gradients, pictures, mode):
    by_share = {}
    for share in (0.0, 0.5, 1.0):
        objective = build_objective(TokenConfig(mode=mode, teacher_share=share))
        by_share[share] = student_gradients(whole_step(objective, distilled(), teacher()), pictures)
    heads = {f"student.network.head{name}" for name in (".weight", ".bias")}
    distilled_heads = {f"student.network.head_dist{name}" for name in (".weight", ".bias")}
    everything = {f"student.network.{name}" for name, _ in distilled().named_parameters()}
    assert by_share[0.5] == everything
    assert by_share[0.0] == everything - distilled_heads
    assert by_share[1.0] == everything - heads


def test_answers_are_the_mean_of_both_heads(whole_step, pictures):
    step = whole_step(build_objective(TokenConfig()), distilled(), teacher())
    image = pictures.image / 255
    for module in (step.student.train(), step.student.eval()):
        found = module(image)
        mean = (found.taps["head"] + found.taps["head_dist"]) / 2
        torch.testing.assert_close(found.logits_BK, mean)
        assert not torch.equal(found.taps["head"], found.taps["head_dist"])


@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_compiled_equals_eager(whole_step, same_compiled, pictures, mode):
    objective = build_objective(TokenConfig(mode=mode, temperature=3.0))
    same_compiled(whole_step(objective, distilled(), teacher()), pictures)


def test_a_student_without_the_token_is_named(whole_step):
    with pytest.raises(ValueError, match="tap 'head': no such module"):
        whole_step(build_objective(TokenConfig()), teacher(), teacher())
