"""A ranking of augmentations by T.stddev: a terminal's table, a picture, and what it foretells."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from hard_fast.report.canvas import build_figure, hex_code, style

_SCALE = 1e3
_ROW_PX, _WIDTH_PX, _LEFT_PX, _DPI = 26, 520, 130, 144


def ranking_table(tree: Mapping[str, Any]) -> Table:
    """The augmentations with their intervals, lowest first, and how far each is from the next.

    Args:    tree: what the ranking's JSON file holds.
    """
    draws = f"{tree['draws']} draws of {tree['originals_per_draw']} originals and their copies"
    table = Table(title=f"T.stddev x 1e3 of {tree['teacher']}, lower is better\n{draws}")
    for column in ("", "T.stddev", "95 % interval", "above the one before"):
        table.add_column(column, justify="left" if column == "" else "right")
    steps = {(one["of"], one["from"]): one for one in tree["differences"]}
    before = None
    for name, row in tree["rows"].items():
        interval = f"{_SCALE * row['low']:.3f} to {_SCALE * row['high']:.3f}"
        step = "" if before is None else _step(steps[name, before])
        table.add_row(name, f"{_SCALE * row['t_stddev']:.3f}", interval, step)
        before = name
    return table


def write_ranking(path: Path, tree: Mapping[str, Any]) -> None:
    """Draw T.stddev and its interval of each augmentation, lowest on top.

    Args:    path: its ending decides the format: .png, .svg, .pdf.
    Raises:  ValueError for an ending that no picture has.
    """
    rows = tree["rows"]
    values = [[_SCALE * row[key] for key in ("t_stddev", "low", "high")] for row in rows.values()]
    value, low, high = np.array(values).T
    place = np.arange(len(rows))
    height_px = 70 + _ROW_PX * len(rows)
    with style("ranking"):
        figure = build_figure(_WIDTH_PX, height_px)
        left, bottom = _LEFT_PX / _WIDTH_PX, 46 / height_px
        axes = figure.add_axes((left, bottom, 0.97 - left, 1 - bottom - 12 / height_px))
        # An interval by percentiles need not hold the value itself.
        ends = np.clip([value - low, high - value], 0.0, None)
        axes.errorbar(value, place, xerr=ends, fmt="o", color=hex_code("student"), capsize=3)
        axes.set_yticks(place, list(rows))
        axes.invert_yaxis()
        axes.grid(True, axis="x", color=hex_code("grid"))
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0)
        axes.set_xlabel("T.stddev x 1000, 95 % interval; lower is better")
        figure.savefig(path, dpi=_DPI)


def correlate(
    tree: Mapping[str, Any], study: Mapping[str, Any], metric: str
) -> dict[str, dict[str, Any]]:
    """What T.stddev foretells: its correlation with a metric of the students, over common rows.

    Args:    tree: what the ranking's JSON file holds. study: what study.json holds.
    Returns: pearson, spearman: each `r` and its two-sided `p`; and `num`, `rows`: name, T.stddev,
             the metric's mean.
    Raises:  ValueError if fewer than three rows are in both.
    """
    from scipy import stats

    points = {
        name: (row["t_stddev"], study["rows"][name][metric]["mean"])
        for name, row in tree["rows"].items()
        if name in study["rows"] and metric in study["rows"][name]
    }
    if len(points) < 3:
        raise ValueError(
            f"--study: {len(points)} of the ranked rows have {metric!r} in the study; it takes "
            "three: rank the study's own file, and name one of its metrics"
        )
    x, y = zip(*points.values(), strict=True)
    found: dict[str, dict[str, Any]] = {"rows": points}
    for name, test in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr)):
        r, p = test(x, y)
        found[name] = {"r": float(r), "p": float(p), "num": len(points)}
    return found


def correlation_table(found: Mapping[str, Any], metric: str) -> Table:
    """The rows in the order of T.stddev with their metric, below both correlations.

    Args:    found: what `correlate` returned.
    """
    told = "\n".join(
        f"{name} {found[name]['r']:.3f} (p = {_percent(found[name]['p'])})"
        for name in ("pearson", "spearman")
    )
    table = Table(title=f"T.stddev and {metric} of {found['pearson']['num']} students\n{told}")
    for column in ("", "T.stddev x 1e3", metric):
        table.add_column(column, justify="left" if column == "" else "right")
    for name, (stddev, value) in found["rows"].items():
        table.add_row(name, f"{_SCALE * stddev:.3f}", f"{value:.4g}")
    return table


def _step(one: Mapping[str, Any]) -> str:
    mark = "" if one["low"] > 0 else " (may be 0)"
    return f"{_SCALE * one['low']:.3f} to {_SCALE * one['high']:.3f}{mark}"


def _percent(p: float) -> str:
    return "unknown" if math.isnan(p) else f"{100 * p:.2g} %"
