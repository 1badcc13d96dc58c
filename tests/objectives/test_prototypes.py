import math

import pytest
import torch
from timm import create_model

from hard_fast.models.small import SMALL_NETS
from hard_fast.objectives import build_objective, compares_answers
from hard_fast.objectives.kd import KdConfig
from hard_fast.objectives.prototypes import PrototypesConfig, assign, local_features
from hard_fast.objectives.relations import FeaturesConfig
from hard_fast.runtime.configfile import Source, parse
from hard_fast.runtime.dist import World
from hard_fast.types import Outputs, Phase


def prototypes(**changes):
    layers = {"student_layer": "layer2", "teacher_layer": "layer1", "num_prototypes": 5}
    return build_objective(PrototypesConfig(**(layers | changes)))


def networks(num_teacher_classes=7):
    torch.manual_seed(0)
    student = SMALL_NETS["resnet18_3x3"](4, 3, 16, (4, 8), 1)
    return student, SMALL_NETS["resnet18_3x3"](num_teacher_classes, 3, 16, (6, 10), 1)


def test_assignments_by_hand():
    # Cosines of 1 and 0 at a temperature of 1 / ln 3: three to one; lengths do not count.
    features = torch.tensor([[[5.0, 0.0], [0.0, 0.1]]])
    found = assign(features, torch.tensor([[2.0, 0.0], [0.0, 9.0]]), torch.tensor(1 / math.log(3)))
    torch.testing.assert_close(found, torch.tensor([[[0.75, 0.25], [0.25, 0.75]]]))


def test_places_of_maps_and_tokens():
    own, wanted = torch.rand(2, 3, 4, 4), torch.rand(2, 5, 2, 4)
    one, other = local_features(own, wanted)
    assert one.shape == (2, 8, 3) and other.shape == (2, 8, 5)
    torch.testing.assert_close(one[:, 5], own[:, :, 2:, 1].mean(2))
    torch.testing.assert_close(other[:, 5], wanted[:, :, 1, 1])
    tokens = torch.rand(2, 8, 3, dtype=torch.float64)
    assert torch.equal(local_features(tokens, tokens)[0], tokens.float())


def test_the_loss_by_hand(seen):
    objective = prototypes(num_prototypes=2, temperature=1 / math.log(3), ce_share=0.25)
    objective.prototypes_PD = torch.nn.Parameter(torch.tensor([[2.0, -2.0], [2.0, 2.0]]))
    objective.projection = torch.nn.Linear(1, 2, bias=False)
    objective.head = torch.nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        objective.projection.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        objective.head.weight.copy_(torch.eye(2))
    logits = torch.zeros(1, 2)
    given = seen(logits, torch.zeros(1, 9), target=torch.eye(2)[:1])
    given = given._replace(
        student=(Outputs(logits, {"layer2": torch.tensor([[[3.0]]])}),),
        teacher=Outputs(torch.zeros(1, 9), {"layer1": torch.tensor([[[6.0, 2.0]]])}),
    )
    found = objective.student_loss(given)
    # The teacher's place is (1, -1) at mean 0 and variance 1: cosines of 1 and 0, weights of 3/4
    # and 1/4, so the prototypes make 3/4 (2, -2) + 1/4 (2, 2) = (2, -1).
    assert found.logs["prototype_loss"].item() == pytest.approx(0.5, rel=1e-4)
    # The student's is (3, -3): squared errors of 1 and 4.
    assert found.logs["match_loss"].item() == pytest.approx(2.5, rel=1e-4)
    # It has the teacher's weights, so with its own prototypes it is (5, -4).
    answer = math.log(1 + math.exp(-9.0))
    assert found.logs["augmented_loss"].item() == pytest.approx(answer, rel=1e-3)
    want = 0.25 * (math.log(2.0) + answer) + 0.75 * 3.0
    assert found.loss.item() == pytest.approx(want, rel=1e-4)
    assert found.error == 0.0


def test_gradients_reach_student_projection_head_and_prototypes(
    whole_step, student_gradients, pictures
):
    step = whole_step(prototypes(), *networks())
    step.teacher.requires_grad_(True)
    found = student_gradients(step, pictures)
    heads = {"prototypes_PD", "projection.weight", "projection.bias", "head.weight", "head.bias"}
    own = {f"student.network.{name}" for name, _ in step.student.network.named_parameters()}
    assert found == {f"objective.{name}" for name in heads} | own


