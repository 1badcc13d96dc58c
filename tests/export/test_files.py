import json
from pathlib import Path

import onnx
import pytest
import timm
import torch
from torch import nn

from hard_fast.data.arrays import Arrays
from hard_fast.evals.suites import PictureFormat
from hard_fast.export import files
from hard_fast.export.files import Shelf, Sizes, draw_images, preprocessing_tree, try_capture
from hard_fast.export.formats import capture
from hard_fast.export.parity import NUM_IMAGES
from hard_fast.export.quantize import Int8Config, calibrate
from hard_fast.models.taps import Normalized
from hard_fast.models.zoo import NetworkConfig, save_weights

SIZES = Sizes(channels=3, size=32, num_classes=5)


@pytest.fixture
def shelf(tmp_path):
    images = draw_images(SIZES, None, NUM_IMAGES)
    return Shelf(tmp_path, SIZES, images, "{}", num_threads=1)


@pytest.fixture
def config(tmp_path):
    """One of timm's networks with weights in a file."""
    torch.manual_seed(0)
    net = timm.create_model("test_resnet", num_classes=5)
    path = save_weights(net, tmp_path / "given.safetensors")
    return NetworkConfig(name="test_resnet", checkpoint=str(path))


def test_weights_of_timms_networks_are_opened_by_timm(shelf, config):
    shelf.write_weights(config)
    shipped = shelf.shipped["safetensors"]
    assert shipped.runtime == "timm.create_model" and shipped.parity["worst"] < 1e-6
    net = timm.create_model("test_resnet", num_classes=5, checkpoint_path=str(shipped.path))
    whole = SIZES.build(config, frozen=False)
    image = torch.rand(2, 3, 32, 32)
    normalised = (image - whole.mean) / whole.std
    torch.testing.assert_close(net.eval()(normalised), whole(image), atol=1e-5, rtol=1e-5)


def test_weights_of_small_networks_are_opened_by_this_package(tmp_path, shelf):
    config = NetworkConfig(name="mlp", options={"hidden": [4], "dropout": 0.0})
    path = save_weights(SIZES.build(config, frozen=False), tmp_path / "given.safetensors")
    shelf.write_weights(config.model_copy(update={"checkpoint": str(path)}))
    assert shelf.shipped["safetensors"].runtime == "hard_fast.models" and not shelf.failures


def test_a_file_that_disagrees_is_removed_and_says_so(shelf):
    torch.manual_seed(0)
    one, other = (Normalized(_line(), [0.0], [1.0]).eval() for _ in range(2))
    program = try_capture(shelf, one, "pt2")
    shelf.write_graphs(program, ["pt2"], other)
    assert "off by" in shelf.failures["pt2"] and not shelf.shipped
    assert not list(shelf.folder.iterdir())


def test_a_file_has_its_name_only_once_it_was_proven(shelf, monkeypatch):
    net = Normalized(_line(), [0.0], [1.0]).eval()
    program = try_capture(shelf, net, "onnx")
    replace, seen = Path.replace, []
    monkeypatch.setattr(
        Path,
        "replace",
        lambda self, to: seen.append((to.exists(), self.exists())) or replace(self, to),
    )
    (shelf.folder / "student.onnx").write_bytes(b"of an earlier export")
    shelf.write_graphs(program, ["onnx"], net)
    assert seen == [(False, True)] and not shelf.failures
    assert [path.name for path in shelf.folder.iterdir()] == ["student.onnx"]


def test_an_int8_file_with_one_row_of_weights_changed_is_refused(shelf, monkeypatch):
    torch.manual_seed(0)
    net = Normalized(_line(), [0.5], [0.3]).eval().requires_grad_(False)
    train = Arrays((255 * shelf.images).byte(), torch.zeros(len(shelf.images), dtype=torch.int64))
    made = calibrate(capture(net, SIZES.image_shape), train, SIZES.image_shape, Int8Config())
    shelf.write_graphs(made, ["onnx"], net, int8="ptq")
    moved = shelf.shipped["onnx int8 ptq"].moved
    assert moved["worst"] > 0 and json.dumps(moved, allow_nan=False)
    write = files.write_onnx

    def write_wrong(program, path, *rest):
        write(program, path, *rest)
        model = onnx.load(path)
        (weight,) = (t for t in model.graph.initializer if tuple(t.dims) == (5, 3072))
        values = onnx.numpy_helper.to_array(weight).copy()
        values[0] = -values[0]
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        onnx.save(model, path)

    monkeypatch.setattr(files, "write_onnx", write_wrong)
    shelf.write_graphs(made, ["onnx"], net, int8="qat")
    assert "off by" in shelf.failures["onnx int8 qat"]


def test_what_cannot_be_captured_is_noted_under_its_label(shelf):
    class Deciding(nn.Module):
        def forward(self, x):
            return x.flatten(1) if x.sum() > 0 else -x.flatten(1)

    assert try_capture(shelf, nn.Sequential(Deciding()).eval(), "onnx and pt2") is None
    assert "layer '0' cannot be captured" in shelf.failures["onnx and pt2"]


def test_preprocessing_says_what_a_picture_must_become():
    network = Normalized(_line(), [0.5, 0.4, 0.3], [0.2, 0.2, 0.1])
    pictures = PictureFormat(32, 0.875, "bicubic")
    config = NetworkConfig(name="mlp")
    tree = preprocessing_tree(config, network, SIZES, pictures, ("ant", "bee"))
    assert tree["geometry"] == {
        "resize_shorter_side": 36,
        "centre_crop": 32,
        "interpolation": "bicubic",
    }
    assert tree["input"]["shape"] == ["batch", 3, 32, 32] and tree["input"]["channels"] == "RGB"
    assert tree["normalisation"]["mean"] == pytest.approx([0.5, 0.4, 0.3])
    assert tree["normalisation"]["is_inside"] == {"onnx": True, "pt2": True, "safetensors": False}
    assert tree["class_names"] == ["ant", "bee"] and json.loads(json.dumps(tree)) == tree
    bare = preprocessing_tree(config, network, SIZES, None, None)
    assert bare["geometry"]["resize_shorter_side"] is None and bare["class_names"] is None


def test_images_to_compare_on_are_filled_up_with_noise():
    seen = torch.full((2, 3, 32, 32), 0.25)
    images = draw_images(SIZES, seen, 5)
    assert images.shape == (5, 3, 32, 32) and torch.equal(images[:2], seen)
    assert images[2:].std() > 0.2


def _line():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5))
