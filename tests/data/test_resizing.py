import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, InterpolationMode, Resize

from hard_fast.data.resizing import Resizer, shorter_side
from hard_fast.data.sources import PicturesConfig

# (width, height): enlarged and shrunk, odd margins on either side, one row, one column.
SIZES = [(40, 30), (33, 77), (29, 200), (301, 95), (16, 16), (17, 19), (64, 1), (1, 64), (700, 500)]
MODES = ["bilinear", "bicubic"]


def config(interpolation: str, size: int = 28, **options) -> PicturesConfig:
    return PicturesConfig(root="unused", size=size, interpolation=interpolation, **options)


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (h // 4 + 2, w // 4 + 2, 3), np.uint8) for w, h in SIZES]
    return [Image.fromarray(n).resize(size) for n, size in zip(noise, SIZES, strict=True)]


def decoded(images: list[Image.Image]) -> list[torch.Tensor]:
    return [torch.from_numpy(np.array(image)) for image in images]


def levels_apart(image: torch.Tensor, expected: list[Image.Image]) -> tuple[int, float]:
    wanted = torch.from_numpy(np.stack([np.array(picture) for picture in expected]))
    apart = (image.permute(0, 2, 3, 1).int() - wanted.int()).abs()
    return int(apart.max()), float(apart.float().mean())


@pytest.mark.parametrize("mode", MODES)
def test_crops_are_stretched_as_by_pil_and_mirrored(mode):
    resizer = Resizer(config(mode), num_threads=2)
    is_flipped = np.arange(len(SIZES)) % 2 == 0
    image = resizer.stretched(decoded(pictures()), is_flipped, 28).result()
    assert image.shape == (len(SIZES), 3, 28, 28) and image.dtype == torch.uint8
    assert image.is_contiguous(memory_format=torch.channels_last)
    expected = [p.resize((28, 28), Image.Resampling[mode.upper()]) for p in pictures()]
    mirror = Image.Transpose.FLIP_LEFT_RIGHT
    expected = [p.transpose(mirror) if f else p for p, f in zip(expected, is_flipped, strict=True)]
    largest, mean = levels_apart(image, expected)
    assert largest <= 3 and mean < 0.1
    resizer.close()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("size", "eval_crop"), [(28, 0.875), (27, 0.9), (16, 1.0)])
def test_centres_are_those_of_torchvision_on_pil(mode, size, eval_crop):
    setting = config(mode, size, eval_crop=eval_crop)
    resizer = Resizer(setting, num_threads=1)
    kept = [p for p in pictures() if min(p.size) > 1]
    image = resizer.centred(decoded(kept)).result()
    resize = Resize(shorter_side(setting), InterpolationMode(mode), antialias=True)
    largest, mean = levels_apart(image, [CenterCrop(size)(resize(p)) for p in kept])
    assert largest <= 3 and mean < 0.1
    resizer.close()


@pytest.mark.parametrize(
    ("size", "crop", "shorter"), [(224, 0.875, 256), (224, 0.9, 248), (32, 1, 32)]
)
def test_the_shorter_side_is_rounded_down(size, crop, shorter):
    assert shorter_side(config("bilinear", size, eval_crop=float(crop))) == shorter


def test_an_error_of_a_thread_reaches_the_caller():
    resizer = Resizer(config("bilinear"), num_threads=1)
    grey = torch.zeros(5, 5, dtype=torch.uint8)
    with pytest.raises(RuntimeError):
        resizer.stretched([grey], np.array([False]), 5).result()
    resizer.close()
