"""A spattered lens: drops of water, or mud.

Letters: B images, C channels, H rows, W columns, L levels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hard_fast.evals.corruptions.draws import Draws
from hard_fast.evals.corruptions.filters import box_blur, gaussian_blur, pad, to_planes

_WATER = (175, 238, 238)
_MUD = (63, 42, 20)
_LUMA = (0.299, 0.587, 0.114)
_FARTHEST_PX = 20
_EDGE_ROUNDS = 8
_WEAK, _STRONG = 50, 150
_TAN_22_DEG = 0.41421356
_RELIEF = ((-2, -1, 0), (-1, 1, 1), (0, 1, 2))


def spatter(image_BCHW: Tensor, shape: tuple[float, ...], draws: Draws) -> Tensor:
    """Covered with drops; fp32 in [0,255].

    Args:    shape: mean and std of the liquid's field, its sigma in px, the threshold below which
             there is none, the water's strength or the sigma of the mud's edge in px, is it mud.
    """
    mean, std, sigma, least, amount, is_mud = shape
    planes = to_planes(image_BCHW)
    field = draws.normal_field(*planes.shape[-2:]).mul_(std).add_(mean)
    liquid = gaussian_blur(field, sigma)
    if is_mud:
        mask = gaussian_blur((liquid > least).float(), amount)
        mask = torch.where(mask < 0.8, 0, mask)[:, None]
        return planes.mul_(1 - mask).add_(mask * _colour(_MUD, planes))
    levels = torch.where(liquid < least, 0, liquid).mul_(255).to(torch.uint8)
    depth = levels * _relief(distances(edges(levels)))
    depth = depth / depth.amax((1, 2), keepdim=True).clamp(min=1e-9) * amount
    return planes.add_(depth[:, None] * _colour(_WATER, planes)).clamp_(0, 255)


def edges(levels_BHW: Tensor) -> Tensor:
    """[B,H,W] bool: edges of uint8 planes, as Canny finds them with thresholds 50 and 150.

    Source:  Canny 1986, with Sobel's differences and the sum of their sizes, as in OpenCV.
    """
    wide = pad(levels_BHW[:, None].float(), 1, "nearest")[:, 0]
    up, here, down = wide[:, :-2], wide[:, 1:-1], wide[:, 2:]
    smooth = up + 2 * here + down
    right = smooth[..., 2:] - smooth[..., :-2]
    drop = down - up
    drop = drop[..., :-2] + 2 * drop[..., 1:-1] + drop[..., 2:]
    size = right.abs() + drop.abs()
    around = F.pad(size, (1, 1, 1, 1))

    def neighbour(rows: int, columns: int) -> Tensor:
        height, width = size.shape[-2:]
        return around[:, 1 + rows : 1 + rows + height, 1 + columns : 1 + columns + width]

    is_flat = drop.abs() < right.abs() * _TAN_22_DEG
    is_steep = drop.abs() > right.abs() / _TAN_22_DEG
    level = (size > neighbour(0, -1)) & (size >= neighbour(0, 1))
    upright = (size > neighbour(-1, 0)) & (size >= neighbour(1, 0))
    falling = (size > neighbour(-1, -1)) & (size > neighbour(1, 1))
    rising = (size > neighbour(-1, 1)) & (size > neighbour(1, -1))
    slanted = torch.where(right * drop < 0, rising, falling)
    is_peak = torch.where(is_flat, level, torch.where(is_steep, upright, slanted))
    weak = is_peak & (size > _WEAK)
    found = is_peak & (size > _STRONG)
    # From strong edges along weak ones; few are longer than this many pixels.
    for _ in range(_EDGE_ROUNDS):
        found = _spread(_spread(found).mT).mT & weak
    return found


def _spread(is_on_BHW: Tensor) -> Tensor:
    """True where a pixel, the one above or the one below is."""
    found = is_on_BHW.clone()
    found[:, 1:] |= is_on_BHW[:, :-1]
    found[:, :-1] |= is_on_BHW[:, 1:]
    return found


def distances(is_edge_BHW: Tensor) -> Tensor:
    """[B,H,W] fp32: px to the nearest edge, at most 20.

    OpenCV's are those of steps of 1, 1.4 and 2.2 px, up to 2 % away from these.
    """
    far = float(_FARTHEST_PX)
    column = torch.where(is_edge_BHW, 0.0, far)
    height, width = column.shape[-2:]
    # Columns first. Steps of 1, 2, 4, 8 and 16 make up every distance below 32.
    for step in (step for step in (1, 2, 4, 8, 16) if step < height):
        nearer = column + step
        torch.minimum(column[:, step:], nearer[:, :-step], out=column[:, step:])
        torch.minimum(column[:, :-step], nearer[:, step:], out=column[:, :-step])
    squares = column.square_()
    found = squares.clone()
    for step in range(1, min(_FARTHEST_PX, width)):
        farther = squares + step**2
        for to, of in ((slice(step, None), slice(-step)), (slice(-step), slice(step, None))):
            torch.minimum(found[..., to], farther[..., of], out=found[..., to])
    return found.sqrt_().clamp_(max=far)


def _relief(distance_BHW: Tensor) -> Tensor:
    """[B,H,W] fp32: the distances smoothed, spread over all levels and lit from one side."""
    levels = equalized(box_blur(distance_BHW).add_(0.01).long())
    wide = pad(levels[:, None], 1, "mirror")
    kernel = torch.tensor(_RELIEF, dtype=torch.float32, device=wide.device)
    lit = F.conv2d(wide, kernel[None, None])[:, 0].clamp_(0, 255)
    return box_blur(lit)


def equalized(level_BHW: Tensor) -> Tensor:
    """[B,H,W] fp32: levels (int64, 0 to 255) changed so that each is as frequent as any."""
    num = level_BHW[0].numel()
    flat = level_BHW.flatten(1)
    count_BL = torch.zeros(len(flat), 256, device=flat.device)
    count_BL.scatter_add_(1, flat, torch.ones(1, device=flat.device).expand(flat.shape))
    total = count_BL.cumsum(1)
    # All pixels of the lowest level become 0.
    lowest = count_BL.gather(1, flat.amin(1, keepdim=True))
    table = ((total - lowest) * (255 / (num - lowest).clamp(min=1))).clamp_(min=0).round_()
    table = torch.where(lowest == num, torch.arange(256.0, device=flat.device), table)
    return table.gather(1, flat).view(level_BHW.shape)


def _colour(colour: tuple[int, int, int], planes_BCHW: Tensor) -> Tensor:
    """[C,1,1] fp32; its grey for planes of one channel."""
    if planes_BCHW.shape[1] == 1:
        colour = (sum(part * share for part, share in zip(colour, _LUMA, strict=True)),)
    return torch.tensor(colour, dtype=torch.float32, device=planes_BCHW.device)[:, None, None]
