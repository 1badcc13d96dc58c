"""Tapped: what it records, that it is of this call, and that it compiles to one graph."""

import contextlib
import copy

import pytest
import torch
from torch import Tensor, nn

from hard_fast.models.small import SMALL_NETS
from hard_fast.models.taps import Normalized, Tapped, bare, set_dtype, try_out
from hard_fast.types import Outputs


def _small_resnet() -> nn.Module:
    return SMALL_NETS["resnet18_3x3"](4, 3, 8, widths=(4, 8))


class _InPlace(nn.Module):
    """A layer whose output the next one overwrites."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.relu = nn.ReLU(inplace=True)
        self.idle = nn.Linear(3, 3)
        self.split = _Split()

    def forward(self, x: Tensor) -> Tensor:
        return self.split(self.relu(self.linear(x.flatten(1))))[0]


class _Split(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, :1], x[:, 1:]


class _Pair(nn.Module):
    """Two heads, returned as a pair while training, as timm's distilled networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)
        self.head_dist = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        cls, dist = self.head(x.flatten(1)), self.head_dist(x.flatten(1))
        return (cls, dist) if self.training else (cls + dist) / 2


def test_no_taps_means_no_hooks():
    net = _small_resnet().eval()
    tapped = Tapped(net)
    image = torch.rand(2, 3, 8, 8)
    out = tapped(image)
    assert isinstance(out, Outputs) and out.taps == {}
    assert torch.equal(out.logits_BK, net(image))
    assert not any(m._forward_hooks for m in net.modules())


def test_taps_are_the_named_modules_outputs():
    net = _small_resnet().eval()
    image = torch.rand(2, 3, 8, 8)
    stem = net.bn1(net.conv1(image))
    layer1 = net.layer1(stem.relu())
    logits = net(image)
    out = Tapped(net, ("layer1", "bn1", "layer2.0.conv2"))(image)
    assert list(out.taps) == ["layer1", "bn1", "layer2.0.conv2"]
    torch.testing.assert_close(out.taps["bn1"], stem)
    torch.testing.assert_close(out.taps["layer1"], layer1)
    torch.testing.assert_close(out.logits_BK, logits)


def test_names_are_those_of_the_bare_network():
    net = _small_resnet()
    tapped = Tapped(Normalized(net, (0.5,) * 3, (0.25,) * 3), ("layer1",))
    assert tapped(torch.rand(2, 3, 8, 8)).taps["layer1"].shape == (2, 4, 8, 8)
    assert bare(tapped) is net and bare(net) is net


def test_taps_belong_to_the_present_call():
    tapped = Tapped(_small_resnet().eval(), ("layer1",))
    first_image, second_image = torch.rand(2, 2, 3, 8, 8)
    first = tapped(first_image)
    kept = first.taps["layer1"].clone()
    second = tapped(second_image)
    assert torch.equal(first.taps["layer1"], kept)
    assert not torch.equal(second.taps["layer1"], kept)
    assert tapped._seen == {}


def test_later_in_place_layers_do_not_reach_a_tap():
    net = _InPlace()
    x = torch.randn(16, 3, 1, 1)
    out = Tapped(net, ("linear", "relu"))(x)
    torch.testing.assert_close(out.taps["linear"], net.linear(x.flatten(1)))
    assert (out.taps["linear"] < 0).any() and not (out.taps["relu"] < 0).any()


def test_a_module_that_runs_twice_gives_its_last_output():
    linear = nn.Linear(3, 3)
    net = nn.Sequential(nn.Flatten(), linear, nn.ReLU(), linear)
    out = Tapped(net, ("1",))(torch.rand(2, 3, 1, 1))
    torch.testing.assert_close(out.taps["1"], out.logits_BK)


def test_gradient_flows_through_taps_and_logits():
    net = _small_resnet()
    out = Tapped(net, ("layer1",))(torch.rand(2, 3, 8, 8))
    (grad,) = torch.autograd.grad(out.logits_BK.sum(), out.taps["layer1"], retain_graph=True)
    assert grad.abs().sum() > 0
    out.taps["layer1"].sum().backward()
    assert net.conv1.weight.grad.abs().sum() > 0
    assert net.linear.weight.grad is None


