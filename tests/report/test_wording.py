import pytest

from hard_fast.report.wording import count, duration, label, score, share


def test_labels_read_well_and_name_their_unit() -> None:
    assert label("centered_top1") == "centered top-1 (%)"
    assert label("val_top5", has_unit=False) == "val top-5"
    assert label("mse") == "mse"


def test_scores_have_the_digits_of_their_metric() -> None:
    assert score("val_top1", 97.1) == "97.10"
    assert score("mse", 0.0123456) == "0.01235"
    assert score("val_top1", 0.5, sign="+") == "+0.50"
    assert score("val_top1", -0.5, sign="+") == "\u22120.50"
    assert score("val_top1", None) == "\u2013"
    assert score("mse", float("nan")) == "not finite"


def test_counts_and_shares() -> None:
    assert [count(1234567), count(2.0), count(1234.5)] == ["1,234,567", "2", "1,234.50"]
    shares = [share(x).split("\u00a0") for x in (0.0, 0.00081, 0.0124, 0.4, 1.0)]
    assert shares == [["0", "%"], ["0.081", "%"], ["1.2", "%"], ["40", "%"], ["100", "%"]]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.5, "0.5 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min"),
        (200, "3 min 20 s"),
        (3599.7, "1 h"),
        (18_420, "5 h 7 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
