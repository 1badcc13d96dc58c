import json

import pytest

from bench import compare


def row(p50, unit="ms", impl="hard_fast", **changes):
    where = {"device": "CPU", "threads": 2, "torch": "2.15.0", "commit": "abc"}
    what = {"bench": "step", "case": "KD", "impl": impl, "metric": "step", "unit": unit}
    return {**what, "p50": p50, **where, **changes}


def write(tmp_path, name, rows):
    path = tmp_path / name
    is_lines = path.suffix == ".jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) if is_lines else json.dumps(rows))
    return str(path)


def run(tmp_path, old, new, *options):
    paths = [write(tmp_path, "old.json", old), write(tmp_path, "new.json", new)]
    return compare.main([*paths, *options])


@pytest.mark.parametrize(
    ("unit", "is_lower_better"),
    [
        ("ms", True),
        ("cpu_ms", True),
        ("cpu_ms/image", True),
        ("bytes", True),
        ("flops", True),
        ("images/s", False),
        ("GB/s", False),
    ],
)
def test_the_unit_decides_which_way_is_worse(unit, is_lower_better, tmp_path, capsys):
    up = run(tmp_path, [row(100.0, unit)], [row(110.0, unit)])
    said = capsys.readouterr().out
    down = run(tmp_path, [row(100.0, unit)], [row(90.0, unit)])
    assert (up, down) == ((1, 0) if is_lower_better else (0, 1))
    assert ("10.0% WORSE" in said) == is_lower_better


def test_five_percent_are_let_pass_or_what_is_said(tmp_path, capsys):
    assert run(tmp_path, [row(100.0)], [row(104.9)]) == 0
    assert run(tmp_path, [row(100.0)], [row(105.1)]) == 1
    assert run(tmp_path, [row(100.0)], [row(105.1)], "--limit", "0.06") == 0
    assert run(tmp_path, [row(100.0)], [row(100.1)], "--limit", "0") == 1
    assert "1 compared, 1 worse by more than 0%" in capsys.readouterr().out


def test_a_rate_that_halves_takes_twice_the_time():
    (change,) = compare.compare([row(100.0, "images/s")], [row(50.0, "images/s")]).changes
    assert change.worse == 1.0
    (change,) = compare.compare([row(0.0)], [row(1.0)]).changes
    assert change.worse == float("inf")


def test_the_worst_comes_first_and_rows_alone_are_named(tmp_path, capsys):
    old = [row(10.0), row(10.0, impl="timm"), row(1.0, impl="gone"), row(1.0, "percent")]
    new = [row(11.0), row(13.0, impl="timm"), row(1.0, impl="new"), row(2.0, "percent")]
    found = compare.compare(old, new)
    assert [change.new["impl"] for change in found.changes] == ["timm", "hard_fast"]
    assert run(tmp_path, old, new) == 1
    said = capsys.readouterr().out
    assert "old.json: step: KD, gone" in said and "new.json: step: KD, new" in said
    assert "by its unit: step: KD, hard_fast, step (percent)" in said
    assert "2 compared, 2 worse" in said


@pytest.mark.parametrize("place", ["bench", "case", "impl", "metric", "device", "threads"])
def test_what_was_measured_elsewhere_is_no_counterpart(place):
    found = compare.compare([row(1.0)], [row(9.0, **{place: "another"})])
    assert not found.changes and len(found.only_old) == len(found.only_new) == 1


def test_of_json_lines_the_last_counts_and_scores_of_studies_do_not(tmp_path):
    score = {"bench": "study", "mean": 99.0}
    old = write(tmp_path, "old.jsonl", [score, row(50.0), row(100.0)])
    assert compare.main([old, write(tmp_path, "new.json", [row(101.0)])]) == 0
    assert compare.main([old, write(tmp_path, "new.json", [row(60.0)])]) == 0
    assert compare.main([write(tmp_path, "new.json", [row(60.0)]), old]) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read"),
        ("{", "is no JSON"),
        ('{"a": 1}', "is no list of rows"),
        ('[{"p50": 1, "bench": "step"}]', "a row lacks case"),
        ("[]", "no measurement in common"),
    ],
)
def test_what_cannot_be_compared_is_one_line(text, said, tmp_path, capsys):
    path = tmp_path / "bad.json"
    if text is not None:
        path.write_text(text)
    assert compare.main([str(path), write(tmp_path, "new.json", [])]) == 2
    error = capsys.readouterr().err
    assert said in error and error.startswith("error: ") and error.count("\n") == 1


def test_a_negative_limit_is_a_mistake(tmp_path, capsys):
    assert run(tmp_path, [row(1.0)], [row(1.0)], "--limit", "-1") == 2
    assert "--limit -1.0: must be at least 0" in capsys.readouterr().err
