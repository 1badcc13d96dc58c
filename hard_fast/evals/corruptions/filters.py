"""Linear filters of planes as products with small matrices, which hold the edges' handling too.

Letters: B images, C channels, P planes (any leading shape), H rows, W columns.
"""

import math
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Edge = Literal["nearest", "reflect", "mirror"]
"""Beyond the last pixel: that pixel again; the image mirrored with it; mirrored without it."""


def to_planes(image_BCHW: Tensor) -> Tensor:
    """[B,C,H,W] fp32, contiguous, of uint8."""
    return image_BCHW.to(torch.float32, memory_format=torch.contiguous_format)


def gaussian_taps(sigma: float, radius: int) -> Tensor:
    """[2*radius+1] fp64: samples of a Gaussian that sum to 1."""
    place = torch.arange(-radius, radius + 1, dtype=torch.float64)
    taps = torch.exp(-0.5 * (place / sigma) ** 2)
    return taps / taps.sum()


def folded(index: Tensor, size: int, edge: Edge) -> Tensor:
    """The pixels that places beyond an image's edges stand for, int64 in [0,size)."""
    if edge == "nearest" or size == 1:
        return index.clamp(0, size - 1)
    period = 2 * size if edge == "reflect" else 2 * size - 2
    index = index.remainder(period)
    return torch.minimum(index, period - (edge == "reflect") - index)


def filter_matrix(taps: Tensor, size: int, edge: Edge) -> Tensor:
    """[size,size] fp64: the matrix whose product with a column correlates it with the taps."""
    radius = len(taps) // 2
    row = torch.arange(size)[:, None]
    column = folded(row + torch.arange(-radius, radius + 1), size, edge)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    return matrix.index_put_((row.expand_as(column), column), taps.expand_as(column), True)


@lru_cache(maxsize=64)
def gaussian_matrix(
    size: int, sigma: float, edge: Edge, truncate: float, device: torch.device
) -> Tensor:
    """[size,size] fp32: a Gaussian blur along one axis, cut off where SciPy cuts it off."""
    radius = int(truncate * sigma + 0.5)
    return filter_matrix(gaussian_taps(sigma, radius), size, edge).float().to(device)


def gaussian_blur(
    planes_PHW: Tensor, sigma: float, *, edge: Edge = "nearest", truncate: float = 4.0
) -> Tensor:
    """The planes blurred along both axes, as scipy.ndimage.gaussian_filter does it."""
    if int(truncate * sigma + 0.5) == 0:
        return planes_PHW
    height, width = planes_PHW.shape[-2:]
    rows = gaussian_matrix(height, sigma, edge, truncate, planes_PHW.device)
    columns = gaussian_matrix(width, sigma, edge, truncate, planes_PHW.device)
    return separable(planes_PHW, rows, columns)


def separable(planes_PHW: Tensor, rows_HH: Tensor, columns_WW: Tensor) -> Tensor:
    """The planes filtered along columns by one matrix and along rows by the other."""
    # As one product: broadcasting a matrix on the right takes seven times as long.
    across = planes_PHW.flatten(0, -2) @ columns_WW.mT
    return rows_HH @ across.view(*planes_PHW.shape[:-1], len(columns_WW))


def box_blur(planes_PHW: Tensor) -> Tensor:
    """The mean of the 3x3 around each pixel; the edges mirrored without their last pixel."""
    height, width = planes_PHW.shape[-2:]
    rows, columns = (_box_matrix(size, planes_PHW.device) for size in (height, width))
    return separable(planes_PHW, rows, columns)


@lru_cache(maxsize=8)
def _box_matrix(size: int, device: torch.device) -> Tensor:
    return (
        filter_matrix(torch.full((3,), 1 / 3, dtype=torch.float64), size, "mirror")
        .float()
        .to(device)
    )


def pad(planes_BCHW: Tensor, num: int, edge: Edge) -> Tensor:
    """The planes with `num` pixels more on each side."""
    mode = {"nearest": "replicate", "mirror": "reflect"}[edge]
    return F.pad(planes_BCHW, (num,) * 4, mode=mode)


@lru_cache(maxsize=256)
def zoom_matrix(size: int, factor: float, device: torch.device) -> Tensor:
    """[size,size] fp32: the middle of a row magnified to the row's size, linear between pixels.

    Source:  clipped_zoom of make_imagenet_c.py, which is for squares: here each side has its own
             crop. Its scipy.ndimage.zoom puts first on first and last on last pixel.
    """
    crop = math.ceil(size / factor)
    new = round(crop * factor)
    place = torch.arange(size, dtype=torch.float64) + (new - size) // 2
    place = place * ((crop - 1) / max(1, new - 1))
    below = place.floor().clamp_(max=max(0, crop - 2)).long()
    share = place - below
    first = below + (size - crop) // 2
    matrix = torch.zeros(size, size, dtype=torch.float64)
    row = torch.arange(size)
    matrix[row, first] = 1 - share
    if crop > 1:
        matrix[row, first + 1] = share
    return matrix.float().to(device)


def zoomed(planes_PHW: Tensor, factor: float) -> Tensor:
    """The middle of the planes magnified to their own size."""
    rows, columns = (zoom_matrix(n, factor, planes_PHW.device) for n in planes_PHW.shape[-2:])
    return separable(planes_PHW, rows, columns)
