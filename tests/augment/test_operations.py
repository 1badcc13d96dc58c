import math
from functools import partial

import pytest
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from hard_fast.augment.operations import Operation, apply_each, to_bytes

BILINEAR = InterpolationMode.BILINEAR
_affine = partial(F.affine, angle=0.0, scale=1.0, interpolation=BILINEAR)


def shear(image, x, y):
    degrees = [math.degrees(math.atan(x)), math.degrees(math.atan(y))]
    return _affine(image, translate=[0, 0], shear=degrees, center=[0, 0])


def translate(image, x, y):
    return _affine(image, translate=[x, y], shear=[0.0, 0.0])


PEERS = {
    Operation.IDENTITY: (lambda image, level: image, [0.0]),
    Operation.SHEAR_X: (lambda image, level: shear(image, level, 0.0), [0.3, -0.99]),
    Operation.SHEAR_Y: (lambda image, level: shear(image, 0.0, level), [0.3, -0.99]),
    Operation.TRANSLATE_X: (lambda image, level: translate(image, int(level), 0), [3.7, -5.2]),
    Operation.TRANSLATE_Y: (lambda image, level: translate(image, 0, int(level)), [3.7, -5.2]),
    Operation.ROTATE: (partial(F.rotate, interpolation=BILINEAR), [30.0, -135.0]),
    Operation.BRIGHTNESS: (lambda image, level: F.adjust_brightness(image, 1 + level), [0.9, -0.9]),
    Operation.COLOR: (lambda image, level: F.adjust_saturation(image, 1 + level), [0.9, -0.99]),
    Operation.CONTRAST: (lambda image, level: F.adjust_contrast(image, 1 + level), [0.9, -0.99]),
    Operation.SHARPNESS: (lambda image, level: F.adjust_sharpness(image, 1 + level), [0.9, -0.99]),
    Operation.POSTERIZE: (lambda image, level: F.posterize(image, int(level)), [0.0, 2.0, 8.0]),
    Operation.SOLARIZE: (lambda image, level: F.solarize(image, 255 * level), [0.0, 0.3, 1.0]),
    Operation.AUTOCONTRAST: (lambda image, level: F.autocontrast(image), [0.0]),
    Operation.EQUALIZE: (lambda image, level: F.equalize(image), [0.0]),
}
CASES = [(operation, level) for operation, (_, levels) in PEERS.items() for level in levels]


def pictures(channels, height=20, width=14):
    """Smooth ones like photos, one of noise, one flat, one with few levels."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(4, channels, 5, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    image = (40 + 170 * smooth).byte()
    image[1] = torch.randint(0, 256, image[1].shape, generator=generator)
    image[2] = 77
    image[3] = image[3] // 64 * 64
    return image


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("operation", "level"), CASES, ids=str)
def test_values_are_torchvisions_to_one_level(operation, level, channels):
    image = pictures(channels)
    num = len(image)
    made = apply_each(image, torch.full((num,), operation.value), torch.full((num,), level))
    assert made.dtype == torch.uint8
    wanted = PEERS[operation][0](image, level)
    apart = (made.int() - wanted.int()).abs()
    # Their warp rounds its coordinates otherwise, which a picture of noise enlarges.
    assert apart.max() <= 1, (operation, apart.max())
    assert (apart > 0).float().mean() < 0.02


def test_each_image_gets_its_own_operation():
    image = pictures(3)[:1].repeat(len(CASES), 1, 1, 1)
    operation = torch.tensor([operation.value for operation, _ in CASES])
    level = torch.tensor([level for _, level in CASES])
    made = apply_each(image, operation, level)
    for row in range(len(CASES)):
        alone = apply_each(image[:1], operation[row : row + 1], level[row : row + 1])
        assert torch.equal(made[row : row + 1], alone), CASES[row]


def test_floats_are_rounded_to_bytes():
    image = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(to_bytes(image / 255.0), image)
    assert to_bytes(image) is image


def test_every_stage_leaves_alone_what_is_not_its_own():
    # Compiled, and on a GPU, all images pass all stages; here each passes only its own.
    image = pictures(3)[:1].repeat(len(CASES), 1, 1, 1)
    operation = torch.tensor([operation.value for operation, _ in CASES])
    level = torch.tensor([level for _, level in CASES])
    whole = torch.compile(apply_each, fullgraph=True, backend="eager")
    assert torch.equal(whole(image, operation, level), apply_each(image, operation, level))
