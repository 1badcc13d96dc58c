"""What compression cost and brought: a row for the teacher, the student and each file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from hard_fast.export.files import Shipped, write_json
from hard_fast.export.measures import BATCH_SIZES
from hard_fast.runtime.files import write_atomic

_MIB = 2**20
# Points of accuracy below the student that are told in words.
_NOTABLE_LOSS = 0.5


def network_row(
    name: str,
    costs: Mapping[str, int],
    shipped: Shipped | None,
    times: Mapping[str, Mapping[str, float]],
    scores: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    """One row of the report.

    Args:    costs: of the bare network, as `count_costs` has them.
             shipped: the file; None: the network in memory, in fp32, run by torch.
             times: by size of batch, of a call. scores: by suite.
    """
    row = {"name": name, "file": None, "runtime": "torch", **costs, "parity": None, "moved": None}
    if shipped is not None:
        row |= {"file": shipped.path.name, "bytes": shipped.path.stat().st_size}
        row |= {"runtime": shipped.runtime, "parity": shipped.parity, "moved": shipped.moved}
    return row | {"latency": times, "suites": scores}


def write_report(tree: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write export.json and export.md into the folder."""
    data = write_json(folder / "export.json", tree)
    return [data, write_atomic(folder / "export.md", _markdown(tree))]


def report_table(tree: Mapping[str, Any]) -> Table:
    """The report as a terminal shows it."""
    head, body = _cells(tree, is_brief=True)
    table = Table(title=f"{tree['model']}: {_conditions(tree)}", padding=(0, 0, 0, 1))
    for i, title in enumerate(head):
        # Two words a line: a table of many suites is to fit a terminal.
        table.add_column(title.replace("_", " "), justify="right" if i else "left", no_wrap=not i)
    for row in body:
        table.add_row(*row)
    return table


def _cells(tree: Mapping[str, Any], *, is_brief: bool = False) -> tuple[list[str], list[list[str]]]:
    """The titles of the columns and the texts of the rows; brief: no agreement, no p95."""
    rows = tree["rows"]
    suites = list(dict.fromkeys(name for row in rows for name in row["suites"]))
    compared = suites if tree["teacher"] and not is_brief else []
    head = ["", "params, M", "MFLOPs", "MiB"]
    head += [f"ms at {size}{'' if is_brief else ', p50 / p95'}" for size in BATCH_SIZES]
    head += [f"{suite} {_score_of(tree, suite)}" for suite in suites]
    head += [f"{suite} agreement" for suite in compared]
    head += ["off by"]
    body = []
    for row in rows:
        cells = [row["name"], f"{row['parameters'] / 1e6:.4g}", f"{row['flops'] / 1e6:.4g}"]
        cells += [f"{row['bytes'] / _MIB:.3g}"]
        for size in BATCH_SIZES:
            time = row["latency"][str(size)]
            tail = "" if is_brief else f" / {time['p95_ms']:.3g}"
            cells.append(f"{time['p50_ms']:.3g}{tail}")
        cells += [_score(row, suite, _score_of(tree, suite)) for suite in suites]
        cells += [_score(row, suite, "agreement") for suite in compared]
        cells += ["-" if row["parity"] is None else f"{row['parity']['worst']:.0e}"]
        body.append(cells)
    return head, body


def _markdown(tree: Mapping[str, Any]) -> str:
    head, body = _cells(tree)
    lines = [f"# {tree['model']}", "", f"{_conditions(tree)}.", ""]
    lines += [_line(head), _line(["---", *["---:"] * (len(head) - 1)])]
    lines += map(_line, body)
    lines += [
        "",
        "Scores are in percent; of a corrupted suite, the mean over corruptions and severities. "
        "FLOPs are additions and multiplications for one image. MiB are those of the file, or of "
        "the weights in memory. Off by: the largest difference between the file in its runtime "
        "and what it was written from, as a share of the largest output, in batches of 1, 3 and "
        "32; an int8 file is held against the int8 network.",
    ]
    if any("pt2 int8" in row["name"] for row in tree["rows"]):
        lines += [
            "",
            "An int8 .pt2 holds int8 weights; run as it is, torch rounds as int8 would and "
            "computes in floating point. The int8 .onnx runs on int8 kernels.",
        ]
    student = next(row for row in tree["rows"] if row["name"] == "student")
    if student["packed_bytes"] < student["bytes"]:
        lines += [
            "",
            "The student has binary weights. With one bit for each it would take "
            f"{student['packed_bytes'] / _MIB:.3g} MiB; no file here is packed so. Operations on "
            "their signs count as 1/64.",
        ]
    lines += [f"\n{text}" for text in _falls(tree)]
    for method, notes in tree["int8"].items():
        told = ", ".join(f"{key} {_told(value)}" for key, value in notes.items())
        lines += ["", f"int8 {method}: {told}."]
    for kind, title in (("failures", "Not written"), ("gaps", "Not evaluated")):
        if tree[kind]:
            lines += ["", f"{title}:", ""]
            lines += [f"- {name}: {reason}" for name, reason in tree[kind].items()]
    return "\n".join(lines) + "\n"


def _falls(tree: Mapping[str, Any]) -> list[str]:
    """A sentence for each file and suite that lost accuracy."""
    student = next(row for row in tree["rows"] if row["name"] == "student")
    found = []
    for row in tree["rows"]:
        for suite, own in row["suites"].items() if row["file"] else ():
            name = _score_of(tree, suite)
            lost = student["suites"][suite][name] - own[name]
            if lost > _NOTABLE_LOSS:
                found.append(f"{row['name']} loses {lost:.2f} points on {suite}.")
    return found


def _conditions(tree: Mapping[str, Any]) -> str:
    threads, limit = tree["threads"], tree["limit"]
    said = f"{tree['versions']['device']}, {threads} thread{'s' if threads > 1 else ''}"
    return said if limit is None else f"{said}, {limit} samples of each test set"


def _score_of(tree: Mapping[str, Any], suite: str) -> str:
    """The score that a column shows: the accuracy the suite is known for."""
    found = next(row["suites"][suite] for row in tree["rows"] if suite in row["suites"])
    return "top1" if "top1" in found else "real"


def _score(row: Mapping[str, Any], suite: str, name: str) -> str:
    value = row["suites"][suite][name] if name in row["suites"][suite] else None
    return "-" if value is None else f"{value:.2f}"


def _told(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
