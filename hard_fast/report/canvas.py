"""What every chart of a report is drawn on: colours, axes, and SVG text to stand inline in a page.

The colours of an SVG are the page's CSS variables, so that it follows the light or dark scheme, and
its letters are the page's own font. matplotlib is used through its objects, never through pyplot.
"""

import io
import math
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import numpy as np

# Light and dark value of each CSS variable. No two light values are equal: each one stands for its
# variable until the SVG is text.
COLOURS: dict[str, tuple[str, str]] = {
    "ink": ("#1c2333", "#e8ecf4"),
    "muted": ("#5d6780", "#9aa6bd"),
    "grid": ("#e4e8f0", "#2c3547"),
    "student": ("#2563c9", "#6ea6ff"),
    "augmentor": ("#d9630b", "#ff9d52"),
    "joint": ("#7a4cc2", "#bb95fb"),
    "series0": ("#0b8278", "#3ecfc0"),
    "series1": ("#bf2f66", "#ff82ab"),
    "series2": ("#6f7f0e", "#c3d255"),
    "series3": ("#3f5793", "#9db4f0"),
    "series4": ("#92592f", "#dfa376"),
    "series5": ("#5a6b6f", "#b3c4c8"),
}
Scale = Literal["auto", "linear", "share"]
_WIDTH_PX = 420
CHARACTER_PX = 6.9
LABEL_GAP_PX = 15
_MOST_POINTS = 300


def style(name: str) -> AbstractContextManager[None]:
    """Settings of matplotlib for one figure; `name` makes the marks inside it its own."""
    from matplotlib import rc_context

    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": f"hard_fast {name}",
        "text.parse_math": False,
        "text.color": hex_code("ink"),
        "font.size": 12,
        "lines.linewidth": 1.8,
        "lines.markersize": 4,
        "lines.solid_capstyle": "round",
    }
    return rc_context(settings)


def build_figure(width_px: float, height_px: float) -> Any:
    """An empty matplotlib Figure whose units are the pixels of its SVG."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width_px / 72, height_px / 72), dpi=72)


def build_axes(height_px: float, left_px: float, right_px: float) -> tuple[Any, Any]:
    """A Figure 420 px wide and its axes, with room for letters to the left and to the right."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    figure = build_figure(_WIDTH_PX, height_px)
    axes = figure.add_axes(_place(height_px, left_px, right_px))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(hex_code("muted"))
    axes.grid(True, axis="y")
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelcolor=hex_code("muted"), grid_color=hex_code("grid"), pad=6)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
    return figure, axes


def fit_left(axes: Any, right_px: float) -> None:
    """Widen the axes to the left as far as the letters of their vertical scale allow."""
    texts = [compact(value) for value in axes.get_yticks()]
    left_px = 10 + CHARACTER_PX * max(map(len, texts), default=0)
    height_px = axes.figure.get_figheight() * 72
    axes.set_position(_place(height_px, left_px, right_px))


def _place(height_px: float, left_px: float, right_px: float) -> tuple[float, ...]:
    """Left, bottom, width and height of the axes, shares of the figure."""
    width_px = max(_WIDTH_PX - left_px - right_px, 120)
    return left_px / _WIDTH_PX, 28 / height_px, width_px / _WIDTH_PX, 1 - 40 / height_px


def scale_y(axes: Any, values: Sequence[float], scale: Scale) -> None:
    """Shares start at 0; `auto` is logarithmic where the values drawn ask for it."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    known = [value for value in values if math.isfinite(value)]
    lowest, highest = min(known, default=0.0), max(known, default=0.0)
    if scale == "share":
        axes.set_ylim(bottom=0)
    elif scale == "auto" and 0 < 10 * lowest < highest:
        axes.set_yscale("log")
        subs = (1, 3) if highest < 1e4 * lowest else (1,)
        axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=8))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))


def write_labels(
    axes: Any, texts: Sequence[str], labels: Sequence[tuple[str, float, str]], counted: str = "step"
) -> None:
    """Write the name of each line beside its last value, and what the horizontal axis counts.

    Args:    labels: name, last value and colour of each line.
    """
    box = axes.bbox
    points = axes.transData.transform([(0, value) for _, value, _ in labels] or [(0, 0)])
    places = spread([y for _, y in points], LABEL_GAP_PX, box.y0, box.y1)
    for text, (_, _, colour), y_px in zip(texts, labels, places, strict=False):
        where = (1 + 9 / box.width, (y_px - box.y0) / box.height)
        axes.text(*where, text, transform=axes.transAxes, color=hex_code(colour), va="center")
    where = (1 + 26 / box.width, -6 / box.height)
    axes.text(*where, counted, transform=axes.transAxes, color=hex_code("muted"), va="top")


def to_svg(figure: Any, name: str) -> str:
    """The figure as an `<svg>` element without outside names, ids or fixed size."""
    buffer = io.StringIO()
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    view_box = re.search(r'viewBox="[^"]*"', text)
    assert view_box is not None
    text = text[text.index(">") + 1 :]
    text = re.sub(r"<metadata>.*?</metadata>|<style .*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    for colour, (light, _) in COLOURS.items():
        text = text.replace(light, f"var(--{colour})")
    alt = re.sub(r"[^\w .,%()-]", " ", name)
    return f'<svg {view_box.group()} role="img" aria-label="{alt}">{text}'


def hex_code(colour: str) -> str:
    """The colour by which matplotlib knows a name of COLOURS; an unknown name is muted."""
    return COLOURS[colour if colour in COLOURS else "muted"][0]


def cut_short(text: str, most: int = 26) -> str:
    """The text, with two dots in place of what does not fit."""
    return text if len(text) <= most else text[: most - 2] + ".."


def decimate(
    steps: Sequence[float], values: Sequence[float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Steps, mean, lowest and highest of at most 300 equal bins; NaN where none is finite."""
    x, y = np.asarray(steps, float), np.asarray(values, float)
    is_here = np.isfinite(y)
    if len(y) <= _MOST_POINTS:
        y = np.where(is_here, y, np.nan)
        return x, y, y, y
    starts = np.linspace(0, len(y), _MOST_POINTS, endpoint=False).astype(int)
    sizes, num_here = np.diff([*starts, len(y)]), np.add.reduceat(is_here, starts, dtype=float)
    num_here[num_here == 0] = np.nan
    mean = np.add.reduceat(np.where(is_here, y, 0), starts) / num_here
    low = np.minimum.reduceat(np.where(is_here, y, np.inf), starts)
    high = np.maximum.reduceat(np.where(is_here, y, -np.inf), starts)
    low[np.isnan(mean)] = high[np.isnan(mean)] = np.nan
    return np.add.reduceat(x, starts) / sizes, mean, low, high


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions in the order given, moved as little as keeps them `gap` apart in [low, high]."""
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    placed = [min(max(p, low), high) for p in positions]
    for before, after in zip(order, order[1:], strict=False):
        placed[after] = max(placed[after], placed[before] + gap)
    limit = high
    for i in reversed(order):
        placed[i] = min(placed[i], limit)
        limit = placed[i] - gap
    return placed


def compact(value: float, digits: int = 4) -> str:
    """A number for an axis or a label: few digits, thousands as k, millions as M."""
    unit, letter = next((u for u in ((1e6, "M"), (1e3, "k")) if abs(value) >= u[0]), (1, ""))
    return f"{value / unit:.{digits}g}{letter}".replace("-", "\u2212")
