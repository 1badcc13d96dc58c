"""The operations of AugMix and its kin on a batch, each image with one of its own.

Four stages cover all operations: one warp, one look-up in tables of 256 entries, one blend with
grey, one with a blurred copy. On a GPU a batch passes all of them, whatever was chosen, so that
nothing waits for the device; on a CPU each image passes the one that changes it.
Letters: B images, C channels (1 or 3), H rows, W columns.
"""

import enum
import math

import torch
import torch.nn.functional as F
from hard_kernels import affine_mix
from torch import Tensor

_GREY = (0.2989, 0.587, 0.114)


class Operation(enum.IntEnum):
    """What can happen to an image, and what its level means."""

    IDENTITY = 0
    SHEAR_X = 1  # columns per row
    SHEAR_Y = 2
    TRANSLATE_X = 3  # px, cut off to whole ones
    TRANSLATE_Y = 4
    ROTATE = 5  # degrees, counter-clockwise
    BRIGHTNESS = 6  # factor - 1, as for the next three
    COLOR = 7
    CONTRAST = 8
    SHARPNESS = 9
    POSTERIZE = 10  # bits that stay
    SOLARIZE = 11  # share of 255 from which on values are inverted
    AUTOCONTRAST = 12
    EQUALIZE = 13


def apply_each(image: Tensor, operation_B: Tensor, level_B: Tensor) -> Tensor:
    """Each image changed by its operation at its level.

    Args:    image: [B,C,H,W] uint8, C of 1 or 3.
             operation_B: int64 values of Operation. level_B: fp32, see Operation.
    Returns: [B,C,H,W] uint8. Values are torchvision's to within one level of 255; its bilinear
             warps fill with zeros.
    """
    is_picked = image.device.type == "cpu" and not torch.compiler.is_compiling()
    # Rows in one piece: channels are too short a loop for a CPU.
    image = image.contiguous()
    for stage, operations in _STAGES:
        if not is_picked:
            image = stage(image, operation_B, level_B)
            continue
        rows = _is(operation_B, *operations).nonzero().flatten()
        if len(rows):
            changed = stage(image[rows], operation_B[rows], level_B[rows])
            image = image.index_copy(0, rows, changed)
    return image


def to_bytes(image: Tensor) -> Tensor:
    """uint8 pixels as they are, floats in [0,1] rounded to 255ths."""
    return image if image.dtype == torch.uint8 else (image * 255.0).round().to(torch.uint8)


def _is(operation: Tensor, *wanted: Operation) -> Tensor:
    """Where it is one of them."""
    # The values: torch.compile cannot compare with a member itself.
    found = operation == wanted[0].value
    for other in wanted[1:]:
        found = found | (operation == other.value)
    return found


def _to_level(value: Tensor) -> Tensor:
    """Cut off to a whole level, as PIL and torchvision do."""
    return value.clamp(0.0, 255.0).floor()


def _warp(image: Tensor, operation_B: Tensor, level_B: Tensor) -> Tensor:
    theta = _matrix(operation_B, level_B, image.shape[2:])
    return (affine_mix(image, theta[:, None]) * 255.0).round().to(torch.uint8).contiguous()


def _matrix(operation_B: Tensor, level_B: Tensor, size: torch.Size) -> Tensor:
    """[B,2,3] output to input, normalised; shears hold the top left corner, as published."""

    def level(operation: Operation) -> Tensor:
        return torch.where(_is(operation_B, operation), level_B, 0.0)

    height, width = size
    aspect = height / width
    angle = level(Operation.ROTATE) * (math.pi / 180.0)
    cos, sin = torch.cos(angle), torch.sin(angle)
    shear_x, shear_y = level(Operation.SHEAR_X) * aspect, level(Operation.SHEAR_Y) / aspect
    right = level(Operation.TRANSLATE_X).trunc() * (2.0 / width)
    down = level(Operation.TRANSLATE_Y).trunc() * (2.0 / height)
    row_x = torch.stack([cos, shear_x - sin * aspect, shear_x - right], 1)
    row_y = torch.stack([shear_y + sin / aspect, cos, shear_y - down], 1)
    return torch.stack([row_x, row_y], 1)


def _look_up(image: Tensor, operation_B: Tensor, level_B: Tensor) -> Tensor:
    index = image.long().flatten(2)
    mean_B = _to_grey(image.float()).mean((1, 2, 3))
    table = _table(operation_B, level_B, _histogram(index), mean_B, index.shape[2])
    return table.to(torch.uint8).gather(2, index).view_as(image)


