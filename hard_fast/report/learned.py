"""Figures of what an augmentor learned: warped outlines, noise by channel, winners of patches.

Letters: B images given, M = B / G images made of groups of G, C channels, H rows, W columns,
Hp x Wp patches, N outlines, K corners of an outline, D channels of a latent.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from hard_fast.report.canvas import (
    CHARACTER_PX,
    COLOURS,
    build_axes,
    build_figure,
    cut_short,
    fit_left,
    hex_code,
    scale_y,
    style,
    to_svg,
    write_labels,
)
from hard_fast.report.figures import to_tiles
from hard_fast.runtime.files import write_atomic

_MOST_GROUPS = 6
_TILES_PER_LINE = 10
_FRAME_PX = 5
_GAP_PX = 8
# A picture cannot follow the page's scheme: these stand out on light and on dark.
_MEMBER_COLOURS = [
    *(f"series{i}" for i in (0, 1, 2, 3, 4, 5)),
    "augmentor",
    "joint",
]
_OUTLINE_PX = 150
_OUTLINE_REACH = (1.25, 2.2)


class Profile(NamedTuple):
    """One line of a profile: a value for each channel, or for each block."""

    label: str
    values: np.ndarray


def write_patch_map(
    path: Path, original_BCHW: Tensor, made_MCHW: Tensor, weight_MGHpWp: Tensor
) -> None:
    """Write a PNG of which image of a group won each patch, for the first 6 groups at most.

    Each group is a row of tiles: its images in frames of their colours, the picture made of them,
    and that picture in grey, each patch in the colour of the image with the largest weight, fuller
    the further it is ahead of an equal share. Small groups stand side by side.

    Args:    original_BCHW: the images that were mixed, group after group; made_MCHW: of one size
             with them. Both C 1 or 3, float in [0,1] or uint8, on any device.
             weight_MGHpWp: what `PatchMix.weigh` gives.
    Raises:  ValueError if the shapes do not fit together, or these are not images.
    """
    shape = tuple(weight_MGHpWp.shape)
    fits = len(shape) == 4 and 0 not in shape and len(made_MCHW) == shape[0]
    if not fits or len(original_BCHW) != shape[0] * shape[1]:
        raise ValueError(
            f"patch map: weights of shape {shape} for {len(original_BCHW)} images and "
            f"{len(made_MCHW)} made of them; needs [M,G,Hp,Wp], M made images and M * G images"
        )
    num_groups, group = min(shape[0], _MOST_GROUPS), shape[1]
    if original_BCHW.shape[1:] != made_MCHW.shape[1:]:
        raise ValueError(
            f"patch map: images of shape {tuple(original_BCHW.shape)} cannot have made "
            f"{tuple(made_MCHW.shape)}"
        )
    original = to_tiles(original_BCHW[: num_groups * group])
    made = to_tiles(made_MCHW[:num_groups])
    weight = weight_MGHpWp[:num_groups].detach().float().cpu().numpy()
    strips = []
    for m in range(num_groups):
        members = original[m * group : (m + 1) * group]
        tiles = [_framed(tile, _member_colour(g)) for g, tile in enumerate(members)]
        tiles += [_framed(made[m]), _framed(_tint(made[m], weight[m]))]
        strips.append(_join(tiles, _GAP_PX, axis=1))
    per_line = max(1, _TILES_PER_LINE // (group + 2))
    lines = [
        _join(strips[i : i + per_line], 4 * _GAP_PX, axis=1) for i in range(0, num_groups, per_line)
    ]
    width = max(line.shape[1] for line in lines)
    lines = [np.pad(line, ((0, 0), (0, width - line.shape[1]), (0, 0))) for line in lines]
    buffer = io.BytesIO()
    Image.fromarray(_join(lines, 2 * _GAP_PX, axis=0)).save(buffer, format="png")
    write_atomic(path, buffer.getvalue())


def draw_outlines(name: str, mean_K2: np.ndarray, draws_NK2: np.ndarray, reach: float) -> str:
    """SVG of what a warp's frame takes from the picture: the picture dashed, draws faint, the mean.

    The first corner of picture and mean has a dot, so that turns and flips can be told apart.

    Args:    mean_K2, draws_NK2: corners in normalised coordinates, x then y; y points down.
             reach: the largest coordinate shown.
    """
    with style(name):
        figure = build_figure(_OUTLINE_PX, _OUTLINE_PX)
        axes = figure.add_axes((0, 0, 1, 1), xlim=(-reach, reach), ylim=(reach, -reach))
        axes.set_axis_off()
        muted, colour = hex_code("muted"), hex_code("augmentor")
        frame_K2 = np.array([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)])
        axes.plot(*_closed(frame_K2).T, color=muted, linewidth=1.2, dashes=(4, 3))
        for corners_K2 in draws_NK2:
            axes.plot(*_closed(corners_K2).T, color=colour, linewidth=0.9, alpha=0.3)
        axes.plot(*_closed(mean_K2).T, color=colour, linewidth=2.2)
        axes.plot(*frame_K2[0], "o", color=muted, markersize=4)
        axes.plot(*mean_K2[0], "o", color=colour, markersize=6)
        return to_svg(figure, name)


def find_reach(outlines: Sequence[np.ndarray]) -> float:
    """The largest coordinate to show, the same for all outlines, within 1.25 and 2.2."""
    low, high = _OUTLINE_REACH
    return min(max([low, *(1.05 * float(np.abs(corners).max()) for corners in outlines)]), high)


def draw_profiles(name: str, profiles: Sequence[Profile], counted: str) -> str:
    """SVG of a value per channel or block, a line for each moment: the later, the stronger.

    The first and the last are named at their right ends.

    Args:    counted: what the horizontal axis numbers, from 0.
    """
    shown = [one for one in profiles if np.isfinite(one.values).any()]
    ends = [shown[0], shown[-1]] if len(shown) > 1 else shown
    texts = [cut_short(one.label) for one in ends]
    labels = [(one.label, one.values[np.isfinite(one.values)][-1], "augmentor") for one in ends]
    right_px = max(14 + CHARACTER_PX * max(map(len, texts), default=0), 88)
    with style(name):
        figure, axes = build_axes(215, 46, right_px)
        for i, one in enumerate(shown):
            strength = (i + 1) / len(shown)
            axes.plot(
                one.values,
                "o-" if len(one.values) <= 40 else "-",
                color=hex_code("augmentor"),
                alpha=0.2 + 0.8 * strength,
                linewidth=1 + 0.9 * strength,
                markersize=3,
                clip_on=False,
            )
        num = max((len(one.values) for one in shown), default=2)
        axes.set_xlim(0, max(num - 1, 1))
        scale_y(axes, [value for one in shown for value in one.values], "auto")
        fit_left(axes, right_px)
        write_labels(axes, texts, labels, counted)
        return to_svg(figure, name)


def _closed(corners_K2: np.ndarray) -> np.ndarray:
    return np.concatenate([corners_K2, corners_K2[:1]])


def _member_colour(g: int) -> np.ndarray:
    """[3] uint8: the colour of a group's image g."""
    code = COLOURS[_MEMBER_COLOURS[g % len(_MEMBER_COLOURS)]][0]
    return np.array([int(code[i : i + 2], 16) for i in (1, 3, 5)], np.uint8)