@pytest.mark.parametrize(
    ("changes", "moved"),
    [
        ({"ce_share": 1.0}, {"projection.weight", "projection.bias", "head.weight", "head.bias"}),
        ({"ce_share": 1.0, "augmented_weight": 0.0}, set()),
        (
            {"ce_share": 0.0, "augmented_weight": 0.0},
            {"prototypes_PD", "projection.weight", "projection.bias"},
        ),
    ],
)
def test_prototypes_are_the_teachers_alone(whole_step, student_gradients, pictures, changes, moved):
    step = whole_step(prototypes(**changes), *networks())
    found = student_gradients(step, pictures)
    ours = {name.removeprefix("objective.") for name in found if name.startswith("objective.")}
    assert ours == moved


def test_prototypes_learn_what_the_teacher_sees(whole_step, pictures):
    step = whole_step(prototypes(num_prototypes=16), *networks())
    optimizer = torch.optim.Adam(step.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        terms = step(Phase.STUDENT, pictures, {})
        terms.loss.backward()
        optimizer.step()
        losses.append(terms.logs["prototype_loss"].item())
    assert losses[-1] < 0.7 * losses[0] < 0.7


def test_layers_that_do_not_fit_are_named(whole_step):
    student, _ = networks()
    vit = create_model("test_vit", num_classes=7, img_size=16, patch_size=8)
    with pytest.raises(ValueError, match=r"'layer2': gives \[8, 8, 8\], and the teacher's"):
        whole_step(prototypes(teacher_layer="blocks.0"), student, vit)
    step = whole_step(prototypes(student_layer="blocks.1", teacher_layer="blocks.0"), vit, vit)
    assert step.objective.prototypes_PD.shape == (5, 64)


def test_compiled_equals_eager(whole_step, same_compiled, pictures):
    same_compiled(whole_step(prototypes(), *networks()), pictures)


def test_which_objectives_read_the_teachers_answers():
    layers = {"layers": (("a", "b"),)}
    assert compares_answers(KdConfig())
    assert compares_answers(FeaturesConfig(**layers, kd_weight=1.0))
    assert not compares_answers(FeaturesConfig(**layers))
    assert not compares_answers(prototypes().config)


def test_a_run_with_a_teacher_of_other_classes_resumes_exactly(tiny_run, tmp_path):
    from hard_fast.config import RunConfig
    from hard_fast.trainer import Trainer

    tree = {key: value for key, value in tiny_run.items() if key != "augmentor_optim"}
    tree |= {"augmentor": {"kind": "identity"}, "schedule": {"kind": "student_only"}}
    narrow = {"name": "resnet18_3x3", "options": {"widths": [4, 4], "num_blocks": 1}}
    tree |= {"student": narrow, "teacher": {**narrow, "num_classes": 3}}
    layers = {"student_layer": "layer2", "teacher_layer": "layer2", "num_prototypes": 4}
    tree["objective"] = {"kind": "prototypes", **layers}
    tree["train"] = tree["train"] | {"gallery": False}

    def trainer(where):
        config = parse(RunConfig, Source(tree | {"run_dir": str(tmp_path / where)}, {}))
        return Trainer(config, World(0, 1, torch.device("cpu")))

    whole = trainer("whole")
    before = whole.net.objective.prototypes_PD.detach().clone()
    summary = whole.run()
    assert summary["teacher"] is None and summary["metrics"]["top1"] >= 0.0
    saved = sorted((tmp_path / "whole" / "checkpoints").glob("step_*.pt"))
    assert "prototypes_PD" in torch.load(saved[0], weights_only=True)["objective"]
    for path in saved[1:]:
        path.unlink()
    again = trainer("whole")
    assert 0 < again.step < whole.step
    again.run()
    after = whole.net.objective.state_dict()
    assert not torch.equal(after["prototypes_PD"], before)
    for name, value in again.net.objective.state_dict().items():
        assert torch.equal(value, after[name]), name