def _colour(image: Tensor, operation_B: Tensor, level_B: Tensor) -> Tensor:
    value = image.float()
    share = torch.where(_is(operation_B, Operation.COLOR), -level_B, 0.0).view(-1, 1, 1, 1)
    # In this form a value that equals what it is blended with stays itself.
    return _to_level(value + (_to_grey(value) - value) * share).to(torch.uint8)


def _sharpen(image: Tensor, operation_B: Tensor, level_B: Tensor) -> Tensor:
    value = image.float()
    share = torch.where(_is(operation_B, Operation.SHARPNESS), -level_B, 0.0).view(-1, 1, 1, 1)
    return _to_level(value + _to_blurred(value) * share).to(torch.uint8)


def _to_grey(value: Tensor) -> Tensor:
    """[B,1,H,W] whole levels."""
    if value.shape[1] == 1:
        return value
    red, green, blue = value.split(1, dim=1)
    return (_GREY[0] * red + _GREY[1] * green + _GREY[2] * blue).floor()


def _to_blurred(value: Tensor) -> Tensor:
    """What is to be added for a 3x3 mean in which the middle counts five times.

    Nothing at the picture's outermost pixels, which stay.
    """
    three = value[:, :, :-2] + value[:, :, 1:-1] + value[:, :, 2:]
    nine = three[..., :-2] + three[..., 1:-1] + three[..., 2:]
    middle = value[:, :, 1:-1, 1:-1]
    return F.pad(((nine + 4.0 * middle) / 13.0).round() - middle, (1, 1, 1, 1))


def _histogram(index: Tensor) -> Tensor:
    """[B,C,256] fp32 counts of the levels in [B,C,H*W]."""
    zeros = torch.zeros((*index.shape[:2], 256), device=index.device)
    one = torch.ones((), device=index.device)
    return zeros.scatter_add(2, index, one.expand_as(index))


def _table(
    operation_B: Tensor, level_B: Tensor, histogram: Tensor, mean_B: Tensor, num_pixels: int
) -> Tensor:
    """[B,C,256] what each level becomes."""
    operation, level = operation_B.view(-1, 1, 1), level_B.view(-1, 1, 1)
    value = torch.arange(256.0, device=level_B.device).expand_as(histogram)
    factor = torch.where(_is(operation, Operation.BRIGHTNESS, Operation.CONTRAST), 1.0 + level, 1.0)
    mean = torch.where(_is(operation, Operation.CONTRAST), mean_B.view(-1, 1, 1), 0.0)
    table = _to_level(value * factor + mean * (1.0 - factor))
    step = torch.exp2(8.0 - level.trunc())
    table = torch.where(_is(operation, Operation.POSTERIZE), (value / step).floor() * step, table)
    is_inverted = _is(operation, Operation.SOLARIZE) & (value >= 255.0 * level)
    table = torch.where(is_inverted, 255.0 - value, table)
    upto = histogram.cumsum(2)
    darkest = (upto == 0).sum(2, keepdim=True)
    brightest = (upto < num_pixels).sum(2, keepdim=True)
    stretched = (value - darkest) / ((brightest - darkest).clamp(min=1) * (1.0 / 255.0))
    stretched = torch.where(brightest > darkest, _to_level(stretched), value)
    table = torch.where(_is(operation, Operation.AUTOCONTRAST), stretched, table)
    share = ((num_pixels - histogram.gather(2, brightest)) / 255.0).floor()
    below = upto - histogram
    even = ((below + (share / 2.0).floor()) / share.clamp(min=1.0)).floor().clamp(max=255.0)
    even = torch.where(share > 0, even, value)
    return torch.where(_is(operation, Operation.EQUALIZE), even, table)


_STAGES = (
    (
        _warp,
        (
            Operation.SHEAR_X,
            Operation.SHEAR_Y,
            Operation.TRANSLATE_X,
            Operation.TRANSLATE_Y,
            Operation.ROTATE,
        ),
    ),
    (
        _look_up,
        (
            Operation.BRIGHTNESS,
            Operation.CONTRAST,
            Operation.POSTERIZE,
            Operation.SOLARIZE,
            Operation.AUTOCONTRAST,
            Operation.EQUALIZE,
        ),
    ),
    (_colour, (Operation.COLOR,)),
    (_sharpen, (Operation.SHARPNESS,)),
)
