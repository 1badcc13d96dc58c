"""Weather: snow, frost, fog, and a spattered lens.

Letters: B images, C channels, H rows, W columns, L levels.
"""

import math

import torch
from torch import Tensor

from hard_fast.evals.corruptions.blurs import streaked
from hard_fast.evals.corruptions.draws import Draws
from hard_fast.evals.corruptions.filters import to_planes, zoomed
from hard_fast.evals.corruptions.textures import frost_textures

_LUMA = (0.299, 0.587, 0.114)


def snow(image_BCHW: Tensor, shape: tuple[float, ...], draws: Draws) -> Tensor:
    """Whitened and covered with flakes that fall; fp32 in [0,255].

    Args:    shape: mean and std of the flakes' field, their zoom, the threshold below which there
             is none, radius and sigma of their motion, share of the image left as it was.
    """
    mean, std, zoom, least, radius, sigma, kept = shape
    planes = to_planes(image_BCHW)
    field = draws.normal_field(1, *planes.shape[-2:]).mul_(std).add_(mean)
    field = zoomed(field, zoom)
    flakes = torch.where(field < least, 0, field).clamp_(0, 1).mul_(255).floor_()
    angle_deg_B = draws.whole(1, 91)[:, 0] - 135
    flakes = streaked(flakes.permute(0, 2, 3, 1), radius, sigma, angle_deg_B).round_()
    flakes = flakes.view(-1, 1, *planes.shape[-2:])
    flakes = flakes + flakes.flip(-2, -1)
    white = torch.maximum(planes, _grey(planes).mul_(1.5).add_(127.5))
    return planes.mul_(kept).add_(white, alpha=1 - kept).add_(flakes).clamp_(0, 255)


def fog(image_BCHW: Tensor, shape: tuple[float, float], draws: Draws) -> Tensor:
    """Mixed with a cloud; fp32 in [0,255].

    Args:    shape: the cloud's share and its decay from one scale to the next.
    """
    share, decay = shape
    planes = to_planes(image_BCHW)
    height, width = planes.shape[-2:]
    cloud = plasma(draws, 1 << max(5, (max(height, width) - 1).bit_length()), decay)
    brightest = planes.amax((1, 2, 3), keepdim=True)
    # In units of white, (x + share * cloud) * brightest / (brightest + share).
    planes.add_(cloud[:, None, :height, :width].mul_(255 * share))
    return planes.mul_(brightest / (brightest + 255 * share)).clamp_(0, 255)


def plasma(draws: Draws, size: int, decay: float) -> Tensor:
    """[B,size,size] fp32 in [0,1]: heights of the diamond-square algorithm on a torus.

    Args:    size: a power of two.
    """
    field = draws.uniform_field(size * size).mul_(2).sub_(1)
    num = len(field)
    grid = field.new_zeros(num, 1, 1)
    used, scale = 0, 1.0
    for _ in range(int(math.log2(size))):
        side = grid.shape[1]
        noise = field[:, used : used + 3 * side**2].view(num, 3, side, side) * scale
        used += 3 * side**2
        right = grid + grid.roll(-1, 2)
        square = torch.add(noise[:, 0], right + right.roll(-1, 1), alpha=0.25)
        top = right.add_(square).add_(square.roll(1, 1))
        left = grid + grid.roll(-1, 1)
        left.add_(square).add_(square.roll(1, 2))
        top = torch.add(noise[:, 1], top, alpha=0.25)
        left = torch.add(noise[:, 2], left, alpha=0.25)
        rows = torch.stack([torch.stack([grid, top], 3), torch.stack([left, square], 3)], 2)
        grid = rows.view(num, 2 * side, 2 * side)
        # The reference scales twice: the amplitude and the range of its uniform numbers.
        scale /= decay**2
    low = grid.amin((1, 2), keepdim=True)
    return (grid - low).div_(grid.amax((1, 2), keepdim=True) - low)


def frost(image_BCHW: Tensor, shape: tuple[float, float], draws: Draws) -> Tensor:
    """Mixed with a piece of a frozen window; fp32 in [0,255].

    Args:    shape: the shares of the image and of the window.
    """
    kept, share = shape
    image_BHWC = image_BCHW.permute(0, 2, 3, 1)
    num, height, width, channels = image_BHWC.shape
    textures_THWC = frost_textures(height, width, image_BCHW.device)
    which, rows, columns = textures_THWC.shape[:3]
    limits = (which, rows - height + 1, columns - width + 1)
    which_B, top_B, left_B = (draws.whole(1, below)[:, 0] for below in limits)
    # Every piece of a row as a row of its own, of which those of the windows are copied.
    start_B = (which_B * rows + top_B) * columns + left_B
    start_BH = start_B[:, None] + torch.arange(height, device=start_B.device) * columns
    pieces = textures_THWC.view(-1).unfold(0, width * 3, 3)
    ice = pieces.index_select(0, start_BH.view(-1)).view(num, height, width, 3).float()
    if channels == 1:
        ice = _grey(ice.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    found = image_BHWC.float().mul_(kept).add_(ice, alpha=share).clamp_(0, 255)
    return found.permute(0, 3, 1, 2)


def _grey(planes_BCHW: Tensor) -> Tensor:
    if planes_BCHW.shape[1] == 1:
        return planes_BCHW.clone()
    red, green, blue = (planes_BCHW[:, i : i + 1] for i in range(3))
    return (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])
