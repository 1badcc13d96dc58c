import io

import pytest
from rich.console import Console

from hard_fast.report.ranking import correlate, correlation_table, ranking_table, write_ranking

TREE = {
    "teacher": "net",
    "draws": 10,
    "originals_per_draw": 320,
    "rows": {
        "cutmix": {"t_stddev": 0.004, "low": 0.0035, "high": 0.0045},
        "mixup": {"t_stddev": 0.005, "low": 0.0045, "high": 0.0055},
        "flip": {"t_stddev": 0.006, "low": 0.0055, "high": 0.0065},
    },
    "differences": [
        {"of": "mixup", "from": "cutmix", "difference": 0.001, "low": 0.0005, "high": 0.0015},
        {"of": "flip", "from": "cutmix", "difference": 0.002, "low": 0.0015, "high": 0.0025},
        {"of": "flip", "from": "mixup", "difference": 0.001, "low": -0.0005, "high": 0.0025},
    ],
}


def study(*losses):
    rows = zip(TREE["rows"], losses, strict=False)
    return {"rows": {name: {"nll": {"mean": loss, "sem": 0.0, "n": 1}} for name, loss in rows}}


def text(table):
    console = Console(file=io.StringIO(), width=120)
    console.print(table)
    return console.file.getvalue()


def test_the_table_says_which_steps_lie_beyond_the_interval():
    shown = text(ranking_table(TREE))
    lines = [line for line in shown.splitlines() if "to" in line]
    assert [name for name in TREE["rows"] if name in shown]
    assert "4.000" in lines[0] and "3.500 to 4.500" in lines[0]
    assert "0.500 to 1.500" in lines[1] and "may be 0" not in lines[1]
    assert "-0.500 to 2.500 (may be 0)" in lines[2]
    assert "320 originals" in shown


@pytest.mark.parametrize(("name", "start"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml")])
def test_the_picture_is_written(tmp_path, name, start):
    write_ranking(tmp_path / name, TREE)
    assert (tmp_path / name).read_bytes().startswith(start)


def test_an_ending_of_no_picture_is_a_mistake(tmp_path):
    with pytest.raises(ValueError, match="not supported"):
        write_ranking(tmp_path / "a.nothing", TREE)


def test_correlations_by_hand():
    found = correlate(TREE, study(1.0, 1.5, 3.0), "nll")
    # x: -1 0 1; y: -5/6 -1/3 7/6 around their means; 2 / sqrt(2 * 13/6).
    assert found["pearson"]["r"] == pytest.approx(2 / (13 / 3) ** 0.5)
    assert found["spearman"]["r"] == pytest.approx(1.0) and found["pearson"]["num"] == 3
    # With three points t = r / sqrt(1 - r^2) has one degree of freedom: a Cauchy distribution.
    r = found["pearson"]["r"]
    t = r / (1 - r * r) ** 0.5
    from math import atan, pi

    assert found["pearson"]["p"] == pytest.approx(1 - 2 * atan(t) / pi, abs=1e-6)
    shown = text(correlation_table(found, "nll"))
    assert "pearson 0.961" in shown and "spearman 1.000" in shown and "flip" in shown


def test_two_rows_correlate_with_nothing():
    with pytest.raises(ValueError, match="2 of the ranked rows have 'nll'"):
        correlate(TREE, study(1.0, 1.5), "nll")
