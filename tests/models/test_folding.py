"""Folding: the same outputs and gradients without BatchNorm, and hands off where that is unsure."""

import copy
import logging
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hard_fast.models.folding import fold_batchnorm
from hard_fast.models.taps import Normalized, Tapped
from hard_fast.models.zoo import NetworkConfig, build_network

SHAPE = (3, 16, 16)
CONV = partial(nn.Conv2d, 3, 4, 3)


class _NormCalls(TorchDispatchMode):
    """Counts the BatchNorms that really run."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += "batch_norm" in str(func)
        return func(*args, **(kwargs or {}))


class _Net(nn.Module):
    """Two convolutions and two BatchNorms of four channels, used as a function says."""

    def __init__(self, forward: Callable[["_Net", Tensor], Tensor], bias: bool = True) -> None:
        super().__init__()
        self.conv, self.norm = CONV(bias=bias), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.function = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class _Scaled(nn.BatchNorm2d):
    """A BatchNorm that does more than its name says."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class _Standardized(nn.Conv2d):
    """A convolution that computes its weight from its parameter."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


def _settled(net: nn.Module) -> nn.Module:
    """The network, frozen, as if trained: BatchNorms that change what they read."""
    torch.manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2.0)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.1)
    return net.eval().requires_grad_(False)


def _output_and_gradient(net: nn.Module, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    image = torch.rand(3, *shape, generator=generator, requires_grad=True)
    output = net(image)
    (gradient,) = torch.autograd.grad(output.square().sum(), image)
    return output.detach(), gradient


def _assert_folds(net: nn.Module, count: int, shape: tuple[int, int, int] = SHAPE) -> None:
    """Fold a network, and check that nothing but time is saved."""
    output, gradient = _output_and_gradient(net, shape)
    with _NormCalls() as before:
        net(torch.rand(1, *shape))
    assert fold_batchnorm(net, shape) == count > 0
    with _NormCalls() as after:
        net(torch.rand(1, *shape))
    assert before.count - after.count == count
    for found, expected in zip(_output_and_gradient(net, shape), (output, gradient), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max())
    assert not any(p.requires_grad for p in net.parameters())


def _vgg() -> nn.Module:
    from timm.models.vgg import VGG

    return VGG((8, "M", 16), num_classes=3, mlp_ratio=0.01, norm_layer=nn.BatchNorm2d)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cnn", {"batch_norm": True, "widths": [8, 8], "pools": [2, 2]}),
        ("resnet18_3x3", {"widths": [8, 8, 16, 16]}),
        ("cifar_resnet20", {}),
        ("resnet18", {}),
        ("test_resnet", {}),
        ("test_efficientnet", {}),
        ("tf_efficientnet_lite0", {}),
        ("mobilenetv3_small_050", {}),
    ],
)
def test_every_batchnorm_of_the_usual_networks(name, options):
    config = NetworkConfig(name=name, options=options)
    net = _settled(build_network(config, num_classes=5, in_channels=3, image_size=16))
    num_norms = sum(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    _assert_folds(net, num_norms)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())


@pytest.mark.parametrize(
    "make",
    [
        _vgg,
        lambda: nn.Sequential(CONV(bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
        lambda: nn.Sequential(CONV(), nn.BatchNorm2d(4, eps=0.1)),
        lambda: nn.Sequential(CONV(), nn.BatchNorm2d(4, affine=False)),
        lambda: nn.Sequential(CONV(padding=2, padding_mode="reflect"), nn.BatchNorm2d(4)),
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3, groups=3, bias=False), nn.BatchNorm2d(6)),
        lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 3, stride=2), nn.BatchNorm2d(4)),
        lambda: nn.Sequential(
            nn.ChannelShuffle(3), nn.ConvTranspose2d(3, 6, 2, groups=3), nn.BatchNorm2d(6)
        ),
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(768, 5, bias=False), nn.BatchNorm1d(5)),
        lambda: nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)),
        lambda: nn.Sequential(CONV(), nn.SyncBatchNorm(4)),
    ],
    ids=[
        "vgg", "without_bias", "eps", "affine_false", "reflect", "groups", "transposed",
        "transposed_groups", "linear", "conv1d", "sync",
    ],
)  # fmt: skip
def test_kinds_of_layers(make):
    net = _settled(make())
    _assert_folds(net, sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in net.modules()))


def test_timms_activation_stays_under_its_name():
    config = NetworkConfig(name="test_efficientnet")
    net = _settled(build_network(config, num_classes=5, in_channels=3, image_size=16))
    act = net.net.bn1.act
    names = {name for name, module in net.named_modules() if not isinstance(module, nn.Identity)}
    fold_batchnorm(net, SHAPE)
    assert net.net.bn1.act is act and isinstance(act, nn.ReLU | nn.SiLU)
    assert {name for name, m in net.named_modules() if not isinstance(m, nn.Identity)} <= names


def _tied(net: _Net) -> _Net:
    net.conv3 = CONV()
    net.conv3.weight = net.conv.weight
    return net


def _hooked(net: _Net, seen: list[Tensor]) -> _Net:
    net.conv.register_forward_hook(lambda module, args, output: seen.append(output))
    return net


@pytest.mark.parametrize(
    "make",
    [
        # What a dense block does: the convolution's output goes on beside its BatchNorm's.
        lambda: _Net(lambda n, x: torch.cat([y := n.conv(x), n.norm(y).relu()], 1)),
        lambda: _Net(lambda n, x: n.norm(n.conv(x).relu_())),
        lambda: _Net(lambda n, x: n.norm(n.conv(x).add_(1))),
        lambda: _Net(lambda n, x: n.norm(n.conv(x)) + n.norm2(n.conv(-x))),
        lambda: _Net(lambda n, x: n.norm(n.conv2(n.norm(n.conv(x))))),
        lambda: _Net(lambda n, x: n.norm(n.conv(x)) * n.conv.weight.sum()),
        lambda: _Net(lambda n, x: n.norm(n.conv(x)) * n.norm.running_var.sum()),
        lambda: _Net(lambda n, x: [y := n.conv(x), n.norm(y)]),
        lambda: _Net(lambda n, x: n.conv2(n.norm(nn.functional.pad(x, (0, 0, 0, 0, 0, 1))))),
        lambda: _tied(_Net(lambda n, x: n.norm(n.conv(x)) + n.conv3(x))),
        lambda: _hooked(_Net(lambda n, x: n.norm(n.conv(x))), []),
        lambda: nn.Sequential(CONV(), nn.BatchNorm2d(4, track_running_stats=False)),
        lambda: nn.Sequential(CONV(), _Scaled(4)),
        lambda: nn.Sequential(_Standardized(3, 4, 3), nn.BatchNorm2d(4)),
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(CONV()), nn.BatchNorm2d(4)),
        # Its channels are the tokens here, not what the layer puts out.
        lambda: nn.Sequential(nn.Flatten(2), nn.Linear(256, 5), nn.BatchNorm1d(3)),
        lambda: nn.Sequential(CONV(), nn.InstanceNorm2d(4, track_running_stats=True)),
    ],
    ids=[
        "read_beside", "relu_between", "in_place", "conv_twice", "norm_twice", "weight_read",
        "statistics_read", "returned", "norm_before", "tied", "hooked", "batch_statistics",
        "more_than_a_norm", "standardized", "parametrized", "tokens", "instance_norm",
    ],
)  # fmt: skip
def test_what_is_left_alone(make, caplog):
    net = _settled(make())
    before = copy.deepcopy(net.state_dict())
    modules = list(net.modules())
    assert fold_batchnorm(net, SHAPE) == 0
    assert list(net.modules()) == modules and net.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    # It was known beforehand, not found out by a fold that went wrong.
    assert not caplog.records


def test_only_the_sure_ones_are_folded():
    net = _Net(lambda n, x: n.norm2(n.conv2(n.norm(y := n.conv(x)) + y)))
    net = _settled(net)
    expected, _ = _output_and_gradient(net, SHAPE)
    assert fold_batchnorm(net, SHAPE) == 1
    assert isinstance(net.norm, nn.BatchNorm2d) and isinstance(net.norm2, nn.Identity)
    found, _ = _output_and_gradient(net, SHAPE)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tap", ["conv1", "bn1", "layer2.0.conv2", "layer2.0.shortcut", "layer1"])
def test_taps_stay_what_they_are(tap):
    config = NetworkConfig(name="resnet18_3x3", options={"widths": [4, 8]})
    net = _settled(build_network(config, num_classes=5, in_channels=3, image_size=16))
    image = torch.rand(2, *SHAPE)
    expected = Tapped(copy.deepcopy(net), (tap,))(image)
    num_norms = sum(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    num_kept = int(tap in ("conv1", "bn1", "layer2.0.conv2"))
    assert fold_batchnorm(net, SHAPE, keep=(tap,)) == num_norms - num_kept
    found = Tapped(net, (tap,))(image)
    torch.testing.assert_close(found.taps[tap], expected.taps[tap], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.logits_BK, expected.logits_BK, rtol=1e-5, atol=1e-5)


def test_a_kept_block_that_ends_in_a_convolution():
    net = nn.Sequential(nn.Sequential(nn.Identity(), CONV()), nn.BatchNorm2d(4))
    net = Normalized(_settled(net), (0.5,) * 3, (0.5,) * 3).eval()
    assert fold_batchnorm(net, SHAPE, keep=("0",)) == 0
    assert fold_batchnorm(net, SHAPE) == 1


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        # Looks foldable on one image, and is not on two.
        (lambda n, x: n.norm(n.conv(x)) + (n.conv(x) if len(x) > 1 else 0), "outputs would move"),
        (lambda n, x: n.norm(n.conv(x)) * n.norm.eps, "no attribute 'eps'"),
        (lambda n, x: (n.norm(n.conv(x)) * 0 - 1).log(), "outputs would move by nan"),
    ],
    ids=["differs", "raises", "nan"],
)
def test_a_fold_that_goes_wrong_is_taken_back(forward, reason, caplog):
    net = _settled(_Net(forward, bias=False))
    before = copy.deepcopy(net.state_dict())
    norm, weight = net.norm, net.conv.weight
    expected, _ = _output_and_gradient(net, SHAPE)
    with caplog.at_level(logging.WARNING):
        assert fold_batchnorm(net, SHAPE) == 0
    assert "not folded" in caplog.text and reason in caplog.text
    assert net.norm is norm and net.conv.weight is weight and net.conv.bias is None
    assert net.state_dict().keys() == before.keys()
    found, _ = _output_and_gradient(net, SHAPE)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_a_network_that_does_not_run_is_left_alone(caplog):
    net = _settled(nn.Sequential(CONV(), nn.BatchNorm2d(4)))
    with caplog.at_level(logging.WARNING):
        assert fold_batchnorm(net, (5, 16, 16)) == 0
    assert "not folded" in caplog.text and isinstance(net[1], nn.BatchNorm2d)
