import json

import pytest
import timm
import torch
from torch import nn

from hard_fast.evals.suites import PictureFormat
from hard_fast.export.files import Shelf, Sizes, draw_images, preprocessing_tree, try_capture
from hard_fast.export.parity import NUM_IMAGES
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
    assert not list(shelf.folder.glob("student*"))


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
