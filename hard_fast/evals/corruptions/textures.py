"""Frozen windows, made: needles of ice over clouds of frost.

Those of ImageNet-C are photos found on the web, whose licence nobody states. These have a like
spread of brightness and colour, and a Gaussian blur of 1, 8 and 64 px leaves as much of their
standard deviation: 0.87, 0.75 and 0.5.

Letters: T textures, H rows, W columns.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from hard_fast.evals.corruptions.strengths import is_small
from hard_fast.runtime.seed import derive_seed

_SIZE_PX = 640
_SHRINK = 5
_NUM_ANGLES = 6
# Mean of red, green and blue, and the std of their sum's third: dark panes and white ones.
_TONES = (
    ((80, 148, 165), 18),
    ((200, 205, 214), 22),
    ((138, 152, 165), 28),
    ((112, 123, 135), 43),
    ((170, 184, 200), 30),
)


def frost_textures(height: int, width: int, device: torch.device) -> Tensor:
    """[T,H,W,3] uint8, larger than images of this size; a fifth as fine for small ones."""
    small = is_small(height, width)
    needed = max(height, width) * (_SHRINK if small else 1) * 2
    return _made(max(_SIZE_PX, needed), small, device)


@lru_cache(maxsize=4)
def _made(size: int, is_shrunk: bool, device: torch.device) -> Tensor:
    found = torch.stack([_window(i, size, *tone) for i, tone in enumerate(_TONES)])
    if is_shrunk:
        # The middle of each 5x5, which is what a resize without smoothing takes.
        found = found[:, _SHRINK // 2 :: _SHRINK, _SHRINK // 2 :: _SHRINK]
    return found.contiguous().to(device)


def _window(number: int, size: int, mean: tuple[int, int, int], std: float) -> Tensor:
    """[size,size,3] uint8: one texture, periodic in both directions."""
    generator = torch.Generator().manual_seed(derive_seed(number, "frost"))

    def noise() -> Tensor:
        return torch.fft.rfft2(torch.randn(size, size, generator=generator))

    row = torch.fft.fftfreq(size)[:, None]
    column = torch.fft.rfftfreq(size)[None]
    distance = (row**2 + column**2).sqrt().clamp(min=1 / _SIZE_PX)
    cloud = _standard(noise() * distance**-1.9, size)
    needles = []
    for i in range(_NUM_ANGLES):
        angle = math.pi * (i + 0.5) / _NUM_ANGLES
        along = row * math.sin(angle) + column * math.cos(angle)
        across = row * math.cos(angle) - column * math.sin(angle)
        # Forms 24 px long and 1 px wide.
        window = torch.exp(-0.5 * (2 * math.pi) ** 2 * ((24 * along) ** 2 + across**2))
        needles.append(_standard(noise() * window, size))
    ice = torch.stack(needles).amax(0)
    grain = torch.randn(size, size, generator=generator)
    # Ice grows where the frost is thick.
    field = cloud + 1.15 * (ice - ice.mean()) * (1 + 0.5 * cloud) + 0.42 * grain
    field = (field - field.mean()) / field.std()
    return torch.stack([level + std * field for level in mean], -1).clamp_(0, 255).to(torch.uint8)


def _standard(spectrum: Tensor, size: int) -> Tensor:
    spectrum[0, 0] = 0
    field = torch.fft.irfft2(spectrum, s=(size, size))
    return field / field.std()
