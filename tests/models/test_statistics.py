"""The BatchNorm gap by hand, alone and as a tap of a network."""

import pytest
import torch
from torch import nn

from hard_fast.models.statistics import NORM_GAP, norm_gap
from hard_fast.models.taps import Tapped
from hard_fast.models.zoo import NetworkConfig, build_network


def network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.BatchNorm2d(2))
    return net.eval()


def test_the_gap_by_hand():
    # Channel 0: mean 2, variance 1; channel 1: mean 0, variance 0.
    x = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    found = norm_gap(x, torch.tensor([-1.0, 4.0]), torch.tensor([1.0, 2.0]))
    # |(-3, 4)| + |(0, 2)|
    assert found.item() == pytest.approx(7.0)


def test_a_tap_holds_the_gap_of_each_layer_and_only_of_the_last_call():
    net = network()
    net[1].running_mean += 1.0
    tapped = Tapped(net, (NORM_GAP,))
    image = torch.rand(4, 1, 3, 3)
    tapped(torch.rand(4, 1, 3, 3))
    gaps = tapped(image).taps[NORM_GAP]
    inner = net[0](image)
    want = norm_gap(inner, net[1].running_mean, net[1].running_var)
    assert gaps.shape == (2,)
    torch.testing.assert_close(gaps[0], want)


def test_who_learns_nothing_from_it_does_not_pay_for_it():
    tapped = Tapped(network(), ("2", NORM_GAP))
    whole = torch.compile(tapped, fullgraph=True, backend="aot_eager")
    image = torch.rand(4, 1, 3, 3)
    for call in (tapped, whole, tapped):
        with torch.no_grad():
            assert set(call(image).taps) == {"2"} and not tapped._gaps
        assert set(call(image).taps) == {"2", NORM_GAP}


def test_its_gradient_reaches_the_picture_and_compiles_to_the_same():
    tapped = Tapped(network().requires_grad_(False), (NORM_GAP,))
    image = torch.rand(4, 1, 3, 3, requires_grad=True)
    (eager,) = torch.autograd.grad(tapped(image).taps[NORM_GAP].sum(), image)
    assert eager.abs().max() > 0
    whole = torch.compile(tapped, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        (found,) = torch.autograd.grad(whole(image).taps[NORM_GAP].sum(), image)
        torch.testing.assert_close(found, eager)


def test_a_frozen_network_keeps_its_statistics_where_they_are_asked_for():
    config = NetworkConfig(name="cnn", options={"batch_norm": True, "widths": [2, 2, 2]})
    sizes = {"num_classes": 3, "in_channels": 1, "image_size": 28, "frozen": True}
    folded = build_network(config, **sizes)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    whole = build_network(config, **sizes, taps=(NORM_GAP,))
    assert sum(isinstance(m, nn.BatchNorm2d) for m in whole.modules()) == 3
    assert Tapped(whole, (NORM_GAP,))(torch.rand(2, 1, 28, 28)).taps[NORM_GAP].shape == (3,)


def test_a_network_without_statistics_is_refused():
    with pytest.raises(ValueError, match="no BatchNorm statistics"):
        Tapped(nn.Sequential(nn.Linear(2, 2)), (NORM_GAP,))
