import io
import sys
from typing import get_args

import pytest
import torch
from bitsandbytes import functional
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from hard_fast.optim.build import OptimConfig, build_optimizer, clip_
from hard_fast.optim.schedule import set_rate
from hard_fast.runtime.configfile import ConfigError, Source, parse

KINDS = get_args(OptimConfig.model_fields["kind"].annotation)
EIGHT_BIT = ("lion8bit", "adamw8bit")


def _network():
    """A channels_last convolution and a matrix, both large enough for 8-bit state, and a bias."""
    torch.manual_seed(0)
    network = nn.ModuleDict({"conv": nn.Conv2d(32, 32, 3), "linear": nn.Linear(131, 67)})
    return network.to(memory_format=torch.channels_last)


def _steps(network, optimizer, first, last):
    """Steps first..last-1, each with its own gradients and its own learning rate."""
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.grad = torch.empty_like(parameter).copy_(noise)
        set_rate(optimizer, 0.01 / (step + 1))
        optimizer.step()


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_run_is_bitwise_equal(kind):
    config = OptimConfig(kind=kind, lr=0.01, weight_decay=0.1)
    network = _network()
    optimizer = build_optimizer(config, network.named_parameters())
    _steps(network, optimizer, 0, 3)
    file = io.BytesIO()
    torch.save({"network": network.state_dict(), "optimizer": optimizer.state_dict()}, file)
    _steps(network, optimizer, 3, 6)

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = _network()
    again = build_optimizer(config, resumed.named_parameters())
    resumed.load_state_dict(saved["network"])
    again.load_state_dict(saved["optimizer"])
    _steps(resumed, again, 3, 6)
    for name, value in network.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
        assert not torch.equal(value, saved["network"][name]), name


@pytest.mark.parametrize("kind", ["lion", *EIGHT_BIT])
def test_flat_kinds_leave_storage_and_memory_order_alone(kind):
    network = _network()
    optimizer = build_optimizer(OptimConfig(kind=kind, lr=0.01), network.named_parameters())
    before = [(p.data_ptr(), p.stride()) for p in network.parameters()]
    _steps(network, optimizer, 0, 2)
    assert [(p.data_ptr(), p.stride()) for p in network.parameters()] == before
    assert network["conv"].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kind", EIGHT_BIT)
def test_8bit_state_is_8bit_for_large_tensors_only(kind):
    network = _network()
    optimizer = build_optimizer(OptimConfig(kind=kind, lr=0.01), network.named_parameters())
    _steps(network, optimizer, 0, 1)
    for layer in network.values():
        assert optimizer.state[layer.weight]["state1"].dtype == torch.uint8
        assert optimizer.state[layer.bias]["state1"].dtype == torch.float32


def _num_state_bytes(kind, device):
    with FakeTensorMode(allow_non_fake_inputs=True):
        weight = nn.Parameter(torch.empty(64, 128, device=device))
        return build_optimizer(OptimConfig(kind=kind, lr=0.1), [("w", weight)]).num_state_bytes


def test_lion_auto_is_8bit_on_a_gpu_only(monkeypatch):
    # Fake tensors stand for a GPU's; the table of codes is worked out number by number.
    codes = unset_fake_temporarily()(functional.create_dynamic_map)
    monkeypatch.setattr(functional, "create_dynamic_map", codes)
    eight, full = 8192 + 4 * 8192 / 256, 4 * 8192
    assert _num_state_bytes("lion_auto", "cuda") == _num_state_bytes("lion8bit", "cuda") == eight
    assert _num_state_bytes("lion_auto", "cpu") == _num_state_bytes("lion", "cpu") == full
    assert _num_state_bytes("lion8bit", "cpu") == eight


