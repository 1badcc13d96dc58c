"""How soon each row of a study is as good as another row is in the end."""

import statistics
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from hard_fast.report.record import read_record, series
from hard_fast.report.wording import duration, score

_LESS_IS_BETTER = ("nll", "ece", "mse", "mce")


def reached(
    runs: dict[str, list[Path]], levels: dict[str, float]
) -> dict[str, dict[str, dict[str, float]]]:
    """Per row and metric: when its runs' evaluations first were as good as a level.

    Args:    runs: directories of each row's finished runs.
             levels: of each metric, in its unit.
    Returns: n runs, how many of them got there, and of those the mean of epochs and of seconds
             of training (evaluations between are in it), absent where none did.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for row, folders in runs.items():
        found[row] = {}
        for metric, level in levels.items():
            places = [_first(folder, metric, level) for folder in folders]
            there = [place for place in places if place is not None]
            entry: dict[str, float] = {"n": len(places), "num_there": len(there)}
            if there:
                epochs, seconds = zip(*there, strict=True)
                entry |= {"epochs": statistics.fmean(epochs), "seconds": statistics.fmean(seconds)}
            found[row][metric] = entry
    return found


def reached_table(result: dict[str, Any]) -> Table:
    """The same for a terminal.

    Args:    result: what study.json holds, with `reach` and `reached`.
    """
    level = result["rows"][result["reach"]]
    metrics = [metric for metric in result["metrics"] if metric in level]
    table = Table(title=f"first as good as {result['reach']} in the end")
    table.add_column("")
    for metric in metrics:
        table.add_column(f"{metric} {score(metric, level[metric]['mean'])}", justify="right")
    for row, found in result["reached"].items():
        table.add_row(row, *(_cell(found[metric]) for metric in metrics))
    return table


def _first(run_dir: Path, metric: str, level: float) -> tuple[float, float] | None:
    """Epochs and seconds at the first evaluation that is as good; None if there is none."""
    rows = read_record(run_dir).rows
    steps, seconds = series(rows["train"], "timing", "seconds")
    sign = -1.0 if metric.endswith(_LESS_IS_BETTER) else 1.0
    for row in rows["eval"]:
        # A run that keeps an average of the student ends with that.
        value = row.get(f"average_{metric}", row.get(metric))
        if value is not None and sign * value >= sign * level:
            return row["epoch"], float(np.interp(row["step"], [0, *steps], [0.0, *seconds]))
    return None


def _cell(found: dict[str, float]) -> str:
    if not found["num_there"]:
        return f"never ({found['n']})"
    text = f"epoch {found['epochs']:.3g}, {duration(found['seconds'])}"
    share = "" if found["num_there"] == found["n"] else f"{found['num_there']} of "
    return f"{text} ({share}{found['n']})"
