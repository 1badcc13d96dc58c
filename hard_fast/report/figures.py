"""The pictures of a report: galleries as PNG files; curves, phase strips and score charts as SVG.

Letters: B images, C channels, H rows, W columns.
"""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from hard_fast.report.canvas import (
    CHARACTER_PX,
    LABEL_GAP_PX,
    Scale,
    build_axes,
    build_figure,
    compact,
    cut_short,
    decimate,
    fit_left,
    hex_code,
    scale_y,
    style,
    to_svg,
    write_labels,
)
from hard_fast.runtime.files import write_atomic

_MOST_MARKERS = 40
_MOST_IMAGES = 10
_TILE_PX = 112
_TILE_GAP_PX = 8


class Series(NamedTuple):
    """One line of a chart. `colour` is a name in canvas.COLOURS."""

    label: str
    steps: Sequence[float]
    values: Sequence[float]
    colour: str


class Level(NamedTuple):
    """A dashed horizontal line: a threshold, or the teacher's score."""

    label: str
    value: float
    colour: str


class Segment(NamedTuple):
    """Steps [start, end) in which one phase ran."""

    start: int
    end: int
    phase: str


class Score(NamedTuple):
    """One row of a score chart; `text` is what stands beside its dot."""

    row: str
    mean: float | None
    sem: float | None
    paper: float | None
    text: str


def write_gallery(path: Path, original_BCHW: Tensor, augmented_BCHW: Tensor) -> None:
    """Write a PNG of two rows, originals above and augmented below: the first 10 images at most.

    Args:    original_BCHW, augmented_BCHW: [B,C,H,W] with C 1 or 3, float in [0,1] or uint8, on any
             device. Small images are enlarged by whole factors, without smoothing.
    Raises:  ValueError if a tensor is not a batch of such images.
    """
    num_images = min(len(original_BCHW), len(augmented_BCHW), _MOST_IMAGES)
    rows = [_tile_row(images[:num_images]) for images in (original_BCHW, augmented_BCHW)]
    gap = np.zeros((_TILE_GAP_PX, max(row.shape[1] for row in rows), 4), np.uint8)
    rows = [np.pad(row, ((0, 0), (0, gap.shape[1] - row.shape[1]), (0, 0))) for row in rows]
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate([rows[0], gap, rows[1]])).save(buffer, format="png")
    write_atomic(path, buffer.getvalue())


def draw_curves(
    name: str,
    series: Sequence[Series],
    num_steps: int,
    levels: Sequence[Level] = (),
    scale: Scale = "auto",
) -> str:
    """SVG of lines over steps 0 to `num_steps`, each named at its right end with its last value.

    Long series are drawn as the mean and the range of 300 bins. A value that is not finite is a gap
    in its line.

    Args:    scale: `share` shows shares of one in percent; `auto` is logarithmic where positive
             values span more than a factor of 10, else linear.
    """
    factor, unit, digits = (100.0, " %", 3) if scale == "share" else (1.0, "", 4)
    lines = [(one, *decimate(one.steps, np.asarray(one.values, float) * factor)) for one in series]
    lines = [line for line in lines if np.isfinite(line[2]).any()]
    labels = [(one.label, mean[np.isfinite(mean)][-1], one.colour) for one, _, mean, _, _ in lines]
    labels += [(one.label, one.value * factor, one.colour) for one in levels]
    texts = [
        cut_short(f"{label} {compact(value, digits)}{unit}".strip()) for label, value, _ in labels
    ]
    right_px = max(14 + CHARACTER_PX * max(map(len, texts), default=0), 58)
    with style(name):
        figure, axes = build_axes(max(215, 50 + LABEL_GAP_PX * len(labels)), 46, right_px)
        axes.set_xlim(0, max(num_steps, 1))
        for one, steps, mean, low, high in lines:
            colour, is_alone = hex_code(one.colour), _has_no_neighbour(mean)
            axes.plot(steps, mean, color=colour, clip_on=False)
            axes.plot(steps[is_alone], mean[is_alone], "o", color=colour, clip_on=False)
            if np.any(high > low):
                axes.fill_between(steps, low, high, color=colour, alpha=0.16, linewidth=0)
        for level in levels:
            colour = hex_code(level.colour)
            axes.axhline(level.value * factor, color=colour, dashes=(4, 3), linewidth=1.2)
        drawn = [value for _, _, mean, _, _ in lines for value in mean]
        scale_y(axes, [*drawn, *(level.value for level in levels)], scale)
        fit_left(axes, right_px)
        write_labels(axes, texts, labels)
        return to_svg(figure, name)


