"""Blurs: out of focus, through glass, in motion, zooming and Gaussian.

Letters: B images, C channels, H rows, W columns, N pixels, G groups.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from hard_fast.evals.corruptions.draws import Draws
from hard_fast.evals.corruptions.filters import (
    filter_matrix,
    gaussian_blur,
    gaussian_taps,
    pad,
    separable,
    to_planes,
    zoom_matrix,
)

_MANY_PX = 64
# 2**5 steps from one pixel to the next; a sixth round would change one pixel in 10**12.
_CHAIN_ROUNDS = 5
_LEAST_TAP = 2e-4
_FAST_SIZES = sorted(
    2**i * 3**j * 5**k for i in range(2, 13) for j in range(4) for k in range(3) if i + j + k < 14
)


def blur(image_BCHW: Tensor, sigma: float, draws: Draws) -> Tensor:
    """Blurred with a Gaussian of this sigma; fp32 in [0,255]."""
    return gaussian_blur(to_planes(image_BCHW), sigma)


def defocus_blur(image_BCHW: Tensor, shape: tuple[float, float], draws: Draws) -> Tensor:
    """Each pixel spread over a disk, itself a little blurred; fp32 in [0,255].

    Args:    shape: the disk's radius and the sigma of its blur, px.
    """
    planes = to_planes(image_BCHW)
    height, width = planes.shape[-2:]
    if max(height, width) <= _MANY_PX:
        terms = _disk_terms(*shape, height, width, planes.device)
        return sum(separable(planes, rows, columns) for rows, columns in terms)
    radius = max(8, int(shape[0]))
    wide = pad(planes, radius, "mirror")
    # What wraps around stays within the padding. Other sizes can take five times as long.
    size = [next(n for n in _FAST_SIZES if n >= side) for side in wide.shape[-2:]]
    spectrum = torch.fft.rfft2(wide, s=size) * _disk_spectrum(*shape, *size, planes.device)
    found = torch.fft.irfft2(spectrum, s=size)
    return found[..., radius : radius + height, radius : radius + width]


def disk(radius: float, alias_sigma: float) -> Tensor:
    """[K,K] fp64: a disk that sums to 1, blurred with 3x3 taps, or 5x5 for a radius above 8."""
    reach = max(8, int(radius))
    place = torch.arange(-reach, reach + 1, dtype=torch.float64)
    found = (place[:, None] ** 2 + place**2 <= radius**2).double()
    taps = gaussian_taps(alias_sigma, 1 if radius <= 8 else 2)
    matrix = filter_matrix(taps, len(place), "mirror")
    return matrix @ (found / found.sum()) @ matrix.mT


@lru_cache(maxsize=16)
def _disk_terms(
    radius: float, alias_sigma: float, height: int, width: int, device: torch.device
) -> list[tuple[Tensor, Tensor]]:
    """The disk as a sum of separable filters: matrices for rows and for columns."""
    left, size, right = torch.linalg.svd(disk(radius, alias_sigma))
    return [
        (
            (filter_matrix(left[:, i] * size[i], height, "mirror")).float().to(device),
            filter_matrix(right[i], width, "mirror").float().to(device),
        )
        for i in range(int((size > 1e-5 * size[0]).sum()))
    ]


@lru_cache(maxsize=16)
def _disk_spectrum(
    radius: float, alias_sigma: float, height: int, width: int, device: torch.device
) -> Tensor:
    kernel = disk(radius, alias_sigma)
    wide = torch.zeros(height, width, dtype=torch.float64)
    wide[: len(kernel), : len(kernel)] = kernel
    reach = len(kernel) // 2
    return torch.fft.rfft2(wide.roll((-reach, -reach), (0, 1))).real.float().to(device)


def glass_blur(image_BCHW: Tensor, shape: tuple[float, int, int], draws: Draws) -> Tensor:
    """Blurred, each pixel replaced by one nearby, blurred again; fp32 in [0,255].

    Args:    shape: sigma, reach in px, rounds.

    Source:  make_imagenet_c.py, as it runs: its swap of two views of an array copies the second
             pixel to the first and leaves the second, one pixel after the other from the last to
             the first. Here the same copies are followed for all pixels at once.
    """
    sigma, reach, num_rounds = shape
    sharp = gaussian_blur(to_planes(image_BCHW), sigma).to(torch.uint8)
    num, channels, height, width = sharp.shape
    source = None
    for _ in range(num_rounds):
        moved = _copied_from(draws, reach, height, width)
        source = moved if source is None else source.index_select(0, moved)
    values = sharp.permute(1, 0, 2, 3).reshape(channels, -1)
    values = torch.stack([plane.index_select(0, source) for plane in values])
    shuffled = values.view(channels, num, height, width).transpose(0, 1).float()
    return gaussian_blur(shuffled, sigma)


def _copied_from(draws: Draws, reach: int, height: int, width: int) -> Tensor:
    """[B*H*W] int32: the place in the batch whose value each pixel has after one round."""
    field_BN = draws.uniform_field(height * width)
    num_choices = (2 * reach) ** 2
    choice = field_BN.mul_(num_choices).int()
    num = len(choice)
    inner, step_K = _glass_tables(reach, height, width, choice.device)
    step_BN = step_K.index_select(0, choice.view(-1)).view_as(choice).mul_(inner)
    pixel = torch.arange(num * height * width, dtype=torch.int32, device=choice.device)
    target = pixel + step_BN.view(-1)
    if reach == 1:
        # No step leads on, to a pixel already replaced.
        return target
    later_BN = (step_BN > 0) & inner.bool().view(-1)[
        (target.view_as(choice) - pixel.view_as(choice)[:, :1]).long()
    ]
    ahead = torch.where(later_BN.view(-1), target, pixel)
    for _ in range(_CHAIN_ROUNDS):
        ahead = ahead.index_select(0, ahead)
    return target.index_select(0, ahead)


@lru_cache(maxsize=16)
def _glass_tables(reach: int, height: int, width: int, device: torch.device):
    """[N] int32: 1 where pixels are replaced; [K] int32: how far each choice leads."""
    row, column = torch.arange(height)[:, None], torch.arange(width)
    is_row, is_column = (
        (place > reach) & (place <= side - reach)
        for place, side in ((row, height), (column, width))
    )
    step = torch.arange(-reach, reach)
    steps = (step[:, None] * width + step).view(-1)
    return (is_row & is_column).view(-1).int().to(device), steps.int().to(device)


def motion_blur(image_BCHW: Tensor, shape: tuple[int, float], draws: Draws) -> Tensor:
    """Blurred along a line within 45 degrees of the rows; fp32, whole numbers in [0,255].

    Args:    shape: radius and sigma, px.
    """
    angle_deg_B = draws.whole(1, 91)[:, 0] - 45
    return (
        streaked(image_BCHW.permute(0, 2, 3, 1), *shape, angle_deg_B).permute(0, 3, 1, 2).round_()
    )


def streaked(image_BHWC: Tensor, radius: int, sigma: float, angle_deg_B: Tensor) -> Tensor:
    """[B,H,W,C] fp32: each pixel a weighted mean of itself and of those on a line from it.

    Args:    angle_deg_B: [B] int64. Whole degrees, so that many images share one line.

    Source:  ImageMagick 7 MagickCore/effect.c, MotionBlurImage: half a Gaussian over whole pixels
             along the line, edges repeated. Taps that add less than 0.05 levels are left out.
    """
    num, height, width, channels = image_BHWC.shape
    taps = gaussian_taps(sigma, 2 * radius)[2 * radius :]
    taps = taps / taps.sum()
    taps = taps[: int((taps.flip(0).cumsum(0) > _LEAST_TAP).sum())]
    taps = (taps / taps.sum()).tolist()
    angles_deg, count = (t.tolist() for t in torch.unique(angle_deg_B.cpu(), return_counts=True))
    lines = [line(angle_deg, len(taps)) for angle_deg in angles_deg]
    order_B = angle_deg_B.argsort()
    wide, top, left = _extended(image_BHWC.index_select(0, order_B).float(), lines)
    found = torch.empty(num, height, width * channels, device=wide.device)
    first = 0
    for offsets, total in zip(lines, found.split(count), strict=True):
        for i, (tap, (down, right)) in enumerate(zip(taps, offsets, strict=True)):
            start = ((first * wide.shape[1] + top + down) * wide.shape[2] + left + right) * channels
            # Three slices take longer than the sum of small images.
            shifted = wide.as_strided(
                total.shape, (wide.stride(0), wide.stride(1), 1), wide.storage_offset() + start
            )
            torch.mul(shifted, tap, out=total) if i == 0 else total.add_(shifted, alpha=tap)
        first += len(total)
    return found.view(num, height, width, channels).index_select(0, order_B.argsort())


def line(angle_deg: float, num: int) -> list[tuple[int, int]]:
    """The pixels of a line from (0, 0), as (down, right)."""
    angle = math.radians(angle_deg)
    return [
        (math.ceil(i * math.sin(angle) - 0.5), math.ceil(i * math.cos(angle) - 0.5))
        for i in range(num)
    ]


def _extended(image_BHWC: Tensor, lines: list[list[tuple[int, int]]]) -> tuple[Tensor, int, int]:
    """The images with their edges repeated as far as the lines go, contiguous; rows and columns
    added before the first."""
    added = []
    for dim in (0, 1):
        steps = [offset[dim] for offsets in lines for offset in offsets]
        added.append((-min(steps), max(steps)))
        axis, size = dim + 1, image_BHWC.shape[dim + 1]
        first, last = (image_BHWC.narrow(axis, place, 1) for place in (0, size - 1))
        repeated = [
            edge.expand(*edge.shape[:axis], num, *edge.shape[axis + 1 :])
            for edge, num in zip((first, last), added[dim], strict=True)
        ]
        image_BHWC = torch.cat([repeated[0], image_BHWC, repeated[1]], axis)
    return image_BHWC, added[0][0], added[1][0]


def zoom_blur(image_BCHW: Tensor, shape: tuple[int, float], draws: Draws) -> Tensor:
    """The mean of the image and of its middle at several zooms; fp32 in [0,255].

    Args:    shape: how many zooms, the first being 1, and the step between them.
    """
    num, step = shape
    planes = to_planes(image_BCHW).flatten(0, 1)
    total = 2 * planes
    for i in range(1, num):
        sides = planes.shape[1:]
        factor = 1 + i * ((1 + step) - 1)
        rows, columns = (zoom_matrix(side, factor, planes.device) for side in sides)
        across = (planes.view(-1, sides[1]) @ columns.mT).view_as(planes)
        total.baddbmm_(rows.expand(len(planes), -1, -1), across)
    return total.div_(num + 1).view(image_BCHW.shape)
