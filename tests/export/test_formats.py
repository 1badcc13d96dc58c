import sys

import onnx
import pytest
import torch
from torch import nn

from hard_fast.export.formats import (
    OPSET,
    OnnxNetwork,
    capture,
    import_onnx,
    open_pt2,
    write_onnx,
    write_pt2,
)


class Deciding(nn.Module):
    def forward(self, x):
        return x.flatten(1) if x.sum() > 0 else -x.flatten(1)


class Bessel(nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x.flatten(1))


class Fixed(nn.Module):
    def forward(self, x):
        return x.reshape(2, 12)


class Pair(nn.Module):
    def forward(self, x):
        return x.flatten(1), x.flatten(1)


class Foreign(nn.Module):
    def forward(self, x):
        return torch.from_numpy(x.numpy()).flatten(1)


def _mistake(function, *arguments):
    with pytest.raises(ValueError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["onnx", "pt2"])
def test_a_file_answers_as_its_network_at_any_size_of_batch(small_net, name, tmp_path):
    path = tmp_path / f"net.{name}"
    write, open_ = {
        "onnx": (write_onnx, lambda p: OnnxNetwork(p, 1)),
        "pt2": (write_pt2, open_pt2),
    }[name]
    write(capture(small_net, (1, 8, 8)), path, '{"mean": [0.4]}')
    network = open_(path).eval()
    assert network.preprocessing == '{"mean": [0.4]}' and not network.training
    for num in (1, 3, 32):
        image = torch.rand(num, 1, 8, 8)
        outputs = network(image.to(memory_format=torch.channels_last))
        torch.testing.assert_close(outputs.logits_BK, small_net(image), atol=1e-5, rtol=1e-5)


def test_an_onnx_file_has_the_opset_and_names_and_nothing_of_the_machine(small_net, tmp_path):
    path = write_onnx(capture(small_net, (1, 8, 8)), tmp_path / "net.onnx", "{}")
    model = onnx.load(path)
    assert [entry.version for entry in model.opset_import if not entry.domain] == [OPSET]
    (image,), (logits,) = model.graph.input, model.graph.output
    assert (image.name, logits.name) == ("image", "logits")
    assert image.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert b".py" not in path.read_bytes()


def test_a_torch_archive_holds_no_lines_of_source_and_no_large_example(small_net, tmp_path):
    path = write_pt2(capture(small_net, (1, 8, 8)), tmp_path / "net.pt2", "{}")
    assert b'.py\\"' not in path.read_bytes() and path.stat().st_size < 60_000


@pytest.mark.parametrize(
    ("inner", "said"),
    [
        (Deciding(), "layer '1' cannot be captured by torch.export: GuardOnDataDependent"),
        (Fixed(), "a layer fixes the number of images in a batch"),
        (Foreign(), "layer '1' cannot be captured"),
        (Pair(), "the network returns more than logits; let it return one tensor"),
    ],
)
def test_what_cannot_be_captured_names_its_layer(inner, said, capfd):
    net = nn.Sequential(nn.Identity(), inner).eval()
    assert _mistake(capture, net, (3, 2, 2)).startswith(said)
    assert capfd.readouterr() == ("", "")


def test_an_operator_without_a_counterpart_is_named_and_no_file_is_left(tmp_path, capfd):
    program = capture(nn.Sequential(nn.Identity(), Bessel()).eval(), (3, 2, 2))
    said = _mistake(write_onnx, program, tmp_path / "net.onnx", "{}")
    assert said.startswith("onnx: operator prims.bessel_j0 in layer '1' has no counterpart")
    assert not list(tmp_path.iterdir()) and capfd.readouterr() == ("", "")


def test_an_opset_that_is_not_known_is_refused(small_net, tmp_path):
    program = capture(small_net, (1, 8, 8))
    assert "--opset 99: must be from" in _mistake(write_onnx, program, tmp_path / "n", "{}", 99)


@pytest.mark.parametrize(("name", "open_"), [("onnx", OnnxNetwork), ("pt2", open_pt2)])
def test_a_file_that_is_not_one_ends_in_a_line(name, open_, tmp_path):
    path = tmp_path / f"net.{name}"
    path.write_bytes(b"no network")
    arguments = (path, 1) if name == "onnx" else (path,)
    assert _mistake(open_, *arguments).startswith(f"{path}: ")


def test_a_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    said = _mistake(import_onnx)
    assert said == "onnx: onnxscript is not installed; pip install hard-fast[export]"
