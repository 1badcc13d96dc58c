"""The table of an evaluation: a row per suite and score, for a terminal and for a page."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Group
from rich.table import Table
from rich.text import Text

from hard_fast.report.record import at, read_json
from hard_fast.report.wording import count, label, score

_FILE_NAME = "evaluation.json"


class Line(NamedTuple):
    """One score of one suite; a suite that could not be evaluated has a reason instead."""

    suite: str
    score: str
    student: str
    teacher: str
    paper: str
    gap: str = ""


def evaluation_lines(tree: Mapping[str, Any]) -> Iterator[Line]:
    """The rows of the table, suites without data last.

    Args:    tree: what evaluation.json holds.
    """
    suites, gaps = at(tree, "suites") or {}, at(tree, "gaps") or {}
    theirs, paper = at(tree, "teacher", "suites"), at(tree, "paper", "suites")
    for suite, found in suites.items():
        names = dict.fromkeys([*found, *(at(paper, suite) or {})])
        for name in names:
            values = (at(scores, suite, name) for scores in (suites, theirs, paper))
            yield Line(suite, label(name), *(score(name, value) for value in values))
    for suite, reason in gaps.items():
        told = at(paper, suite) or {}
        numbers = ", ".join(f"{label(name)} {score(name, told[name])}" for name in told)
        dash = score("", None)
        yield Line(suite, "no data", dash, dash, numbers or dash, str(reason))


def evaluation_note(tree: Mapping[str, Any]) -> str:
    """On how many samples, where not on all; else nothing."""
    limit = at(tree, "limit")
    return f"On at most {count(limit)} samples of each part, the same ones always." if limit else ""


def evaluation_table(tree: Mapping[str, Any]) -> Group:
    """The student, its teacher and the paper's row side by side, and below why suites are missing.

    Args:    tree: what evaluation.json holds.
    """
    has_teacher, has_paper = bool(at(tree, "teacher")), bool(at(tree, "paper"))
    note = evaluation_note(tree)
    # As Text, for brackets in a name are no markup.
    table = Table(title=Text("\n".join(filter(None, (str(at(tree, "model")), note)))))
    table.add_column("suite", overflow="fold")
    table.add_column("score", no_wrap=True)
    table.add_column("student", justify="right", no_wrap=True)
    if has_teacher:
        table.add_column("teacher", justify="right", no_wrap=True)
    if has_paper:
        table.add_column(Text(str(at(tree, "paper", "row"))), justify="right", style="dim")
    last = ""
    for line in evaluation_lines(tree):
        cells = [line.suite if line.suite != last else "", line.score, line.student]
        cells += [line.teacher] * has_teacher + [line.paper] * has_paper
        table.add_row(*map(Text, cells), style="yellow" if line.gap else None)
        last = line.suite
    gaps = at(tree, "gaps") or {}
    return Group(table, *(Text(f"{suite}: {reason}") for suite, reason in gaps.items()))


def evaluation_of(run_dir: Path) -> dict[str, Any] | None:
    """What the page of a run shows of its evaluation; None where there was none.

    Raises:  ValueError if evaluation.json holds something else.
    """
    path = run_dir / _FILE_NAME
    if not path.is_file():
        return None
    tree = read_json(path)
    return {
        "lines": list(evaluation_lines(tree)),
        "teacher": at(tree, "teacher", "model"),
        "paper": at(tree, "paper", "row"),
        "note": evaluation_note(tree),
    }