def test_lion_auto_without_bitsandbytes_warns_and_is_lion(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert _num_state_bytes("lion_auto", "cuda") == 4 * 8192
    assert "'lion_auto' is 'lion': bitsandbytes has no code for" in caplog.text


# One step from 1 with gradient -0.05, lr 0.1, weight decay 0.1. L2 turns the gradient into
# -0.05 + 0.1 = 0.05; decoupled decay leaves 1 - 0.1 * 0.1 = 0.99 and the gradient's sign.
@pytest.mark.parametrize(
    ("kind", "matrix", "vector"),
    [
        ("adam", 0.9, 0.9),
        ("adamw", 1.09, 1.1),
        ("sgd", 0.995, 1.005),
        ("lion", 1.09, 1.1),
        ("lion8bit", 1.09, 1.1),
        ("lion_auto", 1.09, 1.1),
        ("adamw8bit", 1.09, 1.1),
    ],
)
def test_first_step_by_hand(kind, matrix, vector):
    parameters = [
        ("matrix", nn.Parameter(torch.ones(1, 1))),
        ("vector", nn.Parameter(torch.ones(1))),
    ]
    config = OptimConfig(kind=kind, lr=0.1, weight_decay=0.1)
    optimizer = build_optimizer(config, parameters)
    for _, parameter in parameters:
        parameter.grad = torch.full_like(parameter, -0.05)
    optimizer.step()
    assert [p.item() for _, p in parameters] == pytest.approx([matrix, vector], abs=1e-6)


def test_sgd_momentum_by_hand():
    # Gradient 1, lr 0.1, momentum 0.5. Plain: 1 - 0.1 - 0.1 * 1.5. Nesterov: steps 1.5 and 1.75.
    for nesterov, expected in ((False, 0.75), (True, 0.675)):
        parameter = nn.Parameter(torch.ones(()))
        config = OptimConfig(kind="sgd", lr=0.1, momentum=0.5, nesterov=nesterov)
        optimizer = build_optimizer(config, [("weight", parameter)])
        for _ in range(2):
            parameter.grad = torch.ones(())
            optimizer.step()
        assert parameter.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "asked", "decayed"),
    [
        ("adam", None, [["a", "b"]]),
        ("adam", False, [["a"], ["b"]]),
        ("adamw", None, [["a"], ["b"]]),
        ("adamw", True, [["a", "b"]]),
        ("sgd", None, [["a"], ["b"]]),
    ],
)
def test_decay_groups_leave_out_frozen_parameters(kind, asked, decayed):
    parameters = [
        ("a", nn.Parameter(torch.ones(2, 2))),
        ("b", nn.Parameter(torch.ones(2))),
        ("frozen", nn.Parameter(torch.ones(2, 2), requires_grad=False)),
    ]
    config = OptimConfig(kind=kind, lr=0.1, weight_decay=0.5, decay_norm_and_bias=asked)
    groups = build_optimizer(config, parameters).param_groups
    assert [group["param_names"] for group in groups] == decayed
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0][: len(decayed)]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "sgd"])
def test_betas_are_the_usual_ones_or_the_given(kind):
    parameters = [("weight", nn.Parameter(torch.ones(2)))]
    usual = (0.9, 0.99) if kind.startswith("lion") else (0.9, 0.999)
    for given, expected in ((None, usual), ((0.8, 0.7), (0.8, 0.7))):
        config = OptimConfig(kind=kind, lr=0.1, betas=given)
        assert build_optimizer(config, parameters).param_groups[0]["betas"] == expected


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd"])
def test_fused_step_ignores_memory_order(kind):
    config = OptimConfig(kind=kind, lr=0.01)
    results = []
    # The gradient's order, then the order of the parameter whose state is loaded.
    for order, loaded in (
        (torch.channels_last, torch.channels_last),
        (torch.contiguous_format, torch.contiguous_format),
    ):
        start = torch.rand(8, 8, 3, 3, generator=torch.Generator().manual_seed(0))
        states = None
        for memory_format in (torch.channels_last, loaded):
            weight = nn.Parameter(start.contiguous(memory_format=memory_format))
            optimizer = build_optimizer(config, [("weight", weight)])
            assert optimizer.defaults["fused"]
            if states is not None:
                optimizer.load_state_dict(states)
            for step in range(2):
                generator = torch.Generator().manual_seed(step)
                gradient = torch.randn(8, 8, 3, 3, generator=generator)
                weight.grad = gradient.contiguous(memory_format=order)
                optimizer.step()
            start, states = weight.detach(), optimizer.state_dict()
        results.append(start)
    torch.testing.assert_close(results[0], results[1])


