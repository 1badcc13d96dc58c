"""What an evaluation found, as the JSON file that a table is made of."""

import json
from pathlib import Path
from typing import Any

from hard_fast.evals.published import paper_row
from hard_fast.evals.survey import Findings, Opened
from hard_fast.runtime.files import write_atomic
from hard_fast.runtime.rows import as_json

FILE_NAME = "evaluation.json"
"""Its name in the directory of a run."""


def result_tree(
    findings: Findings,
    opened: Opened,
    *,
    model: str,
    teacher: str | None,
    paper: str | None,
    limit: int | None,
    versions: dict[str, str],
) -> dict[str, Any]:
    """All of it as a tree: `suites` by suite and score, `parts` by suite, part and score, `gaps`.

    Args:    model, teacher: names of the networks.
             paper: the row of the paper that is to stand beside; its scores of these suites come
             along.
             limit: samples that each part was cut to; None: all were used.
    Raises:  ValueError with the nearest names if the paper has no such row.
    """
    tree: dict[str, Any] = {"model": model, "suites": findings.student, "gaps": opened.gaps}
    tree |= {"parts": findings.parts, "limit": limit, "teacher": None, "paper": None}
    tree["num"] = {
        suite: sum(part.num for part in loaded.parts.values())
        for suite, loaded in opened.suites.items()
    }
    if findings.teacher is not None:
        theirs = {"suites": findings.teacher, "parts": findings.teacher_parts}
        tree["teacher"] = {"model": teacher, **theirs}
    if paper is not None:
        asked = [*findings.student, *opened.gaps]
        row = paper_row(paper)
        told = {name: row[name] for name in asked if name in row}
        tree["paper"] = {"row": paper, "suites": told}
    return tree | {"versions": versions}


def check_place(path: Path) -> None:
    """Make the folder of a file that is to be written, before there is much to lose.

    Raises:  OSError if that cannot be; ValueError if the path itself is a folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise ValueError(f"{path}: a folder; name a file")


def write_result(tree: dict[str, Any], path: Path) -> Path:
    """Write the tree, with null for what is not a finite number."""
    return write_atomic(path, json.dumps(as_json(tree), indent=2) + "\n")
