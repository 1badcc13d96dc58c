import math

import pytest
import torch
from timm import create_model
from torch import nn

from hard_fast.models.branches import branched
from hard_fast.models.small import SMALL_NETS
from hard_fast.models.taps import Normalized
from hard_fast.objectives import build_objective
from hard_fast.objectives.self_distill import ByotConfig, CosubConfig, SdDropoutConfig
from hard_fast.objectives.terms import cross_entropy, kd_kl
from hard_fast.types import Needs, Outputs, Phase

LN3 = math.log(3.0)
SIZES = {"num_classes": 4, "in_channels": 3, "image_size": 16}


def byot_net():
    torch.manual_seed(0)
    options = {"widths": [4, 8], "num_blocks": 1}
    return branched(**SIZES, options=options, after=("layer1",))


def test_byot_by_hand(seen):
    # The final answer is (3/4, 1/4) at T = 2, the branch knows nothing, and the label is class 0.
    logits = torch.tensor([[2.0 * LN3, 0.0]])
    taps = {
        "exit1": torch.zeros(1, 2),
        "exit1_feature": torch.tensor([[1.0, 2.0, 0.0]]),
        "feature": torch.tensor([[0.0, 0.0, 3.0]]),
    }
    given = seen(logits, target=torch.eye(2)[:1])._replace(student=(Outputs(logits, taps),))
    config = ByotConfig(teacher_share=0.1, temperature=2.0, feature_weight=0.01)
    found = build_objective(config).student_loss(given)
    label = math.log(2.0) + math.log(10 / 9)
    kl = 4.0 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert found.loss.item() == pytest.approx(0.9 * label + 0.1 * kl + 0.01 * 14.0, rel=1e-5)
    assert found.logs["feature_loss"].item() == pytest.approx(14.0)
    assert found.error.item() == found.logs["exit1_error"].item() == 0.0


def test_byot_teaches_the_branches_alone(whole_step, student_gradients, pictures):
    whole = whole_step(build_objective(ByotConfig()), byot_net())
    everything = {f"student.network.{name}" for name, _ in byot_net().named_parameters()}
    assert student_gradients(whole, pictures) == everything
    # Without labels nothing goes to the final classifier, nor behind the branch.
    alone = whole_step(build_objective(ByotConfig(teacher_share=1.0)), byot_net())
    behind = ("trunk.layer2", "trunk.linear")
    expected = {
        name for name in everything if not name.removeprefix("student.network.").startswith(behind)
    }
    assert student_gradients(alone, pictures) == expected


def test_byot_without_branches_is_named_before_the_first_step(whole_step):
    plain = SMALL_NETS["resnet18_3x3"](4, 3, 16, (4, 4))
    none = branched(**SIZES, options={"widths": [4, 8], "num_blocks": 1}, after=())
    for net in (plain, Normalized(none, [0.5] * 3, [0.5] * 3)):
        with pytest.raises(ValueError, match="the student has no branches"):
            whole_step(build_objective(ByotConfig()), net)


