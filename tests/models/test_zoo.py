"""Names to networks: resolution, options, input statistics, and mistakes in one line."""

import pytest
import timm
import torch
from torch import nn

from hard_fast.models.zoo import (
    NetworkConfig,
    Normalized,
    TeacherConfig,
    build_network,
    members_of,
    save_weights,
)
from hard_fast.runtime.configfile import Source, dotted, parse

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _build(
    num_classes=10, in_channels=3, image_size=32, frozen=False, taps=(), **config
) -> Normalized:
    return build_network(
        NetworkConfig(**config),
        num_classes=num_classes,
        in_channels=in_channels,
        image_size=image_size,
        frozen=frozen,
        taps=taps,
    )


def _mistake(**config) -> str:
    with pytest.raises(ValueError) as caught:
        _build(**config)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_normalized_subtracts_mean_and_divides_by_std():
    net = Normalized(nn.Identity(), (0.5, 0.25), (0.5, 2.0))
    image = torch.tensor([1.0, 1.25]).view(1, 2, 1, 1)
    assert net(image).flatten().tolist() == [1.0, 0.5]
    assert net.mean.shape == net.std.shape == (1, 2, 1, 1)
    assert {"mean", "std"} <= net.state_dict().keys()


def test_small_net_with_options_as_toml_gives_them():
    net = _build(name="mlp", options={"hidden": [7], "head_bias": True, "dropout": 0})
    assert net.net.linear1.out_features == 7 and net.net.head.bias is not None
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_own_function_reads_images_as_they_are():
    net = _build(name="python:hard_fast.models.lenet:lenet5", num_classes=3, in_channels=1)
    assert net(torch.rand(2, 1, 32, 32)).shape == (2, 3)
    assert net.mean.tolist() == torch.zeros(1, 1, 1, 1).tolist()


def test_our_resnet18_and_timms_have_names_of_their_own():
    assert _build(name="resnet18_3x3", options={"widths": [2, 2]}).net.conv1.kernel_size == (3, 3)
    assert _build(name="resnet18").net.conv1.kernel_size == (7, 7)


@pytest.mark.parametrize(
    ("config", "in_channels", "mean", "std"),
    [
        ({"name": "cifar_resnet20"}, 3, IMAGENET_MEAN, IMAGENET_STD),
        ({"name": "cifar_resnet20"}, 1, (0.0,), (1.0,)),
        ({"name": "mlp"}, 3, (0.0,) * 3, (1.0,) * 3),
        ({"name": "tf_efficientnet_lite0"}, 3, (0.5,) * 3, (0.5,) * 3),
        ({"name": "resnet10t"}, 3, IMAGENET_MEAN, IMAGENET_STD),
        ({"name": "resnet10t"}, 1, (0.0,), (1.0,)),
        ({"name": "cifar_resnet20", "mean": (0.5,)}, 3, (0.5,) * 3, IMAGENET_STD),
        ({"name": "mlp", "mean": (0.1, 0.2), "std": (3.0, 4.0)}, 2, (0.1, 0.2), (3.0, 4.0)),
    ],
)
def test_statistics(config, in_channels, mean, std):
    net = _build(**config, in_channels=in_channels)
    torch.testing.assert_close(net.mean.flatten(), torch.tensor(mean))
    torch.testing.assert_close(net.std.flatten(), torch.tensor(std))


def test_statistics_that_do_not_fit():
    assert "mean = [0.1, 0.2]: has 2 numbers, must have 1 or one for each of the 3" in _mistake(
        name="mlp", mean=(0.1, 0.2)
    )
    assert "std = [0.0, 0.0, 0.0]: must be above 0" in _mistake(name="mlp", std=(0.0,))


def test_checkpoint_is_loaded(tmp_path):
    first = _build(name="mlp", options={"hidden": [3]})
    save_weights(first, tmp_path / "mlp.safetensors")
    config = {"name": "mlp", "options": {"hidden": [3]}}
    second = _build(**config, checkpoint=str(tmp_path / "mlp.safetensors"))
    assert torch.equal(second.net.linear1.weight, first.net.linear1.weight)
    assert "no such file of weights" in _mistake(**config, checkpoint=str(tmp_path / "x.pth"))


