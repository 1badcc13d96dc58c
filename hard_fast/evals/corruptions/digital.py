"""What cameras, screens and codecs do: contrast, brightness, saturation, pixels, JPEG, elastic.

Letters: B images, C channels, H rows, W columns.
"""

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hard_fast.evals.corruptions.draws import Draws
from hard_fast.evals.corruptions.filters import gaussian_blur, to_planes
from hard_fast.evals.corruptions.jpeg import through_jpeg


def contrast(image_BCHW: Tensor, kept: float, draws: Draws) -> Tensor:
    """Each channel's distance to its mean reduced; fp32 in [0,255]."""
    num, channels, height, width = image_BCHW.shape
    # Whole rows: a mean of each channel that repeats every third value would crawl.
    rows = image_BCHW.permute(0, 2, 3, 1).reshape(num, height, -1).float()
    mean = (rows.sum(1).view(num, width, channels).sum(1) / (height * width)).mul_(1 - kept)
    rows = rows.mul_(kept).add_(mean.repeat(1, width)[:, None])
    return rows.view(num, height, width, channels).permute(0, 3, 1, 2)


def brightness(image_BCHW: Tensor, added: float, draws: Draws) -> Tensor:
    """The value of HSV raised; fp32 in [0,255]."""
    planes = to_planes(image_BCHW)
    value = planes.amax(1, keepdim=True)
    raised = (value + 255 * added).clamp_(max=255)
    # Hue and saturation stay if all channels grow alike; black has none, and turns grey.
    return torch.where(value > 0, planes * (raised / value.clamp(min=1)), raised)


def saturate(image_BCHW: Tensor, shape: tuple[float, float], draws: Draws) -> Tensor:
    """The saturation of HSV multiplied and raised; fp32 in [0,255]. Grey pictures stay.

    Args:    shape: the factor and what is added.
    """
    planes = to_planes(image_BCHW)
    if planes.shape[1] == 1:
        return planes
    value = planes.amax(1, keepdim=True)
    span = value - planes.amin(1, keepdim=True)
    old = span / value.clamp(min=1)
    new = (old * shape[0] + shape[1]).clamp_(0, 1)
    found = value - (value - planes) * (new / old.clamp(min=1e-9))
    if shape[1]:
        # A grey pixel's hue counts as red.
        red = torch.cat([value, value * (1 - new), value * (1 - new)], 1)
        found = torch.where(span > 0, found, red)
    return found


def pixelate(image_BCHW: Tensor, share: float, draws: Draws) -> Tensor:
    """Fewer pixels, each the mean of those it covers, then as many as before; uint8.

    Source:  Pillow's resize with BOX: rows, then columns, rounded after each.
    """
    planes = to_planes(image_BCHW)
    num, channels, height, width = planes.shape
    low, short = int(height * share), int(width * share)
    means = planes.view(-1, width) @ _box_means(width, short, planes.device).mT
    means = means.add_(0.5).floor_().view(num * channels, height, short)
    means = (_box_means(height, low, planes.device) @ means).add_(0.5)
    small = means.view(num, channels, low * short).mT.contiguous().to(torch.uint8)
    small = small.view(num, low, short, channels)
    small = small.index_select(2, _nearest(short, width, small.device))
    return small.index_select(1, _nearest(low, height, small.device)).permute(0, 3, 1, 2)


@lru_cache(maxsize=16)
def _box_means(size: int, num: int, device: torch.device) -> Tensor:
    """[num,size] fp32: the matrix of means over the pixels whose centres each box covers."""
    centre = (np.arange(num) + 0.5) * (size / num)
    half = 0.5 * size / num
    first = np.maximum((centre - half + 0.5).astype(int), 0)[:, None]
    last = np.minimum((centre + half + 0.5).astype(int), size)[:, None]
    place = np.arange(size)
    is_covered = (place >= first) & (place < last)
    return torch.from_numpy(is_covered / (last - first)).float().to(device)


@lru_cache(maxsize=16)
def _nearest(size: int, num: int, device: torch.device) -> Tensor:
    return torch.from_numpy(((np.arange(num) + 0.5) * (size / num)).astype(int)).to(device)


def jpeg_compression(image_BCHW: Tensor, quality: int, draws: Draws) -> Tensor:
    """Through a JPEG of this quality and back; fp32, whole numbers in [0,255]."""
    return through_jpeg(to_planes(image_BCHW), quality)


def elastic_transform(
    image_BCHW: Tensor, shape: tuple[float, float, float], draws: Draws
) -> Tensor:
    """Stretched by a random affine map, then shifted by a smooth random field; fp32 in [0,255].

    Args:    shape: the shifts' amplitude and sigma, how far corners move at most, px.
    """
    amplitude, sigma, corner = shape
    planes = to_planes(image_BCHW)
    height, width = planes.shape[-2:]
    move_B6 = (draws.uniform(6) * 2 - 1) * corner
    place = _affine_places(move_B6, height, width)
    planes = _sampled(planes, place, height, width, is_mirrored=True)
    if amplitude == 0:
        return planes
    field = draws.uniform_field(2, height, width).mul_(2).sub_(1)
    field = gaussian_blur(field, sigma, edge="reflect", truncate=3).mul_(amplitude)
    place = field.permute(0, 2, 3, 1) + _pixel_places(height, width, field.device)
    return _sampled(planes, place, height, width, is_mirrored=False)


def _affine_places(move_B6: Tensor, height: int, width: int) -> Tensor:
    """[B,H,W,2] x and y in px where the affine map takes each pixel from.

    Three corners of a square in the middle, (x, y) as the reference has them, move at random.
    """
    half = min(height, width) // 3
    # Rows first, though these are x and y: the images of the reference are square.
    middle = (height // 2, width // 2)
    old = torch.tensor(
        [
            [middle[0] + half, middle[1] + half, 1],
            [middle[0] + half, middle[1] - half, 1],
            [middle[0] - half, middle[1] - half, 1],
        ],
        dtype=torch.float32,
        device=move_B6.device,
    )
    new_B33 = torch.cat([move_B6.view(-1, 3, 2), torch.zeros_like(move_B6[:, :3, None])], 2) + old
    # new = old @ map, so the pixel at a new place comes from new @ inverse.
    back_B32 = torch.linalg.solve(new_B33, old.expand_as(new_B33))[..., :2]
    pixels = _pixel_places(height, width, move_B6.device).view(-1, 2)
    return (pixels @ back_B32[:, :2] + back_B32[:, 2:]).view(-1, height, width, 2)


@lru_cache(maxsize=8)
def _pixel_places(height: int, width: int, device: torch.device) -> Tensor:
    """[H,W,2] fp32: x and y of each pixel."""
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([column, row], -1).float().to(device)


def _sampled(
    planes_BCHW: Tensor, place_BHW2: Tensor, height: int, width: int, *, is_mirrored: bool
) -> Tensor:
    """Values at places in px, linear between pixels; edges mirrored with or without their pixel."""
    size = place_BHW2.new_tensor([width, height])
    if is_mirrored:
        place = place_BHW2 * (2 / (size - 1)) - 1
    else:
        place = (place_BHW2 + 0.5) * (2 / size) - 1
    return F.grid_sample(planes_BCHW, place, padding_mode="reflection", align_corners=is_mirrored)