def test_nothing_to_train_is_an_error():
    frozen = [("weight", nn.Parameter(torch.ones(2), requires_grad=False))]
    with pytest.raises(ValueError, match="no parameter requires gradients"):
        build_optimizer(OptimConfig(lr=0.1), frozen)


def test_missing_bitsandbytes_is_one_clear_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ValueError, match="lion8bit.*bitsandbytes.*or use 'lion'$"):
        build_optimizer(
            OptimConfig(kind="lion8bit", lr=0.1), [("weight", nn.Parameter(torch.ones(2)))]
        )


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({}, "optim.lr"),
        ({"lr": 0.0}, "optim.lr = 0.0"),
        ({"lr": 0.1, "momentum": 0.5}, "momentum = 0.5: kind = 'adam' does not use it"),
        ({"lr": 0.1, "kind": "lion", "nesterov": True}, "nesterov = True: kind = 'lion'"),
        ({"lr": 0.1, "kind": "sgd", "betas": [0.9, 0.9]}, "betas = (0.9, 0.9): kind = 'sgd'"),
        ({"lr": 0.1, "kind": "sgd", "nesterov": True, "momentum": 0}, "needs momentum > 0"),
        ({"lr": 0.1, "betas": [0.9, 1.0]}, "optim.betas"),
        ({"lr": 0.1, "weight_decay": -1e-4}, "optim.weight_decay"),
        ({"lr": 0.1, "clip_norm": 0.0}, "optim.clip_norm"),
        ({"lr": 0.1, "kind": "lion16bit"}, "lion8bit"),
        ({"lr": 0.1, "rate": {"kind": "cosin"}}, "did you mean 'cosine'"),
    ],
)
def test_mistakes_are_named(table, said):
    class Outer(OptimConfig.__base__):
        optim: OptimConfig

    with pytest.raises(ConfigError) as error:
        parse(Outer, Source({"optim": table}, {}))
    assert said in str(error.value)


def test_clip_by_hand():
    pair = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    for max_norm, scale in ((1.0, 0.2), (10.0, 1.0)):
        pair[0].grad, pair[1].grad = torch.tensor([3.0]), torch.tensor([-4.0])
        assert clip_(pair, max_norm).item() == pytest.approx(5.0)
        clipped = [p.grad.item() for p in pair]
        assert clipped == pytest.approx([3 * scale, -4 * scale], rel=1e-5)


@pytest.mark.gpu
def test_clip_and_step_do_not_wait_for_the_device():
    network = _network().cuda()
    for kind in KINDS:
        optimizer = build_optimizer(OptimConfig(kind=kind, lr=0.01), network.named_parameters())
        for parameter in network.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        torch.cuda.set_sync_debug_mode("error")
        try:
            clip_(network.parameters(), 1.0)
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_parts_have_rates_of_their_own():
    net = nn.ModuleDict({"first": nn.Linear(2, 2), "second": nn.Linear(2, 2)})
    config = OptimConfig(kind="adamw", lr=0.1, weight_decay=0.5, lr_factors={"first": 0.01})
    optimizer = build_optimizer(config, net.named_parameters())
    set_rate(optimizer, 0.2)
    rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    assert len(optimizer.param_groups) == 4
    assert rates[id(net["first"].weight)] == rates[id(net["first"].bias)] == 0.2 * 0.01
    assert rates[id(net["second"].weight)] == rates[id(net["second"].bias)] == 0.2
    with pytest.raises(ValueError, match="begins with 'third'"):
        changed = config.model_copy(update={"lr_factors": {"third": 1.0}})
        build_optimizer(changed, net.named_parameters())
