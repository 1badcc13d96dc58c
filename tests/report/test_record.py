import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from hard_fast.report.figures import Segment
from hard_fast.report.record import (
    Record,
    at,
    error_thresholds,
    gallery_steps,
    is_number,
    names,
    phase_segments,
    phase_steps,
    read_json,
    read_record,
    recipe,
    series,
    warnings,
)

MakeRun = Callable[..., Path]


def _write(run_dir: Path, rows: list[dict], end: str = "\n") -> Record:
    run_dir.mkdir(exist_ok=True)
    text = "\n".join(json.dumps(row) for row in rows)
    (run_dir / "metrics.jsonl").write_text(text + end)
    return read_record(run_dir)


def test_a_directory_without_metrics_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"metrics\.jsonl: no such file") as caught:
        read_record(tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_only_a_torn_last_line_is_passed_over_in_silence(tmp_path: Path) -> None:
    row = {"kind": "train", "step": 1}
    record = _write(tmp_path, [row], end='\n{"kind":"train","st')
    assert (record.rows["train"], record.num_unreadable) == ([row], 0)
    (tmp_path / "metrics.jsonl").write_bytes(b'{"kind":"tr\n[1]\n{"kind":"eval","step":2}\n\xc3')
    record = read_record(tmp_path)
    assert record.rows["eval"] == [{"kind": "eval", "step": 2}]
    assert record.num_unreadable == 2


def test_rows_told_twice_after_a_resume_count_once(tmp_path: Path) -> None:
    told = [(10, 0.3), (20, 0.2), (30, 0.1), (20, 0.25), (30, 0.15), (25, 0.2)]
    rows = [{"kind": "train", "step": step, "student": {"loss": loss}} for step, loss in told]
    record = _write(tmp_path, rows)
    steps, losses = series(record.rows["train"], "student", "loss")
    assert (steps, losses) == ([10, 20, 25, 30], [0.3, 0.25, 0.2, 0.15])


def test_series_mark_rows_that_lack_the_number(tmp_path: Path) -> None:
    rows = [{"kind": "train", "step": 1, "student": {"loss": 0.5, "kl": 1.0}}]
    rows += [{"kind": "train", "step": 2, "augmentor": {"loss": -1.0}}]
    record = _write(tmp_path, rows)
    steps, losses = series(record.rows["train"], "student", "loss")
    assert steps == [1, 2]
    assert [is_number(value) for value in losses] == [True, False]
    assert names(record.rows["train"], "student") == ["loss", "kl"]


def test_segments_follow_the_switches_to_the_last_step(tmp_path: Path) -> None:
    rows = [
        {"kind": "switch", "step": 120, "from": "student", "to": "augmentor", "reason": "low"},
        {"kind": "switch", "step": 123, "from": "augmentor", "to": "student", "reason": "high"},
        {"kind": "train", "step": 200, "phase": "student"},
    ]
    record = _write(tmp_path, rows)
    assert phase_segments(record) == [
        Segment(0, 120, "student"),
        Segment(120, 123, "augmentor"),
        Segment(123, 200, "student"),
    ]
    assert phase_steps(record) == {"student": 197, "augmentor": 3}
    (tmp_path / "summary.json").write_text('{"steps": 250, "phases": {"student": 244, "joint": 0}}')
    record = read_record(tmp_path)
    assert record.num_steps == 250
    assert phase_segments(record)[-1] == Segment(123, 250, "student")
    assert phase_steps(record) == {"student": 244}


def test_a_run_without_switches_has_the_one_phase_it_logs(tmp_path: Path) -> None:
    assert phase_segments(_write(tmp_path, [{"kind": "train", "step": 9, "phase": "joint"}])) == [
        Segment(0, 9, "joint")
    ]
    (tmp_path / "metrics.jsonl").write_text("")
    assert phase_segments(read_record(tmp_path)) == []


def test_thresholds_and_recipe_come_from_the_configuration(make_run: MakeRun, tmp_path: Path):
    run_dir = make_run(tmp_path / "run", num_steps=100)
    record = read_record(run_dir)
    assert error_thresholds(record) == {"l_min": 0.05, "l_max": 0.4}
    assert recipe(record) == {
        "data": "mnist",
        "teacher": "mnist_cnn",
        "student": "mnist_mlp",
        "augmentor": "affine",
        "objective": "hard",
        "schedule": "threshold",
    }
    text = '[schedule]\nkind = "joint"\nl_min = 0.1\n'
    text += '[[augment]]\nkind = "flip"\n[[augment]]\nkind = "mix"\n'
    (run_dir / "config.toml").write_text(text)
    record = read_record(run_dir)
    assert error_thresholds(record) == {}
    assert recipe(record)["augment"] == "flip + mix"
    (run_dir / "config.toml").write_text("no = = toml")
    record = read_record(run_dir)
    assert (record.config, record.config_text) == ({}, "no = = toml")


def test_galleries_are_evenly_spaced_with_both_ends(tmp_path: Path) -> None:
    record = _write(tmp_path, [])
    (tmp_path / "gallery").mkdir()
    for step in range(0, 1100, 100):
        Image.new("L", (1, 1)).save(tmp_path / "gallery" / f"step_{step:08d}.png")
    (tmp_path / "gallery" / "step_best.png").touch()
    assert [step for step, _ in gallery_steps(record, 3)] == [0, 500, 1000]
    assert len(gallery_steps(record, 8)) == len(set(gallery_steps(record, 8))) == 8
    assert len(gallery_steps(record, 20)) == 11


def test_pictures_that_are_not_whole_are_left_out(tmp_path: Path) -> None:
    record = _write(tmp_path, [])
    folder = tmp_path / "patches"
    folder.mkdir()
    for step in range(3):
        Image.new("L", (9, 9)).save(folder / f"step_{step}.png")
    whole = (folder / "step_1.png").read_bytes()
    (folder / "step_1.png").write_bytes(whole[:-3])
    (folder / "step_2.png").write_bytes(b"GIF89a.." + whole[8:])
    (folder / "step_3.png").touch()
    (folder / "step_4.png").mkdir()
    assert gallery_steps(record, 8, "patches") == [(0, folder / "step_0.png")]
    assert gallery_steps(record, 8) == []


def test_equal_warnings_are_told_once(tmp_path: Path) -> None:
    told = [(1, "a"), (2, "b"), (3, "a")]
    rows = [{"kind": "warning", "step": step, "text": text} for step, text in told]
    assert warnings(_write(tmp_path, rows)) == [("a", 1, 2), ("b", 2, 1)]


def test_json_files_that_cannot_serve_are_named(tmp_path: Path) -> None:
    path = tmp_path / "study.json"
    with pytest.raises(ValueError, match=r"study\.json: no such file"):
        read_json(path)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"study\.json: not valid JSON"):
        read_json(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"study\.json: holds a list"):
        read_json(path)


def test_at_stops_where_a_key_is_absent() -> None:
    tree = {"a": {"b": 0}, "c": 5}
    assert (at(tree, "a", "b"), at(tree, "a", "x"), at(tree, "c", "b")) == (0, None, None)
    assert [is_number(x) for x in (0, 1.5, True, None, "1", float("inf"))] == [
        True,
        True,
        False,
        False,
        False,
        False,
    ]
