import json

import pytest
import torch

from hard_fast.metrics import Meter, MetricsLog, ProgressLine, read_rows
from hard_fast.types import Phase


def logs(**values):
    return {name: torch.tensor(value) for name, value in values.items()}


def test_meter_averages_per_phase_and_starts_anew():
    meter = Meter()
    meter.add(Phase.STUDENT, logs(loss=1.0, error=0.5))
    meter.add(Phase.STUDENT, logs(loss=3.0, error=0.0))
    meter.add(Phase.AUGMENTOR, logs(loss=-1.0))
    assert meter.means() == {
        "student": {"steps": 2, "loss": 2.0, "error": 0.25},
        "augmentor": {"steps": 1, "loss": -1.0},
    }
    assert meter.means() == {}


def test_meter_resumes_in_the_middle_of_a_window():
    meter, resumed = Meter(), Meter()
    meter.add(Phase.STUDENT, logs(loss=1.0))
    resumed.load_state_dict(meter.state_dict())
    resumed.add(Phase.STUDENT, logs(loss=2.0))
    assert resumed.means() == {"student": {"steps": 2, "loss": 1.5}}


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


@pytest.mark.gpu
def test_adding_does_not_wait_for_the_device():
    meter = Meter()
    values = {"loss": torch.ones((), device="cuda")}
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            meter.add(Phase.STUDENT, values)
    finally:
        torch.cuda.set_sync_debug_mode("default")