def test_a_deep_copy_records_for_itself():
    tapped = Tapped(_small_resnet(), ("layer1",)).eval()
    twin = copy.deepcopy(tapped)
    nn.init.zeros_(twin.network.conv1.weight)
    image = torch.rand(2, 3, 8, 8)
    expected = tapped(image).taps["layer1"]
    assert not torch.equal(twin(image).taps["layer1"], expected)
    assert torch.equal(tapped(image).taps["layer1"], expected)


@pytest.mark.parametrize("amp_dtype", [torch.bfloat16, torch.float16])
def test_autocasts_the_network_alone(amp_dtype):
    seen = []
    net = _small_resnet().eval()
    normalized = Normalized(net, (0.5,) * 3, (0.25,) * 3)
    normalized.register_forward_hook(
        lambda *call: seen.append(torch.get_autocast_dtype("cpu") if _is_autocast() else None)
    )
    image = torch.rand(2, 3, 8, 8, requires_grad=True)
    plain = Tapped(normalized, ("layer1",))(image)
    assert plain.logits_BK.dtype == torch.float32
    low = Tapped(normalized, ("layer2",), amp_dtype)(image)
    assert seen == [None, amp_dtype] and not _is_autocast()
    assert low.logits_BK.dtype == amp_dtype and low.taps["layer2"].dtype == amp_dtype
    with torch.autocast("cpu", amp_dtype):
        assert torch.equal(low.logits_BK, normalized(image))
    low.logits_BK.float().square().sum().backward()
    assert image.grad.dtype == torch.float32 and image.grad.abs().sum() > 0


def _is_autocast() -> bool:
    return torch.is_autocast_enabled("cpu")


def test_a_network_of_low_precision_reads_the_image_normalised_in_fp32():
    seen = []
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LayerNorm(4))
    net.register_buffer("bias", torch.ones(4))
    net.register_buffer("count", torch.ones(4, dtype=torch.long))
    net[1].weight.requires_grad_(False)
    net.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    normalized = Normalized(net.eval(), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    image = torch.rand(2, 3, 3, 3)
    expected = normalized(image)
    set_dtype(normalized, torch.bfloat16)
    logits = normalized(image)
    assert torch.equal(seen[1], seen[0].bfloat16()) and logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), expected, rtol=0.05, atol=0.05)
    kept = [*normalized.net[0].state_dict().values(), normalized.mean, normalized.std]
    assert {tensor.dtype for tensor in kept} == {torch.float32, torch.int64}
    others = [*net[1].parameters(), *net[3].parameters(), net.bias]
    assert {tensor.dtype for tensor in others} == {torch.bfloat16}
    assert net.count.dtype == torch.long and not net[1].weight.requires_grad


@pytest.mark.parametrize(
    ("backend", "taps", "amp_dtype"),
    [
        ("eager", (), None),
        ("eager", ("conv1", "relu1"), torch.float16),
        ("aot_eager", ("conv1",), None),
        ("aot_eager", ("conv1",), torch.bfloat16),
    ],
)
def test_compiles_to_one_graph(backend, taps, amp_dtype):
    torch._dynamo.reset()
    net = SMALL_NETS["cnn"](4, 3, 8, widths=(4,), pools=(1,)).eval()
    tapped = Tapped(Normalized(net, (0.5,) * 3, (0.25,) * 3), taps, amp_dtype)

    def twice(image: Tensor) -> tuple[Outputs, Outputs]:
        return tapped(image), tapped(image + 1)

    compiled = torch.compile(twice, fullgraph=True, dynamic=False, backend=backend)
    compiled(torch.rand(2, 3, 8, 8))
    image = torch.rand(2, 3, 8, 8)
    with torch.compiler.set_stance("fail_on_recompile"):
        found = compiled(image)
    for one, expected in zip(found, twice(image), strict=True):
        torch.testing.assert_close(one.logits_BK, expected.logits_BK)
        assert list(one.taps) == list(taps)
        for name in taps:
            torch.testing.assert_close(one.taps[name], expected.taps[name])


def test_a_pair_of_logits_gives_their_mean_and_two_taps():
    net = _Pair()
    x = torch.rand(4, 3, 1, 1)
    training = Tapped(net)(x)
    assert list(training.taps) == ["head", "head_dist"]
    torch.testing.assert_close(training.taps["head"], net.head(x.flatten(1)))
    torch.testing.assert_close(training.taps["head_dist"], net.head_dist(x.flatten(1)))
    torch.testing.assert_close(training.logits_BK, Tapped(net.eval())(x).logits_BK)
    # Asked for by name, both heads are there in eval mode too.
    asked = Tapped(net, ("head", "head_dist"))(x)
    torch.testing.assert_close(asked.taps["head_dist"], training.taps["head_dist"])