class Wide(nn.Module):
    """Features that dropout may take, and the classifier that reads them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.flatten = nn.Flatten()
        self.features = nn.Linear(3 * 256, 6)
        self.classifier = nn.Linear(6, 4)

    def forward(self, image):
        return self.classifier(self.features(self.flatten(image)))


def sd_dropout(**changes):
    names = {"feature": "features", "classifier": "classifier"}
    return build_objective(SdDropoutConfig(**(names | changes)))


def dropped(step, image, dropout):
    """The outputs of both dropouts that the next step will draw from seed 5."""
    feature = step.student(image).taps["features"]
    torch.manual_seed(5)
    masks = [nn.functional.dropout(torch.ones_like(feature), dropout) for _ in range(2)]
    return [step.student.network.classifier(feature * mask) for mask in masks]


def test_sd_dropout_by_hand(seen):
    objective = sd_dropout(weight=2.0, temperature=2.0, dropout=0.5)
    classifier = nn.Linear(1, 2, bias=False)
    nn.init.zeros_(classifier.weight)
    # One feature of weight (ln 3, 0): kept, it doubles and says (3/4, 1/4) at T = 2; dropped, half.
    with torch.no_grad():
        classifier.weight[0, 0] = LN3
    objective._classifier = (classifier,)
    logits, taps = torch.tensor([[LN3, 0.0]]), {"features": torch.ones(1, 1)}
    given = seen(logits, target=torch.eye(2)[:1])._replace(student=(Outputs(logits, taps),))
    there = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    back = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    label = math.log(4 / 3)
    found = []
    torch.manual_seed(0)
    for _ in range(20):
        found.append(objective.student_loss(given).loss.item())
    wanted = [label, label + 2.0 * 4.0 * (there + back)]
    assert all(min(abs(loss - value) for value in wanted) < 1e-5 for loss in found)
    assert min(found) < label + 1e-5 < max(found)


@pytest.mark.parametrize("one_way", [False, True])
def test_sd_dropout_is_both_divergences_with_gradient_in_both(whole_step, pictures, one_way):
    config = {"weight": 0.5, "temperature": 3.0, "dropout": 0.3, "one_way": one_way}
    step = whole_step(sd_dropout(**config), Wide())
    image = pictures.image / 255
    one, other = dropped(step, image, 0.3)
    first, second = (one.detach(), other.detach()) if one_way else (one, other)
    temperature = torch.tensor(3.0)
    apart = kd_kl(one, second, temperature) + kd_kl(other, first, temperature)
    want = cross_entropy(step.student(image).logits_BK, torch.eye(4)) + 0.5 * apart.mean()
    want_grads = torch.autograd.grad(want, list(step.student.parameters()))
    torch.manual_seed(5)
    found = step(Phase.STUDENT, pictures, {})
    torch.testing.assert_close(found.loss, want)
    found.loss.backward()
    for parameter, grad in zip(step.student.parameters(), want_grads, strict=True):
        torch.testing.assert_close(parameter.grad, grad)


def test_sd_dropout_trains_the_students_own_classifier(whole_step, student_gradients, pictures):
    step = whole_step(sd_dropout(), Wide())
    assert not list(step.objective.parameters()) and not step.objective.state_dict()
    names = {f"student.network.{name}" for name, _ in Wide().named_parameters()}
    assert student_gradients(step, pictures) == names


def test_sd_dropout_needs_the_features_that_the_classifier_reads(whole_step):
    with pytest.raises(ValueError, match="classifier = 'clasifier': no such module; did you mean"):
        whole_step(sd_dropout(classifier="clasifier"), Wide())
    for feature in ("flatten", "classifier"):
        with pytest.raises(ValueError, match=f"feature = '{feature}': is not what the classifier"):
            whole_step(sd_dropout(feature=feature), Wide())
    twice = nn.Sequential(Wide(), nn.Linear(4, 4))
    names = {"feature": "0.features", "classifier": "0.classifier"}
    with pytest.raises(ValueError, match="is not what the classifier"):
        whole_step(sd_dropout(**names), twice)


def cosub_net(rate=0.5):
    torch.manual_seed(0)
    return create_model("test_vit", num_classes=4, img_size=16, drop_path_rate=rate)


def test_cosub_by_hand(seen):
    # Sigmoids: 3/4 and 1/2 of the first submodel; 1/2 and 1/2 of the second; the label is class 0.
    one, other = torch.tensor([[LN3, 0.0]]), torch.zeros(1, 2)
    given = seen(one, target=torch.eye(2)[:1])
    given = given._replace(student=(Outputs(one, {}), Outputs(other, {})))
    found = build_objective(CosubConfig()).student_loss(given)
    ln2 = math.log(2.0)
    label = ((math.log(4 / 3) + ln2) / 2 + ln2) / 2
    by_other = (0.5 * math.log(4 / 3) + 0.5 * math.log(4.0) + ln2) / 2
    mutual = (by_other + ln2) / 2
    assert found.loss.item() == pytest.approx(0.5 * label + 0.5 * mutual, rel=1e-5)
    assert found.error.item() == 0.0
    softmaxes = build_objective(CosubConfig(loss="ce", label_share=1.0)).student_loss(given)
    assert softmaxes.loss.item() == pytest.approx((math.log(4 / 3) + ln2) / 2, rel=1e-5)


def test_cosub_labels_of_mixed_and_of_unlabelled_pictures(seen):
    logits = torch.zeros(2, 2)
    given = seen(logits, target=torch.tensor([[0.7, 0.3], [0.0, 0.0]]))
    given = given._replace(student=(Outputs(logits, {}),) * 2)
    binary = build_objective(CosubConfig(label_share=1.0)).student_loss(given)
    assert binary.loss.item() == pytest.approx(math.log(2.0))
    shift = logits + torch.tensor([LN3, 0.0])
    given = given._replace(student=(Outputs(shift, {}),) * 2)
    soft = build_objective(CosubConfig(label_share=1.0, binary_labels=False)).student_loss(given)
    by_hand = (0.7 * math.log(4 / 3) + 0.3 * math.log(4.0) + math.log(2.0)) / 2
    assert soft.loss.item() == pytest.approx(by_hand, rel=1e-5)


def test_cosub_teaches_each_by_the_other_without_gradient(seen):
    one = torch.tensor([[1.0, -1.0]], requires_grad=True)
    other = torch.tensor([[0.5, 2.0]], requires_grad=True)
    given = seen(one.detach())._replace(student=(Outputs(one, {}), Outputs(other, {})))
    build_objective(CosubConfig(label_share=0.0)).student_loss(given).loss.backward()
    # d BCE(x, t)/dx = sigmoid(x) - t, a mean over two classes of a mean over two submodels.
    apart = (one.sigmoid() - other.sigmoid()).detach() / 4
    torch.testing.assert_close(one.grad, apart)
    torch.testing.assert_close(other.grad, -apart)


def test_cosub_runs_two_submodels_of_one_student(whole_step, student_gradients, pictures):
    step = whole_step(build_objective(CosubConfig()), cosub_net())
    assert step.needs[Phase.STUDENT] == Needs(student_copies=2)
    answers = []
    step.student.register_forward_hook(lambda *call: answers.append(call[2].logits_BK))
    torch.manual_seed(0)
    names = student_gradients(step, pictures)
    assert len(answers) == 2 and not torch.equal(*answers)
    assert {"student.network.patch_embed.proj.weight", "student.network.head.weight"} <= names
    with pytest.raises(ValueError, match="set student.options.drop_path_rate"):
        whole_step(build_objective(CosubConfig()), cosub_net(rate=0.0))


@pytest.mark.parametrize(
    ("objective", "net"),
    [
        (build_objective(ByotConfig()), byot_net),
        (sd_dropout(), Wide),
        (build_objective(CosubConfig()), cosub_net),
    ],
    ids=["byot", "sd_dropout", "cosub"],
)
def test_compiled_equals_eager(whole_step, same_compiled, pictures, objective, net):
    same_compiled(whole_step(objective, net()), pictures)
