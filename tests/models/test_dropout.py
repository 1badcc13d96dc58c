"""Layer dropout: where it acts, how often, at which rate, and that it leaves no other trace."""

import copy

import pytest
import torch
from torch import nn

from hard_fast.models.dropout import LayerDropout, LayerDropoutConfig
from hard_fast.models.taps import Tapped
from hard_fast.models.zoo import NetworkConfig, build_network
from hard_fast.runtime.cycle import Cycle

SIZES = {"num_classes": 4, "in_channels": 3, "image_size": 8}
LENGTH = {"num_steps": 5, "num_steps_per_epoch": 1}


def build(layers, rate=0.5, *, frozen=False, seed=0):
    torch.manual_seed(seed)
    dropout = None if layers is None else {"layers": layers, "rate": rate}
    options = {"widths": [4, 8], "num_blocks": 1}
    config = NetworkConfig(name="resnet18_3x3", options=options, dropout=dropout)
    return build_network(config, frozen=frozen, **SIZES)


def images(num=64):
    return torch.rand(num, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def advance(network, step):
    network.dropout.advance(step, **LENGTH)
    return network.dropout.chosen.item()


def test_the_layer_drawn_loses_a_share_of_its_output_and_no_other_does():
    network = build(["layer1", "layer2"], rate=0.25).train()
    seen = set()
    for step in range(8):
        chosen = advance(network, step)
        seen.add(chosen)
        torch.manual_seed(step)
        output = torch.full((4, 4, 50, 50), 2.0)
        dropped = network.dropout(output, chosen)
        assert dropped.unique().tolist() == pytest.approx([0.0, 2.0 / 0.75])
        # Binomial: 40,000 elements, so a standard deviation of 0.0022.
        assert (dropped == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
        assert torch.equal(network.dropout(output, 1 - chosen), output)
    assert seen == {0, 1}


def test_dropout_behind_a_layer_is_what_the_next_one_reads():
    network, plain = build(["layer1"]).train(), build(None).train()
    read = []
    network.net.layer2.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    plain.net.layer2.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    advance(network, 0)
    for each in (network, plain):
        each(images())
    dropped, whole = read
    is_kept = dropped != 0
    torch.testing.assert_close(dropped[is_kept], 2.0 * whole[is_kept])
    was_there = whole != 0
    assert (was_there & ~is_kept).sum() / was_there.sum() == pytest.approx(0.5, abs=0.03)


def test_the_rate_grows_and_the_layer_depends_on_step_and_seed_alone():
    growing = Cycle(ends=0.0, peak=0.4, factor=1.0)
    networks = [build(["layer*"], rate=growing, seed=seed) for seed in (0, 0, 1)]
    drawn = [[], [], []]
    orders = (range(5), range(4, -1, -1), range(5))
    for order, network, found in zip(orders, networks, drawn, strict=True):
        for step in order:
            found.append(advance(network, step))
            assert network.dropout.rate.item() == pytest.approx(0.1 * step)
    assert drawn[0] == drawn[1][::-1] and drawn[0] != drawn[2]
    default = LayerDropoutConfig(layers=["layer1"])
    assert LayerDropout(default, 1).rate.item() == 0.0


def test_no_trace_is_left_in_weights_evaluation_or_a_teacher():
    network, plain = build(["layer*"]), build(None)
    assert network.state_dict().keys() == plain.state_dict().keys()
    for name, value in plain.state_dict().items():
        assert torch.equal(network.state_dict()[name], value), name
    advance(network, 0)
    assert torch.equal(network.eval()(images()), plain.eval()(images()))
    teacher = build(["layer*"], frozen=True)
    assert not any(isinstance(module, LayerDropout) for module in teacher.modules())
    exported = torch.export.export(network, (images(2),)).module()
    torch.testing.assert_close(exported(images(2)), network(images(2)))


def test_a_copy_has_dropout_of_its_own():
    network = build(["layer1", "layer2"]).train()
    twin = copy.deepcopy(network)
    network.dropout.rate.fill_(0.0)
    torch.manual_seed(0)
    whole = network(images())
    torch.manual_seed(0)
    assert torch.equal(whole, build(None).train()(images()))
    assert not torch.equal(twin(images()), whole)


def test_one_graph_for_all_layers_and_rates_and_it_is_what_eager_does():
    tapped = Tapped(build(["layer1", "layer2"], Cycle(ends=0.1, peak=0.9)).train(), ("layer2",))
    torch._dynamo.reset()
    whole = torch.compile(tapped, fullgraph=True, dynamic=False, backend="aot_eager")
    layers = set()

    def both(step):
        layers.add(advance(tapped.network, step))
        found = []
        for call in (whole, tapped):
            torch.manual_seed(step)
            found.append(call(images(8)))
        torch.testing.assert_close(found[0].logits_BK, found[1].logits_BK, rtol=1e-4, atol=1e-5)
        found[0].logits_BK.sum().backward()

    both(0)
    with torch.compiler.set_stance("fail_on_recompile"):
        for step in range(1, 5):
            both(step)
    assert layers == {0, 1}


class Two(nn.Module):
    """Returns a pair."""

    def forward(self, x):
        return x, x


def test_names_that_are_wrong_are_one_line():
    with pytest.raises(ValueError, match="'layer9'.*did you mean"):
        build(["layer9"])
    # A star stands for one name, so the blocks inside are not meant.
    assert build(["layer*"]).dropout.num_layers == 2
    assert build(["layer*.*"]).dropout.num_layers == 2
    with pytest.raises(ValueError, match="checkpointing = true"):
        NetworkConfig(name="x", checkpointing=True, dropout={"layers": ["a"]})
    network = build(["layer1"]).train()
    network.net.layer1.register_forward_hook(lambda *_: (1, 2), prepend=True)
    with pytest.raises(ValueError, match="'layer1' returned a tuple"):
        network(images(2))
