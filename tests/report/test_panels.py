import json
from collections.abc import Callable
from pathlib import Path

from hard_fast.report.panels import (
    galleries,
    learning_panels,
    more_panels,
    phase_strip,
    score_panels,
)
from hard_fast.report.record import Record, read_record

MakeRun = Callable[..., Path]


def _record(run_dir: Path, rows: list[dict]) -> Record:
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_record(run_dir)


def test_scores_are_grouped_by_unit_accuracies_first(make_run: MakeRun, tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", num_steps=100)
    log = run_dir / "metrics.jsonl"
    log.write_text('{"kind": "eval", "step": 1, "val_loss": 2.0}\n' + log.read_text())
    accuracy, loss = score_panels(read_record(run_dir))
    assert (accuracy.title, loss.title) == ("Evaluation: top-1 (%)", "Evaluation: loss")
    for text in (">val 9", ">centered 9", ">shifted 6", ">teacher centered 99.41<"):
        assert text in accuracy.svg
    assert "Dashed" in accuracy.note
    assert ">val 0." in loss.svg
    assert loss.note == ""


def test_a_metric_that_few_evaluations_have_is_one_line(tmp_path: Path) -> None:
    rows = [{"kind": "eval", "step": step, "mse": 1.0 + step} for step in range(1, 120)]
    for row in rows[::2]:
        row["slow_nll"] = 2.0
    nll = score_panels(_record(tmp_path, rows))[1]
    assert nll.title == "Evaluation: nll"
    # No gap, so of 60 points none needs a mark of its own: marks are of the axes only.
    assert nll.svg.count("<use ") == score_panels(_record(tmp_path, rows))[0].svg.count("<use ")


def test_learning_shows_error_thresholds_and_each_loss(make_run: MakeRun, tmp_path: Path) -> None:
    panels = learning_panels(read_record(make_run(tmp_path / "run", num_steps=400)))
    assert [panel.title for panel in panels] == [
        "Error on the training inputs (%)",
        "Loss of the student",
        "Loss of the augmentor",
    ]
    for text in (">l_min 5 %<", ">l_max 40 %<", ">student phase ", ">augmentor phase "):
        assert text in panels[0].svg
    assert "var(--student)" in panels[1].svg
    assert "var(--augmentor)" in panels[2].svg


def test_a_regression_shows_its_error_as_it_is(tmp_path: Path) -> None:
    rows = [{"kind": "train", "step": 5, "phase": "joint", "joint": {"loss": 1.0, "error": 3.25}}]
    rows += [{"kind": "eval", "step": 5, "mse": 2.0}]
    error, loss = learning_panels(_record(tmp_path, rows))
    assert error.title == "Error on the training inputs"
    assert ">joint phase 3.25<" in error.svg
    assert loss.title == "Joint loss"


def test_every_other_number_has_a_curve(make_run: MakeRun, tmp_path: Path) -> None:
    panels = more_panels(read_record(make_run(tmp_path / "run", num_steps=400)))
    assert [panel.title for panel in panels] == [
        "Learning rate: student",
        "Learning rate: augmentor",
        "Augmentor phase: kl_student",
        "Augmentor phase: kl_teacher",
        "Augmentor phase: teacher_change",
        "Images per second",
        "Share of the time spent waiting for data",
    ]
    assert ">1.2 %<" in panels[-1].svg


def test_the_strip_tells_steps_and_switches(make_run: MakeRun, tmp_path: Path) -> None:
    strip = phase_strip(read_record(make_run(tmp_path / "run", num_steps=2000)))
    assert strip["ticks"] == ["0", "500", "1,000", "1,500", "2,000"]
    assert strip["steps"] == [
        ("student", "1,820", "91\u00a0%"),
        ("augmentor", "180", "9\u00a0%"),
    ]
    first = strip["switches"][0]
    assert (first["step"], first["from"], first["to"]) == (240, "student", "augmentor")
    assert first["reason"].startswith("error 4.1 % below l_min")


def test_galleries_are_embedded(make_run: MakeRun, tmp_path: Path) -> None:
    record = read_record(make_run(tmp_path / "run", num_steps=2000, num_galleries=3))
    pictures = galleries(record, 2)
    assert [picture["caption"] for picture in pictures] == ["step 0", "step 2,000"]
    assert all(picture["uri"].startswith("data:image/png;base64,iVBOR") for picture in pictures)