def test_a_new_head_for_other_classes(tmp_path):
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "net.pth")
    options = {"name": "test_resnet", "checkpoint": str(tmp_path / "net.pth")}
    sizes = {"num_classes": 7, "in_channels": 3, "image_size": 32}
    with pytest.raises(ValueError, match="1000 classes: set new_head = true to learn others$"):
        build_network(NetworkConfig(**options), **sizes)
    with pytest.raises(ValueError, match="1000 classes: it must learn .* num_classes = 1000$"):
        build_network(TeacherConfig(**options), **sizes, frozen=True)
    with pytest.raises(ValueError, match="; the file has 1000 classes$"):
        build_network(NetworkConfig(**options), **sizes, frozen=True)
    net = build_network(TeacherConfig(**options, num_classes=1000), **sizes, frozen=True)
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 1000)
    net = build_network(NetworkConfig(**options, new_head=True), **sizes)
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 7)
    with pytest.raises(ValueError, match="new_head = true: there is no checkpoint"):
        NetworkConfig(name="test_resnet", new_head=True)
    with pytest.raises(ValueError, match="does not name its classifier"):
        build_network(NetworkConfig(**options | {"name": "mlp"}, new_head=True), **sizes)


def test_a_frozen_network_is_folded_and_its_taps_stay():
    found = []
    for frozen in (False, True):
        torch.manual_seed(0)
        net = _build(name="cifar_resnet20", frozen=frozen, taps=("bn1",))
        found.append((net, torch.rand(())))
    (learns, first_draw), (frozen, second_draw) = found
    assert first_draw == second_draw, "folding must not draw from the run's randomness"
    assert learns.training and all(p.requires_grad for p in learns.parameters())
    assert not any(m.training for m in frozen.modules())
    assert not any(p.requires_grad for p in frozen.parameters())
    assert [n for n, m in frozen.net.named_modules() if isinstance(m, nn.BatchNorm2d)] == ["bn1"]
    image = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(frozen(image), learns.eval()(image), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "resnetv2_50", "mlp"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_frozen_network_of_low_precision(name, precision):
    # Norm before convolution: there, some BatchNorms stay.
    options = {"layers": [1, 1], "channels": [16, 16]} if name == "resnetv2_50" else {}
    nets = []
    for how in ("auto", precision):
        torch.manual_seed(0)
        nets.append(_build(name=name, frozen=True, precision=how, options=options))
    plain, low = nets
    image = torch.rand(4, 3, 32, 32, requires_grad=True)
    logits, expected = low(image), plain(image)
    assert logits.dtype == {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    error = (logits.float() - expected).abs().max() / expected.abs().max()
    assert 0 < error < {"bf16": 0.05, "fp16": 0.01}[precision]
    (gradient,) = torch.autograd.grad(logits.float().square().sum(), image)
    (expected,) = torch.autograd.grad(expected.square().sum(), image)
    assert gradient.dtype == torch.float32
    assert nn.functional.cosine_similarity(gradient.flatten(), expected.flatten(), 0) > 0.95
    # What is folded is folded before it is rounded.
    norms = [n for n, m in low.net.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert bool(norms) == (name == "resnetv2_50")
    for key, value in low.net.state_dict().items():
        of_norm = key.rpartition(".")[0] in norms
        assert value.dtype == (plain.net.state_dict()[key].dtype if of_norm else logits.dtype)
        assert torch.equal(value, plain.net.state_dict()[key].to(value.dtype))


def test_precision_fp32_and_mistakes():
    net = _build(name="mlp", frozen=True, precision="fp32")
    assert net.dtype == torch.float32 and net(torch.rand(1, 3, 32, 32)).dtype == torch.float32
    with pytest.raises(ValueError, match="'auto', 'fp32', 'bf16' or 'fp16'"):
        NetworkConfig(name="mlp", precision="int8")


def _teacher(*also, **first):
    tree = {"name": "mlp", "options": {"hidden": [3]}, **first, "also": list(also)}
    return parse(TeacherConfig, Source(tree, dict.fromkeys(dotted(tree), "a.toml")))


def test_several_teachers_answer_with_their_mean_probability(tmp_path):
    folded = {"name": "cnn", "options": {"widths": [2, 2, 2], "batch_norm": True}}
    own = {"mean": [0.5], "std": [0.25], "weight": 3.0}
    torch.manual_seed(0)
    alone = [_build(name="mlp", options={"hidden": [3]}), _build(**folded)]
    files = [str(tmp_path / f"{number}.safetensors") for number in range(2)]
    for network, file in zip(alone, files, strict=True):
        save_weights(network.eval(), file)
    config = _teacher({**folded, **own, "checkpoint": files[1]}, checkpoint=files[0])
    assert config.title == "mlp + cnn" and [m.name for m in members_of(config)] == ["mlp", "cnn"]
    sizes = {"num_classes": 10, "in_channels": 3, "image_size": 32}
    network = build_network(config, **sizes, frozen=True)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    assert not any(p.requires_grad for p in network.parameters())
    assert not any(m.training for m in network.modules())
    image = torch.rand(4, 3, 32, 32)
    second = alone[1].net((image - 0.5) / 0.25).softmax(1)
    expected = (alone[0](image).softmax(1) + 3.0 * second) / 4.0
    torch.testing.assert_close(network(image).exp(), expected)


def test_mistakes_about_several_teachers():
    def said(*also, **first):
        with pytest.raises(ValueError) as caught:
            _teacher(*also, **first)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "a.toml: also.0.nam = 'cnn': unknown key; did you mean 'name'" in said(
        {"name": "cnn", "nam": "cnn"}
    )
    assert "a.toml: also.0.also = []: unknown key" in said({"name": "cnn", "also": []})
    assert "also.0.weight = 0.0: input should be greater than 0" in said(
        {"name": "cnn", "weight": 0.0}
    )
    assert "weight = 2: there is no other teacher" in said(weight=2.0)
    assert "num_classes: several teachers answer" in said({"name": "cnn", "num_classes": 3})
    assert "num_classes: several teachers answer" in said({"name": "cnn"}, num_classes=3)
    sizes = {"num_classes": 10, "in_channels": 3, "image_size": 32}
    with pytest.raises(ValueError, match="^also.0: name = 'cn': unknown network"):
        build_network(_teacher({"name": "cn"}), **sizes)
    with pytest.raises(ValueError, match=r"^also: the objective reads inner layers .*\(linear1\)"):
        build_network(_teacher({"name": "mlp"}), **sizes, frozen=True, taps=("linear1",))


def test_each_teacher_can_be_changed():
    config = _teacher({"name": "cnn", "precision": "bf16"}, precision="fp32")
    assert not config.uses_autocast and _teacher({"name": "cnn"}, precision="fp32").uses_autocast
    changed = config.each(lambda one: one.model_copy(update={"precision": "auto"}))
    assert [member.precision for member in changed.members] == ["auto", "auto"]
    assert [member.precision for member in config.members] == ["fp32", "bf16"]
    assert members_of(None) == [] and NetworkConfig(name="cnn").each(lambda one: one).title == "cnn"


def test_unknown_names_offer_the_nearest():
    assert "name = 'cifar_resnt20': unknown network; did you mean 'cifar_resnet20'" in _mistake(
        name="cifar_resnt20"
    )
    assert "'efficientnet_b0'" in _mistake(name="eficientnet_b0")
    assert "did you mean 'resnet18.tv_in1k'" in _mistake(name="resnet18.tv_in2k")
    assert "vit_mnist" in _mistake(name="")


def test_unknown_and_unfit_options_are_named():
    assert (
        "options.hiden: 'mlp' has no such option; did you mean 'hidden'? (options: hidden, drop"
        in (_mistake(name="mlp", options={"hiden": [3]}))
    )
    assert "options.num_classes: 'mlp' has no such" in _mistake(
        name="mlp", options={"num_classes": 3}
    )
    assert "options.head_bias = 'no': input should be a valid boolean" in _mistake(
        name="mlp", options={"head_bias": "no"}
    )
    assert "options.hidden = [0]" in _mistake(name="mlp", options={"hidden": [0]})
    assert "options.dropout = 1.5" in _mistake(name="cnn", options={"dropout": 1.5})


def test_pretrained_is_for_timm_only():
    message = _mistake(name="resnet18_3x3", pretrained=True)
    assert "only timm's networks" in message and "FILE" in message
    assert "only timm's networks" in _mistake(name="python:own:net", pretrained=True)
    with pytest.raises(ValueError, match="pretrained = true and checkpoint = 'x.pth': set one of"):
        NetworkConfig(name="resnet10t", pretrained=True, checkpoint="x.pth")


def test_real_classifier_on_real_pictures(real_data):
    (path,) = (real_data / "weights").glob("resnet20-*.th")
    net = _build(name="cifar_resnet20", checkpoint=str(path)).eval()
    raw = (real_data / "cifar10" / "cifar-10-batches-bin" / "test_batch.bin").read_bytes()
    rows = torch.frombuffer(bytearray(raw[: 400 * 3073]), dtype=torch.uint8).view(400, 3073)
    image = rows[:, 1:].view(400, 3, 32, 32).float() / 255
    with torch.no_grad():
        right = net(image).argmax(1) == rows[:, 0]
    assert right.float().mean() > 0.88
