import sys

import pytest
import torch
from bitsandbytes.optim import AdamW8bit, Lion8bit
from torch import nn

from hard_fast.optim.eight_bit import eight_bit_rules
from hard_fast.optim.flat import FlatOptimizer

CPU = torch.device("cpu")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("is_joined", [True, False])
@pytest.mark.parametrize(("name", "peer"), [("lion", Lion8bit), ("adam", AdamW8bit)])
def test_steps_equal_bitsandbytes_own(name, peer, is_joined, device):
    settings = {"lr": 0.01, "betas": (0.9, 0.98), "weight_decay": 0.1, "eps": 1e-8}
    generator = torch.Generator().manual_seed(0)
    starts = [torch.randn(size, generator=generator) for size in ((67, 131), (64, 64), (9,))]
    ours, theirs = ([nn.Parameter(s.to(device, copy=True)) for s in starts] for _ in range(2))
    rules = eight_bit_rules(name, torch.device(device))
    flat = FlatOptimizer([{"params": ours}], *rules, is_joined=is_joined, **settings)
    if name == "lion":
        del settings["eps"]
    plain = peer(theirs, **settings)
    for _ in range(4):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=generator).to(device)
            other.grad = one.grad.clone()
        flat.step()
        plain.step()
    for one, other, start in zip(ours, theirs, starts, strict=True):
        assert torch.equal(one, other)
        assert not torch.equal(one.cpu(), start)
        for key, value in flat.state[one].items():
            same = plain.state[other][key]
            assert torch.equal(value, same) if key != "step" else value == same, key


@pytest.mark.parametrize(("name", "num_bytes"), [("lion", 1), ("adam", 2)])
def test_moments_of_large_tensors_are_bytes_and_of_small_ones_floats(name, num_bytes):
    large, small = eight_bit_rules(name, CPU)
    per_weight = [m.dtype.itemsize / m.num_weights for m in large.moments.values()]
    assert sum(per_weight) == num_bytes * (1 + 4 / 256)
    assert [m.dtype for m in small.moments.values()] == [torch.float32] * num_bytes


def test_without_bitsandbytes_is_an_import_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ImportError):
        eight_bit_rules("lion", CPU)


def test_a_device_without_code_is_found_when_built(monkeypatch):
    # What bitsandbytes does itself where its native library does not load.
    from bitsandbytes import functional

    def no_code(*args, **kwargs):
        raise RuntimeError("no kernel")

    monkeypatch.setattr(functional, "optimizer_update_8bit_blockwise", no_code)
    with pytest.raises(RuntimeError, match="no kernel"):
        eight_bit_rules("lion", CPU)
