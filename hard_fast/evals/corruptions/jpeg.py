"""What a JPEG loses, without its file: the entropy coding between is exact.

Letters: B images, C channels, H rows, W columns, P planes.
"""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

# ITU-T T.81, tables K.1 and K.2: the steps of brightness and of colour at quality 50.
_LUMA_STEPS = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA_STEPS = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)


_BELOW_HALF = 0.5 - 2**-16


def through_jpeg(planes_BCHW: Tensor, quality: int) -> Tensor:
    """The planes as a JPEG of this quality brings them back, whole numbers in [0,255].

    Args:    planes_BCHW: fp32, whole numbers in [0,255]; RGB, or one channel of grey.

    Source:  ITU-T T.81 and JFIF 1.02 with what libjpeg does, and so Pillow: colour at half the
             resolution, rounded after each stage, magnified by a triangle filter. The DCT is not
             libjpeg's of whole numbers, so a frequency between two steps may go the other way.
    """
    height, width = planes_BCHW.shape[-2:]
    if planes_BCHW.shape[1] == 1:
        grey = _coded(_extended(planes_BCHW, 8, 8) - 128, quality, _LUMA_STEPS)
        return grey[..., :height, :width].add_(128).clamp_(0, 255)
    red, green, blue = _extended(planes_BCHW, 2, 16).unbind(1)
    luma = (0.299 * red).add_(green, alpha=0.587).add_(blue, alpha=0.114).add_(0.5).floor_()
    # Differences of colour without the 128 that a file adds.
    blueness = (-0.168735892 * red).add_(green, alpha=-0.331264108).add_(blue, alpha=0.5)
    redness = (0.5 * red).add_(green, alpha=-0.418687589).add_(blue, alpha=-0.081312411)
    chroma = _halved(torch.stack([blueness, redness], 1).add_(_BELOW_HALF).floor_())
    # Columns are repeated before colours are halved, rows after.
    luma, chroma = _extended(luma.sub_(128)[:, None], 8, 8)[:, 0], _extended(chroma, 8, 8)
    luma = _coded(luma, quality, _LUMA_STEPS).add_(128).clamp_(0, 255)
    chroma = _coded(chroma, quality, _CHROMA_STEPS).clamp_(-128, 127)
    chroma = chroma[..., : (height + 1) // 2, : (width + 1) // 2]
    # Three parts of the nearer and one of the farther, in rows and in columns: sixteenths.
    tall = _doubled(chroma.mT).mT
    bias = torch.tensor([8.0, 7.0], device=tall.device).repeat(tall.shape[-1])
    chroma = _doubled(tall).add_(bias).mul_(1 / 16).floor_()[..., :height, :width]
    luma = luma[..., :height, :width]
    blueness, redness = chroma.unbind(1)
    tint = (-0.344136286 * blueness).add_(redness, alpha=-0.714136286).add_(0.5).floor_()
    red = (1.402 * redness).add_(0.5).floor_().add_(luma)
    blue = (1.772 * blueness).add_(0.5).floor_().add_(luma)
    return torch.stack([red, tint.add_(luma), blue], 1).clamp_(0, 255)


def _coded(planes_PHW: Tensor, quality: int, steps: tuple[tuple[int, ...], ...]) -> Tensor:
    """Each block of 8x8 to whole multiples of the steps in frequencies and back, rounded."""
    shape = planes_PHW.shape
    forth, step_8W = _transform(quality, steps, shape[-1], planes_PHW.device)
    # Rows of 8 pixels, then 8 rows of all columns.
    found = (planes_PHW.reshape(-1, 8) @ forth.mT).view(-1, 8, shape[-1])
    # libjpeg's frequencies are whole eighths, so that many lie between two steps: away from 0.
    found = (forth @ found).mul_(8).round_().div_(8 * step_8W)
    found = torch.copysign(found.abs().add_(0.5).floor_(), found).mul_(step_8W)
    found = (forth.mT @ found).view(-1, 8) @ forth
    return found.view(shape).add_(0.5).floor_()


@lru_cache(maxsize=16)
def _transform(
    quality: int, steps: tuple[tuple[int, ...], ...], width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """[8,8] the orthonormal DCT and [8,width] the steps of each frequency."""
    place = torch.arange(8, dtype=torch.float64)
    forth = 0.5 * torch.cos(place[:, None] * (2 * place + 1) * (math.pi / 16))
    forth[0] /= math.sqrt(2)
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    table = ((torch.tensor(steps) * scale + 50) // 100).clamp_(1, 255)
    return forth.float().to(device), table.float().repeat(1, width // 8).to(device)


def _extended(planes_BCHW: Tensor, rows: int, columns: int) -> Tensor:
    """The planes with their last rows and columns repeated up to multiples of these."""
    height, width = planes_BCHW.shape[-2:]
    down, right = -height % rows, -width % columns
    if down == right == 0:
        return planes_BCHW
    return F.pad(planes_BCHW, (0, right, 0, down), mode="replicate")


def _halved(planes_BCHW: Tensor) -> Tensor:
    """The mean of each 2x2; halves go down in even columns and up in odd ones, as quarters do."""
    rows = planes_BCHW[..., ::2, :] + planes_BCHW[..., 1::2, :]
    total = rows[..., ::2] + rows[..., 1::2]
    bias = torch.tensor([1.0, 2.0], device=total.device).repeat(total.shape[-1] // 2)
    return total.add_(bias).mul_(0.25).floor_()


def _doubled(planes_BCHW: Tensor) -> Tensor:
    """Twice as many columns: three times the nearer old one and once the farther."""
    wide = torch.cat([planes_BCHW[..., :1], planes_BCHW, planes_BCHW[..., -1:]], -1)
    three = 3 * planes_BCHW
    found = torch.empty(*planes_BCHW.shape, 2, device=planes_BCHW.device)
    torch.add(three, wide[..., :-2], out=found[..., 0])
    torch.add(three, wide[..., 2:], out=found[..., 1])
    return found.flatten(-2)
