import math

import pytest
import torch
import torch.nn.functional as F
from timm import create_model

from hard_fast.models.small import SMALL_NETS
from hard_fast.objectives import build_objective
from hard_fast.objectives.relations import (
    FeaturesConfig,
    RelationsConfig,
    num_heads,
    relation_kl,
)
from hard_fast.types import Outputs

LN3 = math.log(3.0)
LAYER = "blocks.1.attn.qkv"


def vit(depth=3, **options):
    torch.manual_seed(0)
    return create_model(
        "test_vit", num_classes=4, img_size=16, patch_size=8, depth=depth, **options
    )


def judge():
    torch.manual_seed(1)
    sizes = {"embed_dim": 48, "num_heads": 4, "img_size": 16, "patch_size": 8}
    return create_model("test_vit", num_classes=4, depth=2, **sizes)


def test_relation_kl_by_hand():
    # One head of one channel, two tokens. The student's q and v are 0: it relates all alike. The
    # teacher's first token has q = 1, its second 0; k = (ln 3, 0) gives (3/4, 1/4) and (1/2, 1/2).
    # Its v = (1, 0) relates the first token by (e, 1), the second by (1, 1).
    student = torch.tensor([[[0.0, 5.0, 0.0], [0.0, -2.0, 0.0]]])
    teacher = torch.tensor([[[1.0, LN3, 1.0], [0.0, 0.0, 0.0]]])
    qk, vv = relation_kl(student, teacher, heads=1)
    p = math.e / (math.e + 1)
    assert qk.item() == pytest.approx((0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2, rel=1e-5)
    by_hand = (p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))) / 2
    assert vv.item() == pytest.approx(by_hand, rel=1e-5)


