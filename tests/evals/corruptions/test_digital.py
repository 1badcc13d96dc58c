import io

import numpy as np
import pytest
import torch
from PIL import Image

from bench.evaluate import differences, draw_images
from hard_fast.evals.corruptions import corrupt

NAMES = ("contrast", "brightness", "saturate", "pixelate", "elastic_transform")


@pytest.mark.parametrize("size_px", [32, 72])
@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", NAMES)
def test_values_are_those_of_numpy(name, severity, size_px):
    found = differences(name, severity, draw_images(3, size_px, torch.device("cpu")))
    assert found.max() <= 1 and found.mean() < 0.2


@pytest.mark.parametrize("size_px", [28, 33, 64, 75, 224])
def test_pixelate_is_pillows_box(size_px):
    image_BCHW = draw_images(1, size_px, torch.device("cpu"))
    for severity in (1, 2, 3, 4, 5):
        found = differences("pixelate", severity, image_BCHW)
        assert found.max() == 0


def test_contrast_keeps_the_mean():
    image = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    image[..., :2] = 200
    # 0.75 of the distance to the mean, 100, is left.
    found = corrupt(image, "contrast", 1, torch.tensor([0]))
    assert found[0, 0, 0].tolist() == [175, 175, 25, 25]


def test_brightness_and_saturation_of_black_white_and_grey():
    image = torch.tensor([0, 100, 255], dtype=torch.uint8).view(1, 1, 1, 3).expand(1, 3, 1, 3)
    bright = corrupt(image, "brightness", 2, torch.tensor([0]))
    assert bright[0, 0, 0].tolist() == [25, 125, 255] and bright[0, 2, 0].tolist() == [25, 125, 255]
    # Grey has the hue of red, so that added saturation shows it.
    red = corrupt(image, "saturate", 5, torch.tensor([0]))
    assert red[0, :, 0, 1].tolist() == [100, 80, 80]
    assert torch.equal(corrupt(image[:, :1], "saturate", 5, torch.tensor([0])), image[:, :1])


def test_elastic_transform_without_shifts_is_affine():
    # Of a plane, linear interpolation makes a plane again; edges are mirrored and left out.
    ramp = (3 * torch.arange(32.0)[:, None] + 2 * torch.arange(32.0)).to(torch.uint8)
    image = ramp.expand(20, 1, 32, 32)
    found = corrupt(image, "elastic_transform", 1, torch.arange(20)).float()[:, 0, 10:22, 10:22]
    for dim in (1, 2):
        assert found.diff(n=2, dim=dim).abs().max() <= 2
    assert (found - image[:, 0, 10:22, 10:22]).abs().amax((1, 2)).min() > 0


def test_jpeg_of_grey_is_pillows():
    image = draw_images(1, 28, torch.device("cpu"))[:, :1]
    found = corrupt(image, "jpeg_compression", 3, torch.tensor([0]))[0, 0].numpy().astype(int)
    stream = io.BytesIO()
    Image.fromarray(image[0, 0].numpy()).save(stream, "JPEG", quality=58)
    assert np.abs(found - np.asarray(Image.open(stream))).mean() < 0.3
