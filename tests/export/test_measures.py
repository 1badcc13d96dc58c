import torch
from torch import nn

from hard_fast.export import measures
from hard_fast.export.measures import count_costs, time_calls
from hard_fast.models.binary import BinaryConv2d


def test_parameters_flops_and_bytes_by_hand():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 6 * 6, 3, bias=False))
    costs = count_costs(net, (1, 8, 8))
    assert costs["parameters"] == 2 * 9 + 2 + 72 * 3
    assert costs["bytes"] == 4 * costs["parameters"]
    # Two per multiplication and addition: 36 places x 2 channels x 9 taps, then 72 x 3.
    assert costs["flops"] == 2 * (36 * 2 * 9) + 2 * 72 * 3


def test_operations_on_signs_count_as_a_64th_and_binary_weights_as_bits():
    net = nn.Sequential(nn.Conv2d(1, 4, 1, bias=False), BinaryConv2d(4, 8, 3))
    costs = count_costs(net, (1, 4, 4))
    assert costs["flops"] == 2 * 16 * 4 + 2 * 16 * 8 * (4 * 9) // 64
    assert costs["parameters"] == 4 + 8 * 4 * 9 + 4
    # A bit each, a scale for each of eight channels, and 4 + 4 numbers of 4 bytes.
    assert costs["packed_bytes"] == (8 * 4 * 9) // 8 + 8 * 4 + 4 * (4 + 4)
    assert costs["bytes"] == 4 * costs["parameters"]


def test_a_shared_parameter_counts_once():
    layer = nn.Linear(3, 3)
    assert count_costs(nn.Sequential(layer, layer), (3,))["parameters"] == 12


def test_calls_are_timed_for_every_network_and_size(monkeypatch):
    monkeypatch.setattr(measures, "_SECONDS", 0.0)
    sizes = []

    class Noting(nn.Module):
        def forward(self, x):
            sizes.append(len(x))
            return x

    found = time_calls({"a": Noting(), "b": nn.Linear(2, 2)}, (1, 2, 2), (1, 4))
    assert found.keys() == {"a", "b"} and found["a"].keys() == {"1", "4"}
    assert sizes == [1] * 23 + [4] * 23
    for times in found["b"].values():
        assert times["n"] == 20 and 0 < times["p50_ms"] <= times["p95_ms"]
    assert not torch.is_inference_mode_enabled()