def test_relations_of_the_heads_are_those_of_the_attention():
    """Queries, keys and values lie as timm cuts them, and each network has a scale of its own."""
    student, teacher = torch.randn(2, 5, 3 * 4 * 2), torch.randn(2, 5, 3 * 4 * 6)

    def relation(x, one, other):
        parts = x.reshape(2, 5, 3, 4, -1).permute(2, 0, 3, 1, 4)
        scaled = parts[one] @ parts[other].transpose(-2, -1) / math.sqrt(x.shape[-1] // 12)
        return scaled.softmax(-1)

    for found, pair in zip(relation_kl(student, teacher, 4), ((0, 1), (2, 2)), strict=True):
        own, wanted = relation(student, *pair), relation(teacher, *pair)
        want = F.kl_div(own.log(), wanted, reduction="sum") / (2 * 4 * 5)
        torch.testing.assert_close(found, want)
    assert all(value.abs() < 1e-6 for value in relation_kl(student, student, 4))


def test_what_timm_computes_fused_is_what_the_tapped_layer_gives():
    net, seen = vit().eval(), {}
    attention = net.blocks[1].attn
    attention.qkv.register_forward_hook(lambda *call: seen.update(qkv=call[2]))
    attention.proj.register_forward_pre_hook(lambda module, args: seen.update(mixed=args[0]))
    net(torch.rand(2, 3, 16, 16))
    q, k, v = seen["qkv"].unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    mixed = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v
    torch.testing.assert_close(seen["mixed"], mixed.transpose(1, 2).flatten(2))


def relations(**changes):
    layers = {"student_layer": LAYER, "teacher_layer": "blocks.0.attn.qkv"}
    return build_objective(RelationsConfig(**(layers | changes)))


def test_gradients_end_at_the_layer_that_relates(whole_step, student_gradients, pictures):
    step = whole_step(relations(), vit(), judge())
    student = dict(vit().named_parameters())
    before = {"cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    before |= {name for name in student if name.startswith("blocks.0.")}
    before |= {
        name for name in student if name.startswith(("blocks.1.norm1.", "blocks.1.attn.qkv."))
    }
    assert student_gradients(step, pictures) == {f"student.network.{name}" for name in before}
    with_labels = whole_step(relations(ce_weight=1.0), vit(), judge())
    assert student_gradients(with_labels, pictures) == {f"student.network.{n}" for n in student}


def test_each_relation_has_its_weight_and_its_own_gradient(whole_step, pictures):
    grads = {}
    for name, weights in {"qk": (2.0, 0.0), "vv": (0.0, 3.0), "both": (2.0, 3.0)}.items():
        step = whole_step(relations(qk=weights[0], vv=weights[1]), vit(), judge())
        torch.manual_seed(0)
        step(list(step.needs)[0], pictures, {}).loss.backward()
        grads[name] = step.student.network.blocks[1].attn.qkv.weight.grad
    third = grads["qk"].shape[0] // 3
    assert not grads["qk"][2 * third :].any() and grads["qk"][: 2 * third].any()
    assert not grads["vv"][: 2 * third].any() and grads["vv"][2 * third :].any()
    torch.testing.assert_close(grads["both"], grads["qk"] + grads["vv"])


def test_heads_are_counted_by_the_teachers_module():
    small = SMALL_NETS["vit_mnist"](10, 1, 28)
    assert num_heads(judge(), "blocks.0.attn.qkv") == 4 and num_heads(vit(), LAYER) == 2
    assert num_heads(small, "blocks.0.attention.to_qkv") == 8
    with pytest.raises(ValueError, match="does not say how many heads"):
        num_heads(judge(), "blocks.0.mlp.fc1")


def test_layers_that_do_not_fit_are_named(whole_step):
    with pytest.raises(ValueError, match="of as many tokens"):
        whole_step(relations(), vit(class_token=False, global_pool="avg"), judge())
    with pytest.raises(ValueError, match="for the teacher's 4 heads"):
        whole_step(relations(), vit(embed_dim=18), judge())
    with pytest.raises(ValueError, match="tap 'blocks.9.attn.qkv': no such module"):
        whole_step(relations(student_layer="blocks.9.attn.qkv"), vit(), judge())


def features(*layers, **changes):
    return build_objective(FeaturesConfig(layers=layers, **changes))


def test_features_by_hand(seen):
    objective = features(("a", "b"), weight=2.0, ce_weight=0.5, kd_weight=0.25, temperature=2.0)
    projection = torch.nn.Linear(1, 2)
    with torch.no_grad():
        projection.weight.copy_(torch.tensor([[1.0], [2.0]]))
        projection.bias.copy_(torch.tensor([0.0, 1.0]))
    objective.projections.append(projection)
    logits, teacher = torch.zeros(1, 2), torch.tensor([[2.0 * LN3, 0.0]])
    given = seen(logits, teacher, target=torch.eye(2)[:1])
    given = given._replace(
        student=(Outputs(logits, {"a": torch.tensor([[3.0]])}),),
        teacher=Outputs(teacher, {"b": torch.tensor([[1.0, 5.0]])}),
    )
    # The projection says (3, 7): squared errors of 4 and 4.
    found = objective.student_loss(given)
    kl = 4.0 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert found.loss.item() == pytest.approx(8.0 + 0.5 * math.log(2.0) + 0.25 * kl, rel=1e-5)
    assert found.logs["feature_loss"].item() == pytest.approx(8.0)
    # At mean 0 and variance 1 the teacher says (-1, 1): squared errors of 16 and 36.
    whitened = features(("a", "b"), normalize=True)
    whitened.projections.append(projection)
    assert whitened.student_loss(given).loss.item() == pytest.approx(26.0, rel=1e-4)


def test_a_larger_map_is_averaged_down_and_whitened_over_channels(whole_step, pictures):
    torch.manual_seed(0)
    student = SMALL_NETS["resnet18_3x3"](4, 3, 16, (4, 8), 1)
    teacher = SMALL_NETS["resnet18_3x3"](4, 3, 16, (6, 10), 1)
    objective = features(("layer2", "layer1"), normalize=True)
    step = whole_step(objective, student, teacher)
    (projection,) = objective.projections
    assert projection.weight.shape == (6, 8, 1, 1)
    loss = step(list(step.needs)[0], pictures, {}).loss
    image = pictures.image / 255
    own = student.layer2(student.layer1(student[:3](image)))
    wanted = F.avg_pool2d(teacher.layer1(teacher[:3](image)), 2)
    mean, var = wanted.mean(1, keepdim=True), wanted.var(1, keepdim=True, unbiased=False)
    want = (projection(own) - (wanted - mean) / (var + 1e-5).sqrt()).square().mean()
    torch.testing.assert_close(loss, want)


def test_projected_maps_may_be_normalised_and_cut_at_zero(whole_step, pictures):
    student, teacher = (SMALL_NETS["resnet18_3x3"](4, 3, 16, (4, 8), 1) for _ in range(2))
    objective = features(("layer1", "layer1"), batch_norm=True)
    step = whole_step(objective, student, teacher)
    ((conv, norm, _),) = objective.projections
    loss = step(list(step.needs)[0], pictures, {}).loss
    image = pictures.image / 255
    own, wanted = (net.layer1(net[:3](image)) for net in (student, teacher))
    projected = conv(own)
    mean = projected.mean((0, 2, 3), keepdim=True)
    var = projected.var((0, 2, 3), keepdim=True, unbiased=False)
    whitened = ((projected - mean) / (var + norm.eps).sqrt()).relu()
    torch.testing.assert_close(loss, (whitened - wanted).square().mean())


def test_projections_learn_beside_the_student(whole_step, student_gradients, pictures):
    objective = features((LAYER, "blocks.0.attn.qkv"), ("blocks.0", "blocks.1"))
    step = whole_step(objective, vit(), judge())
    assert [p.weight.shape for p in objective.projections] == [(144, 192), (48, 64)]
    found = student_gradients(step, pictures)
    ours = {name for name in found if name.startswith("objective.")}
    assert ours == {f"objective.{name}" for name, _ in objective.named_parameters()}
    assert not any(name.startswith(("teacher.", "student.network.blocks.2")) for name in found)
    assert "student.network.blocks.1.attn.qkv.weight" in found
    assert set(objective.state_dict()) == {n for n, _ in objective.named_parameters()}


def test_maps_and_tokens_do_not_match(whole_step):
    conv = SMALL_NETS["resnet18_3x3"](4, 3, 16, (4, 8), 1)
    with pytest.raises(
        ValueError, match=r"'layer2' gives \[8, 8, 8\], and the teacher's 'blocks.0'"
    ):
        whole_step(features(("layer2", "blocks.0")), conv, judge())


@pytest.mark.parametrize("objective", [relations, lambda: features((LAYER, "blocks.0.attn.qkv"))])
def test_compiled_equals_eager(whole_step, same_compiled, pictures, objective):
    same_compiled(whole_step(objective(), vit(), judge()), pictures)
