"""Noise of single values: Gaussian, shot, impulse and speckle.

Letters: B images, C channels, H rows, W columns, N numbers. Images are [B,H,W,C] here: values in
the order in which they lie in memory.
"""

import math
from functools import lru_cache, partial

import torch
from torch import Tensor

from hard_fast.evals.corruptions.draws import Draws, normal_table, uniform_table

_SHOT_BITS = 14


def gaussian_noise(image_BHWC: Tensor, std: float, draws: Draws) -> Tensor:
    """Normal noise of this std (of white) added; int16 in [0,255]."""
    return _added(image_BHWC, draws.window(partial(_gaussian_table, std), *image_BHWC.shape[1:]))


def impulse_noise(image_BHWC: Tensor, share: float, draws: Draws) -> Tensor:
    """This share of the values made black or white, as often the one as the other; int16."""
    return _added(image_BHWC, draws.window(partial(_impulse_table, share), *image_BHWC.shape[1:]))


def speckle_noise(image_BHWC: Tensor, std: float, draws: Draws) -> Tensor:
    """Normal noise of this std times the value added; fp32 in [0,255]."""
    factor = draws.window(partial(_speckle_table, std), *image_BHWC.shape[1:])
    return factor.mul_(image_BHWC.float()).clamp_(0, 255)


def shot_noise(image_BHWC: Tensor, photons: int, draws: Draws) -> Tensor:
    """Poisson counts, white being `photons` on average; uint8.

    A pixel has one of 256 values, so a table of quantiles for each replaces the drawing: 2**14 of
    them, the middles of equal shares.
    """
    table = _shot_table(photons, image_BHWC.device)
    place = draws.window(_place_table, *image_BHWC.shape[1:])
    place.add_(image_BHWC.int(), alpha=2**_SHOT_BITS)
    return table.index_select(0, place.view(-1)).view_as(image_BHWC)


def _added(image_BHWC: Tensor, noise_BHWC: Tensor) -> Tensor:
    return noise_BHWC.add_(image_BHWC).clamp_(0, 255)


@lru_cache(maxsize=2)
def _gaussian_table(std: float, num: int, device: torch.device) -> Tensor:
    """[num] int16: added to a whole level, the floor of noise is the floor of the sum."""
    return normal_table(num, device).mul(255 * std).floor_().to(torch.int16)


@lru_cache(maxsize=2)
def _impulse_table(share: float, num: int, device: torch.device) -> Tensor:
    """[num] int16: 255, -255 or 0, so that clamping the sum leaves white, black or the value."""
    place = uniform_table(num, device)
    return 255 * (2 * (place < share / 2).to(torch.int16) - (place < share).to(torch.int16))


@lru_cache(maxsize=2)
def _speckle_table(std: float, num: int, device: torch.device) -> Tensor:
    return normal_table(num, device).mul(std).add_(1)


@lru_cache(maxsize=2)
def _place_table(num: int, device: torch.device) -> Tensor:
    return uniform_table(num, device).mul(2**_SHOT_BITS).int()


@lru_cache(maxsize=4)
def _shot_table(photons: int, device: torch.device) -> Tensor:
    """[256 * 2**14] uint8: for each value of a pixel, what quantiles of its counts make of it."""
    mean_V = torch.arange(256, dtype=torch.float64) / 255 * photons
    count = torch.arange(photons + int(10 * math.sqrt(photons)) + 10, dtype=torch.float64)
    chance = torch.xlogy(count, mean_V[:, None]) - mean_V[:, None] - torch.lgamma(count + 1)
    total = chance.exp().cumsum(1)
    place = (torch.arange(2**_SHOT_BITS, dtype=torch.float64) + 0.5) / 2**_SHOT_BITS
    found = torch.searchsorted(total, place.repeat(256, 1)).double()
    return (found / photons * 255).clamp(0, 255).to(torch.uint8).view(-1).to(device)