def draw_phases(name: str, segments: Sequence[Segment], num_steps: int) -> str:
    """SVG of a band without letters that may be stretched to any width.

    The rarer phase is drawn on top and a very short segment is widened until it can be seen, yet
    widening never fills more than half of the band.
    """
    total = max(num_steps, 1)
    least = min(0.004, 0.5 / max(len(segments), 1)) * total
    lengths: dict[str, int] = {}
    for one in segments:
        lengths[one.phase] = lengths.setdefault(one.phase, 0) + one.end - one.start
    with style(name):
        figure = build_figure(1000, 44)
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, total), ylim=(0, 1))
        axes.set_axis_off()
        for phase in sorted(lengths, key=lambda phase: -lengths[phase]):
            bars = []
            for one in segments:
                if one.phase == phase:
                    width = max(one.end - one.start, least)
                    bars.append((min(max(one.start, 0), total - width), width))
            axes.broken_barh(bars, (0, 1), facecolor=hex_code(phase), linewidth=0)
        return to_svg(figure, name).replace("<svg", '<svg preserveAspectRatio="none"', 1)


def draw_scores(name: str, scores: Sequence[Score]) -> str:
    """SVG of one metric: a dot with its standard error per row, the paper's number as a diamond."""
    left_px = 14 + CHARACTER_PX * max(len(cut_short(one.row)) for one in scores)
    right_px = 16 + CHARACTER_PX * max(len(one.text) for one in scores)
    known = [x for one in scores for x in (one.mean, one.paper) if _is_finite(x)]
    errors = [one.sem for one in scores if _is_finite(one.sem)]
    low, high = min(known, default=0.0), max(known, default=1.0)
    pad = 0.06 * (high - low) + max(errors, default=0.0) or 0.05 * abs(high) or 1.0
    with style(name):
        figure, axes = build_axes(40 + 32 * len(scores), left_px, right_px)
        axes.grid(True, axis="x")
        axes.grid(False, axis="y")
        axes.set_xlim(low - pad, high + pad)
        axes.set_ylim(len(scores) - 0.4, -0.6)
        axes.set_yticks(range(len(scores)), [cut_short(one.row) for one in scores])
        axes.tick_params(axis="y", labelcolor=hex_code("ink"))
        axes.axvline(0, color=hex_code("muted"), linewidth=1, visible=low - pad < 0 < high + pad)
        for y, one in enumerate(scores):
            if _is_finite(one.paper):
                axes.plot(one.paper, y, "D", color=hex_code("augmentor"), mfc="none", ms=9, mew=1.6)
            if _is_finite(one.mean):
                error = one.sem if _is_finite(one.sem) else None
                axes.errorbar(
                    one.mean, y, xerr=error, fmt="o", color=hex_code("student"), ms=6, capsize=5
                )
            where = (1 + 10 / axes.bbox.width, y)
            axes.text(*where, one.text, transform=axes.get_yaxis_transform(), va="center")
        return to_svg(figure, name)


def to_tiles(images_BCHW: Tensor) -> np.ndarray:
    """[B, H', W', 3] uint8: images enlarged by a whole factor to about 112 px, if they are smaller.

    Args:    images_BCHW: C 1 or 3, float in [0,1] or uint8, on any device.
    Raises:  ValueError if it is not a batch of such images.
    """
    shape = tuple(images_BCHW.shape)
    if len(shape) != 4 or shape[1] not in (1, 3) or 0 in shape:
        raise ValueError(f"gallery: images of shape {shape}; needs [B,1,H,W] or [B,3,H,W]")
    images = images_BCHW.detach().cpu()
    if images.is_floating_point():
        images = (images.float().nan_to_num().clamp(0, 1) * 255).round().byte()
    images = images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    factor = max(1, round(_TILE_PX / max(shape[2:])))
    return images.repeat(factor, axis=1).repeat(factor, axis=2)


def _tile_row(images_BCHW: Tensor) -> np.ndarray:
    """[H', W', 4] uint8: the images side by side, enlarged, with transparent gaps."""
    images = to_tiles(images_BCHW)
    images = np.pad(images, ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=255)
    images = np.pad(images, ((0, 0), (0, 0), (0, _TILE_GAP_PX), (0, 0)))
    return np.concatenate(list(images), axis=1)[:, :-_TILE_GAP_PX]


def _has_no_neighbour(values: np.ndarray) -> np.ndarray:
    """Which points need a mark of their own: all of a few, else those between two gaps."""
    is_here = np.isfinite(values)
    if is_here.sum() <= _MOST_MARKERS:
        return is_here
    padded = np.pad(is_here, 1)
    return is_here & ~padded[:-2] & ~padded[2:]


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
