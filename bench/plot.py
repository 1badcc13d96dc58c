"""How many times faster than the best peer: one picture per place of measurement."""

import hashlib
import io
import re
from typing import NamedTuple

_WIDTH_IN = 9.0
_ROW_IN = 0.27
_OURS, _LEVEL = "#2563c9", "#8a93a6"


class Advantage(NamedTuple):
    """One line of the picture: what was measured, and the best peer over ours, one per case."""

    what: str
    ratios: list[float]


def draw_advantages(title: str, advantages: list[Advantage]) -> str:
    """SVG text: a dot per case, a ring at the median of several; `numbers_in` tells its source."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    # Letters as outlines: the picture is shown where its fonts may not be.
    with rc_context({"svg.hashsalt": title, "font.size": 8}):
        height = 0.9 + _ROW_IN * len(advantages)
        figure = Figure(figsize=(_WIDTH_IN, height), layout="constrained")
        axes = figure.add_subplot()
        for i, (_, ratios) in enumerate(advantages):
            is_one = len(ratios) == 1
            dots = {"s": 26 if is_one else 9, "alpha": 1.0 if is_one else 0.5, "linewidths": 0}
            axes.scatter(ratios, [i] * len(ratios), color=_OURS, **dots)
            if not is_one:
                middle = sorted(ratios)[len(ratios) // 2]
                axes.scatter([middle], [i], s=60, facecolors="none", edgecolors=_OURS)
        axes.axvline(1.0, color=_LEVEL, linewidth=1)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xticks([tick for tick in (0.5, 1, 2, 5, 10, 20, 50) if _is_near(tick, advantages)])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_yticks(range(len(advantages)), [what for what, _ in advantages])
        axes.invert_yaxis()
        axes.grid(True, axis="x", color="#d8dde6", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0)
        axes.set_xlabel("the best peer's cost over ours (right of 1: ours is faster)")
        figure.suptitle(title, x=0.01, ha="left", fontsize=8)
        page = io.StringIO()
        figure.savefig(
            page, format="svg", metadata={"Date": None, "Description": _digest(title, advantages)}
        )
    return page.getvalue()


def numbers_in(page: str) -> str | None:
    """What names the numbers that a picture shows: other versions of matplotlib draw them alike."""
    found = re.search(r"numbers [0-9a-f]{16}", page)
    return found and found.group()


def _digest(title: str, advantages: list[Advantage]) -> str:
    lines = [(what, [f"{ratio:.4g}" for ratio in ratios]) for what, ratios in advantages]
    return f"numbers {hashlib.sha256(repr((title, lines)).encode()).hexdigest()[:16]}"


def _is_near(tick: float, advantages: list[Advantage]) -> bool:
    values = [1.0, *(ratio for advantage in advantages for ratio in advantage.ratios)]
    return min(values) / 1.6 <= tick <= max(values) * 1.6
