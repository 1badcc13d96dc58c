"""The charts of one run: its scores, its learning, its phases and its galleries."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hard_fast.report.canvas import Scale
from hard_fast.report.figures import Level, Series, draw_curves, draw_phases
from hard_fast.report.record import (
    PHASES,
    Record,
    at,
    error_thresholds,
    gallery_steps,
    names,
    numbers,
    phase_segments,
    phase_steps,
    series,
)
from hard_fast.report.wording import PERCENT_UNITS, count, label, share

NOT_METRICS = ("step", "epoch")
_NUM_COLOURS = 6


class Panel(NamedTuple):
    """One chart with its heading, and a sentence on how to read it."""

    title: str
    svg: str
    note: str = ""


def score_panels(record: Record) -> list[Panel]:
    """One chart per unit of the evaluations' metrics, accuracies first, and the teacher's level."""
    rows, teacher = record.rows["eval"], numbers(at(record.summary, "teacher"))
    units: dict[str, list[str]] = {}
    for name in names(rows):
        if name not in NOT_METRICS:
            units.setdefault(name.rpartition("_")[2], []).append(name)
    panels = []
    for unit in sorted(units, key=lambda unit: unit not in PERCENT_UNITS):
        lines, levels = [], []
        for i, name in enumerate(units[unit]):
            part = name.removesuffix(unit).strip("_").replace("_", " ")
            points = series([row for row in rows if name in row], name)
            lines.append(Series(part or label(unit, has_unit=False), *points, _nth(i)))
            if name in teacher:
                levels.append(Level(f"teacher {part}".strip(), teacher[name], _nth(i)))
        note = "Dashed: the teacher." if levels else ""
        title = f"Evaluation: {label(unit)}"
        panels.append(Panel(title, draw_curves(title, lines, record.num_steps, levels), note))
    return panels


def learning_panels(record: Record) -> list[Panel]:
    """The error that the schedule reads, and the loss of each phase."""
    names_of = {phase: names(record.rows["train"], phase) for phase in PHASES}
    panels = []
    errors = [(f"{p} phase", (p, "error"), p) for p in PHASES if "error" in names_of[p]]
    if errors:
        thresholds = error_thresholds(record)
        is_accuracy = any(name.endswith(PERCENT_UNITS) for name in names(record.rows["eval"]))
        is_share = bool(thresholds) or is_accuracy
        scale: Scale = "share" if is_share else "auto"
        levels = [Level(name, value, "muted") for name, value in thresholds.items()]
        title = "Error on the training inputs" + " (%)" * is_share
        note = "Dashed: the thresholds that the schedule compares it with." if levels else ""
        panels.append(_train_panel(record, title, errors, note, levels, scale))
    for phase in PHASES:
        if "loss" in names_of[phase]:
            title = "Joint loss" if phase == "joint" else f"Loss of the {phase}"
            panels.append(_train_panel(record, title, [("", (phase, "loss"), phase)]))
    return panels


def more_panels(record: Record) -> list[Panel]:
    """Every other logged number: learning rates, the terms of each phase, speed."""
    rows = record.rows["train"]
    rates = [(name, ("lr", name), _colour(name, i)) for i, name in enumerate(names(rows, "lr"))]
    panels = [
        _train_panel(record, f"Learning rate: {name}", [("", *line)], scale="linear")
        for name, *line in rates
    ]
    for phase in PHASES:
        for name in names(rows, phase):
            if name not in ("steps", "loss", "error"):
                title = f"{phase.capitalize()} phase: {name}"
                panels.append(_train_panel(record, title, [("", (phase, name), phase)]))
    speed: list[tuple[str, str, Scale]] = [
        ("Images per second", "images_per_s", "linear"),
        ("Share of the time spent waiting for data", "data_wait", "share"),
    ]
    for title, name, scale in speed:
        if name in names(rows, "timing"):
            line = ("", ("timing", name), "series3")
            panels.append(_train_panel(record, title, [line], scale=scale))
    return panels


def _train_panel(
    record: Record,
    title: str,
    lines: Sequence[tuple[str, tuple[str, ...], str]],
    note: str = "",
    levels: Sequence[Level] = (),
    scale: Scale = "auto",
) -> Panel:
    """A chart of numbers of the train rows; each line is its label, its keys and its colour."""
    rows = record.rows["train"]
    drawn = [Series(text, *series(rows, *keys), colour) for text, keys, colour in lines]
    return Panel(title, draw_curves(title, drawn, record.num_steps, levels, scale), note)


def phase_strip(record: Record) -> dict[str, Any]:
    """The phase strip with its legend and its switches, for the page."""
    steps, num_steps = phase_steps(record), record.num_steps
    total = max(sum(steps.values()), 1)
    keys = ("step", "from", "to", "reason")
    return {
        "svg": draw_phases("When each phase ran", phase_segments(record), num_steps),
        "ticks": [count(round(num_steps * i / 4)) for i in range(5)],
        "steps": [(phase, count(n), share(n / total)) for phase, n in steps.items()],
        "switches": [{key: at(row, key) for key in keys} for row in record.rows["switch"]],
    }


def galleries(record: Record, most: int, kind: str = "gallery") -> list[dict[str, str]]:
    """Pictures of one kind, evenly spaced over training, as data URIs with their steps.

    Args:    kind: gallery, of original and augmented images; or another folder of the run.
    """
    found = gallery_steps(record, most, kind)
    return [{"caption": f"step {count(step)}", "uri": _data_uri(file)} for step, file in found]


def _data_uri(png: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(png.read_bytes()).decode()


def _colour(name: str, i: int) -> str:
    return name if name in PHASES else _nth(i)


def _nth(i: int) -> str:
    return f"series{i % _NUM_COLOURS}"
