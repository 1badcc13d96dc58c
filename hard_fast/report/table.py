"""The table of a study: its numbers, and how a terminal shows them."""

import math
import statistics
from typing import Any

from rich.table import Table


def row_statistics(
    runs: dict[str, list[dict[str, float]]], metrics: list[str]
) -> dict[str, dict[str, dict[str, float]]]:
    """Per row and metric the mean over its runs, the mean's standard error and n.

    A single run has no spread: its standard error is 0. A metric that no run has is left out.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for row, results in runs.items():
        found[row] = {}
        for name in metrics:
            values = [result[name] for result in results if name in result]
            if values:
                num = len(values)
                sem = statistics.stdev(values) / math.sqrt(num) if num > 1 else 0.0
                found[row][name] = {"mean": statistics.fmean(values), "sem": sem, "n": num}
    return found


def study_table(result: dict[str, Any]) -> Table:
    """Mean +- s.e.m. (n) per row and metric, each beside the paper's number where there is one.

    Args:    result: what study.json holds.
    """
    paper, metrics = result["paper"], result["metrics"]
    table = Table(title=f"{result['study']}: mean +- s.e.m. (seeds)")
    table.add_column("")
    for metric in metrics:
        table.add_column(metric, justify="right")
        if paper:
            table.add_column("paper", justify="right", style="dim")
    for row, found in result["rows"].items():
        published = paper[row] if row in paper else {}
        cells = [row]
        for metric in metrics:
            cells.append(_cell(found[metric]) if metric in found else "-")
            if paper:
                cells.append(f"{published[metric]:g}" if metric in published else "-")
        table.add_row(*cells)
    return table


def _cell(found: dict[str, float]) -> str:
    return f"{found['mean']:.4g} +- {found['sem']:.2g} ({found['n']})"
