import io

import numpy as np
import pytest
import torch
from PIL import Image

from bench.evaluate import draw_images
from hard_fast.evals.corruptions.jpeg import through_jpeg


def pillows(image_HWC: np.ndarray, quality: int) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(image_HWC).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream)).astype(int)


@pytest.mark.parametrize("size_px", [32, 33, 47, 100])
@pytest.mark.parametrize("quality", [7, 10, 15, 18, 25, 40, 50, 58, 65, 80])
def test_pictures_come_back_as_from_pillow(quality, size_px):
    image_BCHW = draw_images(16, size_px, torch.device("cpu"))
    found = through_jpeg(image_BCHW.float(), quality).permute(0, 2, 3, 1).numpy()
    images = image_BCHW.permute(0, 2, 3, 1).numpy()
    wanted = np.stack([pillows(image, quality) for image in images])
    error = np.abs(found - wanted)
    # Where a frequency lies between two steps, a whole block may differ by more.
    assert error.mean() < 0.4 and (error > 1).mean() < 0.06
    assert error.mean() < 0.03 * np.abs(wanted - images).mean()


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (200, 30, 90), (1, 254, 128)])
def test_a_plain_picture_is_pillows_to_a_level(colour):
    image = torch.tensor(colour, dtype=torch.float32).view(1, 3, 1, 1).expand(1, 3, 16, 16)
    found = through_jpeg(image.contiguous(), 25)[0].permute(1, 2, 0).numpy()
    wanted = pillows(np.full((16, 16, 3), colour, np.uint8), 25)
    assert np.abs(found - wanted).max() <= 1
