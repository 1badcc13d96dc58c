import json
import os
import sys
from pathlib import Path

import pytest

from hard_fast.journal import Journal, MetricsLog, ProgressLine
from hard_fast.runtime.rows import read_rows


def test_rows_after_the_resume_step_are_cut_and_a_torn_line_too(tmp_path):
    log = MetricsLog(tmp_path, resume_step=0, use_tensorboard=False)
    for step in (1, 2, 3):
        log.write({"kind": "eval", "step": step, "top1": 50.0})
    log.close()
    with log.path.open("a") as file:
        file.write('{"kind": "eval", "st')
    MetricsLog(tmp_path, resume_step=2, use_tensorboard=False).close()
    assert [row["step"] for row in read_rows(log.path)] == [1, 2]
    MetricsLog(tmp_path, resume_step=0, use_tensorboard=False).close()
    assert read_rows(log.path) == []


def test_what_is_no_number_is_written_as_null(tmp_path):
    log = MetricsLog(tmp_path, resume_step=0, use_tensorboard=False)
    log.write({"kind": "train", "step": 1, "student": {"loss": float("nan")}})
    log.close()
    assert json.loads(log.path.read_text())["student"]["loss"] is None


def test_tensorboard_gets_scalars_texts_and_pictures(tmp_path):
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    log = MetricsLog(tmp_path, resume_step=0, use_tensorboard=True)
    log.write({"kind": "train", "step": 3, "lr": {"student": 0.5}, "phase": "student"})
    log.write({"kind": "switch", "step": 3, "reason": "why"})
    log.picture("augmented", tmp_path / "a.png", 3)
    log.close()
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert board.Scalars("lr/student")[0].value == 0.5
    assert (
        board.Tags()["images"] == ["augmented"] and "switch/text_summary" in board.Tags()["tensors"]
    )


def test_progress_prints_a_line_per_evaluation_where_there_is_no_terminal(capsys):
    timing = {"images_per_s": 1234.0, "data_wait": 0.25, "seconds": 1.0}
    train = {"kind": "train", "step": 5, "phase": "student", "student": {"loss": 0.5, "error": 0.1}}
    with ProgressLine(10, is_shown=True) as progress:
        progress.update(train | {"timing": timing})
        progress.update({"kind": "switch", "step": 5})
        progress.update(
            {"kind": "eval", "step": 6, "epoch": 1.5, "val_top1": 97.125, "val_nll": 1.0}
        )
    line = capsys.readouterr().err
    for words in (
        "step 6",
        "loss 0.5",
        "error 0.1",
        "1,234 images/s (25% waiting",
        "val_top1 97.12",
    ):
        assert words in line
    assert "nll" not in line


def test_other_processes_say_nothing(capsys):
    with ProgressLine(10, is_shown=False) as progress:
        progress.say("hello")
    assert capsys.readouterr() == ("", "")


def test_a_journal_writes_and_warns_on_the_main_process_only(tmp_path, capsys):
    for is_main in (True, False):
        folder = tmp_path / str(is_main)
        folder.mkdir()
        settings = {"num_steps": 3, "first_step": 0, "use_tensorboard": False}
        with Journal(folder, **settings, is_main=is_main) as journal:
            journal.write("warning", 2, 0.5, {"text": "look out"})
        said = capsys.readouterr().err
        assert (folder / "metrics.jsonl").exists() == is_main
        assert ("warning, step 2: look out" in said) == is_main
    row = {"kind": "warning", "step": 2, "epoch": 0.5, "text": "look out"}
    assert read_rows(tmp_path / "True" / "metrics.jsonl") == [row]


def test_a_run_that_goes_back_cuts_its_rows_and_writes_on(tmp_path):
    with Journal(tmp_path, num_steps=9, first_step=0, use_tensorboard=True) as journal:
        for step in (0, 2, 4):
            journal.write("warning", step, 0.5, {"text": "old"})
        journal.cut(2)
        journal.write("warning", 3, 0.5, {"text": "new"})
        journal.cut(0)
        journal.write("warning", 0, 0.5, {"text": "newest"})
    found = read_rows(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["text"]) for row in found] == [(0, "old"), (0, "newest")]


def closed_pipe(mode):
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, mode)


@pytest.mark.parametrize("nowhere", [closed_pipe, Path("/dev/full").open])
def test_nobody_who_listens_is_no_error(nowhere, monkeypatch):
    stream = nowhere("w")
    monkeypatch.setattr(sys, "stderr", stream)
    with ProgressLine(10, is_shown=True) as progress:
        progress.say("anybody there?")
        progress.say("no?")
    with pytest.raises(OSError):
        stream.close()
