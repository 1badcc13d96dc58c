"""Files of weights: what is taken off, what is refused, and what is written."""

import argparse
import os
import pickle

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hard_fast.models.taps import Normalized, Tapped
from hard_fast.models.weights import load_weights, save_weights


def _net(seed: int = 0, width: int = 3) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Conv2d(width, 2, 1))


def _is_same(one: nn.Module, other: nn.Module) -> bool:
    return all(
        torch.equal(a, b)
        for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


def _mistake(net: nn.Module, path) -> str:
    with pytest.raises(ValueError) as caught:
        load_weights(net, path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


@pytest.mark.parametrize("ending", [".pth", ".pt", ".th", ".bin", ".safetensors"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "student.backbone."])
def test_any_file_with_any_prefix(tmp_path, ending, prefix):
    source, target = _net(0), _net(1)
    state = {prefix + key: tensor for key, tensor in source.state_dict().items()}
    path = tmp_path / f"net{ending}"
    save_file(state, path) if ending == ".safetensors" else torch.save(state, path)
    assert not _is_same(source, target)
    load_weights(target, path)
    assert _is_same(source, target)


@pytest.mark.parametrize("entry", ["state_dict", "model", "state_dict_ema", "net", "params"])
def test_wrapping_entries(tmp_path, entry):
    source, target = _net(0), _net(1)
    optimizer = torch.optim.Adam(source.parameters())
    # A score as numpy has it, and a loss as torch has it, lie beside the weights of many.
    values = {"epoch": 3, "best": np.float64(93.1), "loss": torch.tensor(0.5), "top": np.bool_(1)}
    content = {**values, "optimizer": optimizer.state_dict(), entry: source.state_dict()}
    content["args"] = argparse.Namespace(lr=0.1, num=np.int64(3))
    torch.save(content, tmp_path / "net.pth")
    load_weights(target, tmp_path / "net.pth")
    assert _is_same(source, target)


@pytest.mark.parametrize(
    ("entry", "own"),
    [("state_dict_ema", "state_dict"), ("model_ema", "model"), ("ema", "model_state_dict")],
)
def test_averaged_weights_come_first(tmp_path, entry, own):
    averaged, target = _net(0), _net(1)
    content = {own: _net(2).state_dict(), entry: averaged.state_dict()}
    torch.save(content, tmp_path / "net.pth")
    load_weights(target, tmp_path / "net.pth")
    assert _is_same(averaged, target)


def test_an_average_as_torch_keeps_it(tmp_path):
    source, target = _net(0), _net(1)
    average = torch.optim.swa_utils.AveragedModel(source, use_buffers=True)
    torch.save(
        {"model": _net(2).state_dict(), "model_ema": average.state_dict()}, tmp_path / "a.pt"
    )
    load_weights(target, tmp_path / "a.pt")
    assert _is_same(source, target)


def test_of_several_sets_of_weights_none_is_guessed(tmp_path):
    torch.save({"netG": _net(0).state_dict(), "netD": _net(1).state_dict()}, tmp_path / "gan.pth")
    message = _mistake(_net(), tmp_path / "gan.pth")
    assert "holds several sets of weights (netG, netD); save the one that is wanted" in message


def test_prefix_stays_where_only_some_keys_or_the_network_itself_have_it(tmp_path):
    holder = nn.ModuleDict({"model": _net(0)})
    # Without the counters the names differ from the network's, and still nothing may come off.
    state = {k: v for k, v in holder.state_dict().items() if "num_batches" not in k}
    torch.save(state, tmp_path / "net.pth")
    target = nn.ModuleDict({"model": _net(1)})
    load_weights(target, tmp_path / "net.pth")
    assert _is_same(holder, target)
    plain = [(k, v) for k, v in _net(0).state_dict().items() if "num_batches" not in k]
    mixed = {("module." if i else "") + k: v for i, (k, v) in enumerate(plain)}
    torch.save(mixed, tmp_path / "mixed.pth")
    assert "unexpected (module.0.bias" in _mistake(_net(1), tmp_path / "mixed.pth")


def test_batch_norm_counters_may_be_missing(tmp_path):
    source, target = _net(0), _net(1)
    state = {k: v for k, v in source.state_dict().items() if "num_batches" not in k}
    torch.save(state, tmp_path / "net.pth")
    load_weights(target, tmp_path / "net.pth")
    assert torch.equal(source[0].weight, target[0].weight)


def test_misfit_names_counts_and_keys_and_leaves_the_network_alone(tmp_path):
    state = _net(0, width=4).state_dict()
    del state["2.bias"]
    torch.save(state | {"extra": torch.zeros(1)}, tmp_path / "net.pth")
    target = _net(1)
    message = _mistake(target, tmp_path / "net.pth")
    assert "9 tensors in the file, 9 in the network" in message
    assert "1 missing (2.bias), 1 unexpected (extra), 7 of another shape" in message
    assert "0.weight: file [4, 3, 3, 3], network [3, 3, 3, 3]" in message
    assert message.endswith(", ...)")
    assert _is_same(target, _net(1))


class _Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm_was_done",)


def test_other_names_in_the_same_order_are_taken_with_a_warning(tmp_path, caplog):
    source, target = _net(0), _net(1)
    renamed = {f"layer_{i}": tensor for i, tensor in enumerate(source.state_dict().values())}
    torch.save(renamed, tmp_path / "net.pth")
    load_weights(target, tmp_path / "net.pth")
    assert _is_same(source, target)
    assert "taken in order" in caplog.text
    swapped = dict(reversed(renamed.items()))
    torch.save(swapped, tmp_path / "net.pth")
    assert "missing" in _mistake(target, tmp_path / "net.pth")


def test_the_head_keeps_its_own_weights_whatever_the_file_holds(tmp_path):
    source, target = (
        timm.create_model("test_resnet"),
        timm.create_model("test_resnet", num_classes=7),
    )
    own = target.fc.weight.clone()
    renamed = {f"layer_{i}": tensor for i, tensor in enumerate(source.state_dict().values())}
    for content in (source.state_dict(), renamed):
        torch.save(content, tmp_path / "net.pth")
        load_weights(target, tmp_path / "net.pth", head="fc")
        assert torch.equal(target.fc.weight, own)
        assert torch.equal(target.conv1[0].weight, source.conv1[0].weight)


def test_files_that_are_no_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "no such file" in _mistake(_net(), tmp_path / "nope.pth")
    (tmp_path / "text.pth").write_text("not a checkpoint")
    assert "not a file of weights" in _mistake(_net(), tmp_path / "text.pth")
    (tmp_path / "text.safetensors").write_text("not a checkpoint")
    assert "not a file of weights" in _mistake(_net(), tmp_path / "text.safetensors")
    (tmp_path / "empty.pth").touch()
    assert "not a file of weights" in _mistake(_net(), tmp_path / "empty.pth")
    whole = save_weights(_net(), tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "torn.safetensors").write_bytes(whole[:-4])
    assert "not a file of weights" in _mistake(_net(), tmp_path / "torn.safetensors")
    torch.save({"step": 3}, tmp_path / "step.pth")
    assert "holds no weights; expected a dictionary of tensors by name, found step" in _mistake(
        _net(), tmp_path / "step.pth"
    )
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    assert "holds no weights" in _mistake(_net(), tmp_path / "list.pth")
    torch.save(_net(), tmp_path / "module.pth")
    message = _mistake(_net(), tmp_path / "module.pth")
    assert "(torch.nn.modules.container.Sequential), so it was not loaded" in message
    torch.save({"state_dict": _Harmful()}, tmp_path / "harm.pth")
    message = _mistake(_net(), tmp_path / "harm.pth")
    assert "mkdir), so it was not loaded" in message and "weights_only" not in message
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(_Harmful(), protocol=2))
    _mistake(_net(), tmp_path / "raw.pth")
    assert not (tmp_path / "harm_was_done").exists()


def test_saved_weights_load_back_from_wrapped_channels_last_and_tied(tmp_path):
    source = _net(0).to(memory_format=torch.channels_last)
    source.append(source[2])
    path = save_weights(
        Tapped(Normalized(source, (0.5,) * 3, (0.5,) * 3)), tmp_path / "a.safetensors"
    )
    state = load_file(path)
    assert state.keys() == source.state_dict().keys()
    assert state["0.weight"].is_contiguous()
    target = _net(1)
    target.append(target[2])
    load_weights(Normalized(target, (0.0,) * 3, (1.0,) * 3), path)
    assert _is_same(source, target)


def test_timm_loads_what_is_saved(tmp_path):
    sizes = {"num_classes": 5, "in_chans": 1}
    source = timm.create_model("test_resnet", **sizes)
    path = save_weights(Normalized(source, (0.5,), (0.5,)), tmp_path / "net.safetensors")
    assert _is_same(timm.create_model("test_resnet", **sizes, checkpoint_path=path), source)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = save_weights(_net(0), tmp_path / "net.safetensors")
    before = path.read_bytes()

    def fail(*names):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_weights(_net(1), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["net.safetensors"]


def test_only_safetensors_are_written(tmp_path):
    with pytest.raises(ValueError, match="the name must end so"):
        save_weights(_net(), tmp_path / "net.pth")


def test_real_checkpoint_of_the_cifar_nets(real_data):
    from hard_fast.models.small import SMALL_NETS

    for name, pattern in (("cifar_resnet20", "resnet20-*"), ("cifar_resnet56", "resnet56-*")):
        net = SMALL_NETS[name](10, 3, 32)
        (path,) = (real_data / "weights").glob(f"{pattern}.th")
        load_weights(net, path)
        given = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        assert torch.equal(net.linear.weight, given["module.linear.weight"])
    assert "does not fit the network" in _mistake(SMALL_NETS["cifar_resnet20"](10, 3, 32), path)


def test_real_efficientnet_of_another_trainer(real_data):
    net = timm.create_model("tf_efficientnet_lite0")
    load_weights(net, real_data / "weights" / "efficientnet-lite0-57934424.pth")
    assert net.bn1.running_var.max() > 10 and net.classifier.weight.std() > 0.01
