import io
import math

import pytest
from rich.console import Console

from hard_fast.report.table import row_statistics, study_table


def test_statistics_by_hand():
    runs = {"kd": [{"top1": 90.0}, {"top1": 94.0}], "one": [{"top1": 80.0, "nll": 1.0}], "none": []}
    found = row_statistics(runs, ["top1"])
    assert found["kd"]["top1"] == pytest.approx({"mean": 92.0, "sem": 2.0, "n": 2})
    assert found["one"] == {"top1": {"mean": 80.0, "sem": 0.0, "n": 1}} and found["none"] == {}
    three = row_statistics({"a": [{"m": 0.0}, {"m": 3.0}, {"m": 3.0}]}, ["m"])
    assert three["a"]["m"]["sem"] == pytest.approx(math.sqrt(3.0) / math.sqrt(3))


def shown(result):
    console = Console(width=100, file=io.StringIO())
    console.print(study_table(result))
    return console.file.getvalue()


def test_the_papers_number_stands_beside_ours_where_there_is_one():
    rows = {"kd": {"top1": {"mean": 92.0, "sem": 2.0, "n": 2}}, "hard": {}}
    result = {"study": "s", "rows": rows, "metrics": ["top1"], "paper": {"kd": {"top1": 67.9}}}
    text = shown(result)
    assert "92 +- 2 (2)" in text and "67.9" in text and "hard" in text
    assert "paper" not in shown(result | {"paper": {}})
