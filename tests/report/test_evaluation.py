import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from hard_fast.report.evaluation import (
    evaluation_lines,
    evaluation_of,
    evaluation_table,
)
from hard_fast.report.page import write_run_report

TREE = {
    "model": "runs/[bold]one",
    "suites": {
        "cifar10": {"top1": 93.39, "nll": None},
        "cifar10+corrupted": {"top1": 70.0, "fog_error": 12.5},
    },
    "gaps": {"usps": "no usps.h5 in /data", "imagenet_c": "no imagenet-c"},
    "teacher": {"model": "cnn", "suites": {"cifar10": {"top1": 95.0}}},
    "paper": {"row": "R18 KD", "suites": {"cifar10": {"top1": 84.4}, "imagenet_c": {"mce": 69.2}}},
    "limit": 1000,
}


def text(tree: dict) -> str:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(evaluation_table(tree))
    return console.export_text()


def test_each_score_is_a_line_with_teacher_and_paper_beside():
    lines = {(line.suite, line.score): line for line in evaluation_lines(TREE)}
    top1 = lines["cifar10", "top-1 (%)"]
    assert (top1.student, top1.teacher, top1.paper) == ("93.39", "95.00", "84.40")
    assert lines["cifar10", "nll"].student == "\u2013"
    fog = lines["cifar10+corrupted", "fog error (%)"]
    assert (fog.student, fog.teacher, fog.paper) == ("12.50", "\u2013", "\u2013")
    assert lines["usps", "no data"].gap == "no usps.h5 in /data"
    assert lines["imagenet_c", "no data"].paper == "mce (%) 69.20"


def test_the_terminal_shows_gaps_with_their_reasons_and_the_limit():
    shown = text(TREE)
    assert "usps: no usps.h5 in /data" in shown and "at most 1,000 samples" in shown
    assert "teacher" in shown and "R18 KD" in shown and "runs/[bold]one" in shown
    alone = text({"model": "m", "suites": {"cifar10": {"top1": 1.0}}, "gaps": {}})
    assert "teacher" not in alone and "samples" not in alone and "paper" not in alone


def test_the_page_of_a_run_shows_its_evaluation(make_run: Callable[..., Path], tmp_path: Path):
    run_dir = make_run(tmp_path / "seed0")
    assert "<h2>Evaluation</h2>" not in write_run_report(run_dir).read_text()
    (run_dir / "evaluation.json").write_text(json.dumps(TREE))
    page = write_run_report(run_dir).read_text()
    assert page.count("<h2>Evaluation</h2>") == 1 and "no usps.h5 in /data" in page
    table = page.split('<table class="evaluation">')[1].split("</table>")[0]
    assert table.count("93.39") == table.count("95.00") == table.count("84.40") == 1
    # A suite is named once, at the first of its rows.
    assert table.count('<th scope="row">cifar10</th>') == 1 and table.count("<tr>") == 7


def test_a_damaged_file_is_named(tmp_path: Path):
    assert evaluation_of(tmp_path) is None
    (tmp_path / "evaluation.json").write_text("[")
    with pytest.raises(ValueError, match="evaluation.json: not valid JSON"):
        evaluation_of(tmp_path)