def _tint(tile_HWC: np.ndarray, weight_GHpWp: np.ndarray) -> np.ndarray:
    """[H,W,3] uint8: the tile in grey, under the colours of the images that won its patches."""
    group, num_rows, num_columns = weight_GHpWp.shape
    weight_GHpWp = np.nan_to_num(weight_GHpWp)
    winner = weight_GHpWp.argmax(0)
    # 0 where all have the same share, 1 where one has the whole patch.
    lead = (weight_GHpWp.max(0) * group - 1) / max(group - 1, 1)
    alpha = 0.15 + 0.55 * lead.clip(0, 1)
    height, width = tile_HWC.shape[:2]
    rows = np.arange(height) * num_rows // height
    columns = np.arange(width) * num_columns // width
    place = np.ix_(rows, columns)
    colours = np.stack([_member_colour(g) for g in range(group)])[winner][place]
    alpha_HW1 = alpha[place][..., None]
    grey_HW1 = tile_HWC.mean(-1, keepdims=True)
    return ((1 - alpha_HW1) * grey_HW1 + alpha_HW1 * colours).round().astype(np.uint8)


def _framed(tile_HWC: np.ndarray, colour: np.ndarray | None = None) -> np.ndarray:
    """[H',W',4] uint8: the tile in a frame of this colour, or a transparent one."""
    height, width = tile_HWC.shape[:2]
    framed = np.zeros((height + 2 * _FRAME_PX, width + 2 * _FRAME_PX, 4), np.uint8)
    if colour is not None:
        framed[:] = [*colour, 255]
    inside = framed[_FRAME_PX:-_FRAME_PX, _FRAME_PX:-_FRAME_PX]
    inside[..., :3], inside[..., 3] = tile_HWC, 255
    return framed


def _join(pictures: Sequence[np.ndarray], gap_px: int, axis: int) -> np.ndarray:
    """The pictures in a row (axis 1) or a column (axis 0), with transparent gaps."""
    shape = list(pictures[0].shape)
    shape[axis] = gap_px
    gap = np.zeros(shape, np.uint8)
    joined = [piece for picture in pictures for piece in (gap, picture)]
    return np.concatenate(joined[1:], axis=axis)
