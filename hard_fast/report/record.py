"""What a run directory says about its run, read from files that may still be growing."""

import json
import math
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hard_fast.report.figures import Segment
from hard_fast.types import Phase

PHASES = tuple(phase.value for phase in Phase)
_ROW_KINDS = ("train", "eval", "switch", "warning")


class Record(NamedTuple):
    """A run, as far as it has come.

    config:         tables of config.toml; empty where the file is missing or is not TOML.
    summary:        summary.json; None while the run is going on.
    rows:           rows of metrics.jsonl by kind, in order of their steps.
    num_unreadable: lines of metrics.jsonl that could not be read, a torn last one not counted.
    """

    folder: Path
    config_text: str
    config: Mapping[str, Any]
    summary: Mapping[str, Any] | None
    rows: Mapping[str, Sequence[Mapping[str, Any]]]
    num_unreadable: int

    @property
    def num_steps(self) -> int:
        """Steps done so far."""
        steps = [row["step"] for rows in self.rows.values() for row in rows]
        return int(at(self.summary, "steps") or max(steps, default=0))


def read_record(run_dir: Path) -> Record:
    """Read a run directory.

    Raises:  ValueError if it holds no metrics.jsonl.
    """
    log = run_dir / "metrics.jsonl"
    if not log.is_file():
        raise ValueError(f"{log}: no such file; a report needs the directory of a run that began")
    rows, num_unreadable = _read_rows(log)
    config_file, summary_file = run_dir / "config.toml", run_dir / "summary.json"
    text = (
        config_file.read_text(encoding="utf-8", errors="replace") if config_file.is_file() else ""
    )
    try:
        config = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        config = {}
    summary = read_json(summary_file) if summary_file.is_file() else None
    return Record(run_dir, text, config, summary, rows, num_unreadable)


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:  ValueError if there is no such file, or it holds something else.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: holds a {type(tree).__name__}; needs a JSON object")
    return tree


def at(tree: object, *keys: str) -> Any:
    """The value below nested keys, or None where one of them is absent."""
    for key in keys:
        if not isinstance(tree, Mapping) or key not in tree:
            return None
        tree = tree[key]
    return tree


def numbers(tree: object, but: Sequence[str] = ()) -> dict[str, float]:
    """The finite numbers directly in a table, without the keys in `but`."""
    items = tree.items() if isinstance(tree, Mapping) else ()
    return {key: value for key, value in items if key not in but and is_number(value)}


def is_number(value: object) -> bool:
    """Whether this is a finite number; True and False are not."""
    is_numeric = isinstance(value, int | float) and not isinstance(value, bool)
    return is_numeric and math.isfinite(value)


def series(rows: Sequence[Mapping[str, Any]], *keys: str) -> tuple[list[float], list[float]]:
    """Steps and values of one number over all rows, NaN in those that lack it."""
    values = [at(row, *keys) for row in rows]
    steps = [row["step"] for row in rows]
    return steps, [value if is_number(value) else math.nan for value in values]


def names(rows: Sequence[Mapping[str, Any]], *keys: str) -> list[str]:
    """Names of the numbers below `keys` in any of the rows, in order of first appearance."""
    found: dict[str, None] = {}
    for row in rows:
        found |= dict.fromkeys(numbers(at(row, *keys) if keys else row))
    return list(found)


def phase_segments(record: Record) -> list[Segment]:
    """When each phase ran, from the switches; one segment where there was none."""
    switches = record.rows["switch"]
    segments: list[Segment] = []
    start, phase = 0, _first_phase(record)
    for row in switches:
        segments.append(Segment(start, row["step"], phase))
        start, phase = row["step"], str(at(row, "to"))
    segments.append(Segment(start, max(record.num_steps, start), phase))
    return [one for one in segments if one.end > one.start]