class _Telling(nn.Module):
    """A network that returns Outputs of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Outputs:
        logits = self.linear(x.flatten(1))
        return Outputs(logits, {"own": 2 * logits})


def test_outputs_of_a_networks_own_are_added_to_the_taps():
    x = torch.rand(4, 3, 1, 1)
    found = Tapped(_Telling(), ("linear",))(x)
    assert list(found.taps) == ["linear", "own"]
    torch.testing.assert_close(found.taps["own"], 2 * found.logits_BK)
    torch.testing.assert_close(found.taps["linear"], found.logits_BK)


@pytest.mark.parametrize("trains", [True, False])
def test_trying_out_leaves_a_network_as_it_was(trains):
    tapped = Tapped(_small_resnet(), ("layer1",)).train(trains)
    before = {name: value.clone() for name, value in tapped.state_dict().items()}
    found = try_out(tapped, torch.rand(1, 3, 8, 8))
    assert found.taps["layer1"].shape == (1, 4, 8, 8) and not found.logits_BK.requires_grad
    assert all(module.training == trains for module in tapped.modules())
    assert all(torch.equal(before[name], value) for name, value in tapped.state_dict().items())


def test_trying_out_leaves_each_module_in_its_own_mode():
    frozen = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(), nn.Conv2d(3, 2, 1), nn.Flatten())
    frozen[0].eval()
    # What fails is left alike: these have no image of four channels.
    for training, channels in ((True, 3), (True, 4), (False, 4)):
        tapped = Tapped(frozen)
        tapped.training = training
        before = [module.training for module in tapped.modules()]
        with contextlib.nullcontext() if channels == 3 else pytest.raises(RuntimeError):
            try_out(tapped, torch.rand(1, channels, 1, 1))
        assert [module.training for module in tapped.modules()] == before


class _Merging(nn.Linear):
    """A layer that changes its weights for eval mode, and back, as LoRA's do."""

    is_merged = False

    def train(self, mode: bool = True) -> nn.Module:
        self.is_merged = not mode
        return super().train(mode)


def test_trying_out_lets_a_network_undo_what_it_does_in_eval_mode():
    layer = _Merging(3, 2)
    try_out(Tapped(nn.Sequential(nn.Flatten(), layer)), torch.rand(1, 3, 1, 1))
    assert not layer.is_merged


def test_timm_distilled_vit_in_training():
    from hard_fast.models.zoo import NetworkConfig, build_network

    config = NetworkConfig(
        name="deit_tiny_distilled_patch16_224",
        options={"depth": 1, "embed_dim": 12, "num_heads": 2},
    )
    net = build_network(config, num_classes=5, in_channels=3, image_size=32)
    # A fresh distillation head is the class head's equal (both zero) in timm; make them differ.
    nn.init.normal_(net.net.head_dist.weight)
    net.net.set_distilled_training(True)
    tapped = Tapped(net).train()
    torch._dynamo.reset()
    out = torch.compile(tapped, fullgraph=True, backend="eager")(torch.rand(2, 3, 32, 32))
    assert out.logits_BK.shape == (2, 5)
    mean = (out.taps["head"] + out.taps["head_dist"]) / 2
    torch.testing.assert_close(out.logits_BK, mean)
    assert not torch.equal(out.taps["head"], out.taps["head_dist"])


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="tap 'layr1': no such module; did you mean 'layer1'"):
        Tapped(_small_resnet(), ("layr1",))
    x = torch.rand(2, 3, 1, 1)
    with pytest.raises(ValueError, match="tap 'idle': this module did not run"):
        Tapped(_InPlace(), ("idle",))(x)
    with pytest.raises(ValueError, match="tap 'split': returned a tuple, not a tensor"):
        Tapped(_InPlace(), ("split",))(x)
    with pytest.raises(ValueError, match="a network must return logits or a pair of logits"):
        Tapped(nn.Sequential(nn.LSTM(1, 1), nn.Identity(), _Listed()))(torch.rand(2, 1, 1))


class _Listed(nn.Module):
    def forward(self, x: tuple[Tensor, object]) -> list[Tensor]:
        return [x[0]]
