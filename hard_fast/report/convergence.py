"""How soon each row of a study is as good as another row is in the end."""

import statistics
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from hard_fast.evals.scores import is_less_better
from hard_fast.report.record import Record, at, is_number, numbers, read_record, series
from hard_fast.report.wording import duration, score


def reached(
    runs: dict[str, list[Path]], levels: dict[str, float]
) -> dict[str, dict[str, dict[str, float]]]:
    """Per row and metric: when its runs' evaluations first were as good as a level.

    Args:    runs: directories of each row's finished runs.
             levels: of each metric, in its unit.
    Returns: n runs that tell the metric, how many of them got there, and of those the mean of
             epochs and of seconds of training (evaluations between are in it), absent where none
             did.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for row, folders in runs.items():
        found[row] = {}
        records = [read_record(folder) for folder in folders]
        for metric, level in levels.items():
            courses = [course for one in records if (course := _course(one, metric))]
            places = [_first(course, level, less=is_less_better(metric)) for course in courses]
            there = [place for place in places if place is not None]
            entry: dict[str, float] = {"n": len(courses), "num_there": len(there)}
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


def _course(record: Record, metric: str) -> list[tuple[float, float, float]]:
    """Epochs, seconds and the metric of each evaluation that tells it, the final one included."""
    steps, seconds = series(record.rows["train"], "timing", "seconds")
    rows = list(record.rows["eval"])
    if is_number(epochs := at(record.summary, "epochs")):
        place = {"step": record.num_steps, "epoch": epochs}
        rows.append(place | numbers(at(record.summary, "metrics")))
    course = []
    for row in rows:
        # A run that keeps an average of the student ends with that.
        value = row.get(f"average_{metric}", row.get(metric))
        if is_number(value):
            passed = float(np.interp(row["step"], [0, *steps], [0.0, *seconds]))
            course.append((row["epoch"], passed, value))
    return course


def _first(
    course: list[tuple[float, float, float]], level: float, *, less: bool
) -> tuple[float, float] | None:
    """Epochs and seconds at the first evaluation that is as good; None if there is none."""
    for epoch, seconds, value in course:
        if value <= level if less else value >= level:
            return epoch, seconds
    return None


def _cell(found: dict[str, float]) -> str:
    if not found["n"]:
        return "not measured"
    if not found["num_there"]:
        return f"never ({found['n']})"
    text = f"epoch {found['epochs']:.3g}, {duration(found['seconds'])}"
    share = "" if found["num_there"] == found["n"] else f"{found['num_there']} of "
    return f"{text} ({share}{found['n']})"