def phase_steps(record: Record) -> dict[str, int]:
    """Steps of each phase that ran."""
    counts: dict[str, int] = {}
    for one in phase_segments(record):
        counts[one.phase] = counts.setdefault(one.phase, 0) + one.end - one.start
    told = numbers(at(record.summary, "phases"))
    return {phase: int(told[phase]) for phase in told if told[phase]} or counts


def error_thresholds(record: Record) -> dict[str, float]:
    """l_min and l_max of a threshold schedule, shares of one; empty for any other schedule."""
    schedule = at(record.config, "schedule")
    if at(schedule, "kind") != "threshold":
        return {}
    known = numbers(schedule)
    return {name: known[name] for name in ("l_min", "l_max") if name in known}


def gallery_steps(record: Record, most: int, kind: str = "gallery") -> list[tuple[int, Path]]:
    """At most `most` galleries with their steps, evenly spaced, the first and last among them.

    Args:    kind: the folder of the run that holds them. Files that are no whole PNG are left out.
    """
    files = sorted((record.folder / kind).glob("step_*.png"))
    found = [(int(f.stem[5:]), f) for f in files if f.stem[5:].isdecimal() and _is_png(f)]
    return evenly(found, most)


def evenly(found: Sequence[Any], most: int) -> list[Any]:
    """At most `most` of what was found, evenly spaced, the first and last among them."""
    if len(found) <= most:
        return list(found)
    return [found[round(i * (len(found) - 1) / (most - 1))] for i in range(most)]


def recipe(record: Record) -> dict[str, str]:
    """What each part of the run is: its `kind` or `name` in the configuration."""
    parts = {}
    for key, value in record.config.items():
        told = [_identity(one) for one in (value if isinstance(value, list) else [value])]
        if any(told):
            parts[key.replace("_", " ")] = " + ".join(filter(None, told))
    return parts


def warnings(record: Record) -> list[tuple[str, int, int]]:
    """Each different warning with its first step and how often it was given."""
    first: dict[str, int] = {}
    counts: dict[str, int] = {}
    for row in record.rows["warning"]:
        text = str(at(row, "text"))
        first.setdefault(text, row["step"])
        counts[text] = counts.setdefault(text, 0) + 1
    return [(text, step, counts[text]) for text, step in first.items()]


def _is_png(path: Path) -> bool:
    """Whether a file begins and ends as a PNG does."""
    try:
        with path.open("rb") as file:
            start = file.read(8)
            file.seek(-12, os.SEEK_END)
            return start == b"\x89PNG\r\n\x1a\n" and file.read()[4:8] == b"IEND"
    except OSError:
        return False


def _identity(table: object) -> str:
    texts = (at(table, "kind"), at(table, "name"))
    return next((text for text in texts if isinstance(text, str)), "")


def _first_phase(record: Record) -> str:
    told = [at(row, "from") for row in record.rows["switch"][:1]]
    told += [at(row, "phase") for row in record.rows["train"][:1]]
    return next((phase for phase in told if isinstance(phase, str)), Phase.STUDENT.value)


def _read_rows(log: Path) -> tuple[dict[str, list[dict[str, Any]]], int]:
    """Rows by kind, and how many lines could not be read.

    A run that was resumed may tell a step twice: the later row stands.
    """
    latest: dict[tuple[str, int, str], dict[str, Any]] = {}
    unreadable: list[int] = []
    lines = log.read_bytes().split(b"\n")
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        row = _parse(line)
        if row is None:
            unreadable.append(number)
            continue
        text = str(row["text"]) if row["kind"] == "warning" and "text" in row else ""
        latest[row["kind"], row["step"], text] = row
    ordered = sorted(latest.values(), key=lambda row: row["step"])
    rows = {kind: [row for row in ordered if row["kind"] == kind] for kind in _ROW_KINDS}
    return rows, sum(number < len(lines) - 1 for number in unreadable)


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    is_row = isinstance(at(row, "kind"), str) and is_number(at(row, "step"))
    return row if is_row else None
