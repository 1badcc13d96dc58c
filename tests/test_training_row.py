import time

import torch

from hard_fast.config import RunConfig
from hard_fast.journal import Journal
from hard_fast.metrics import Meter
from hard_fast.runtime.clock import Clock
from hard_fast.runtime.configfile import Source, parse
from hard_fast.runtime.dist import World
from hard_fast.runtime.rows import read_rows
from hard_fast.trainer import Trainer
from hard_fast.training_row import TrainingRow
from hard_fast.types import Phase


def test_who_waits_for_data_is_told_and_no_row_says_so(tiny_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("hard_fast.data.waiting._LONG_S", 0.05)
    config = parse(RunConfig, Source(tiny_run, {}))
    engine = Trainer(config, World(0, 1, torch.device("cpu"))).engine
    meter, clock, place = Meter(), Clock(), {"num_steps": 9, "first_step": 0}
    row = TrainingRow(engine, meter, clock, 4)
    with Journal(tmp_path, **place, use_tensorboard=False) as journal:
        for step in (2, 4, 6):
            time.sleep(0.06)
            clock.count(1, 0.05)
            meter.add(Phase.STUDENT, {"loss": torch.tensor(1.0)})
            row.begin(journal, step, Phase.STUDENT)
    assert capsys.readouterr().err.count("step 4: ") == 1
    assert {row["kind"] for row in read_rows(tmp_path / "metrics.jsonl")} == {"train"}


def test_a_row_is_written_late_and_once_and_says_what_was_skipped(tiny_run, tmp_path):
    config = parse(RunConfig, Source(tiny_run, {}))
    engine = Trainer(config, World(0, 1, torch.device("cpu"))).engine
    meter, place = Meter(), {"num_steps": 9, "first_step": 0, "use_tensorboard": False}
    row = TrainingRow(engine, meter, Clock(), 4)
    with Journal(tmp_path, **place) as journal:
        for loss, is_bad in ((1.0, False), (torch.nan, True), (2.0, False)):
            meter.add(Phase.STUDENT, {"loss": torch.tensor(loss)}, torch.tensor(is_bad))
        assert not row.is_due(9)
        row.begin(journal, 2, Phase.STUDENT)
        assert not row.is_due(5) and row.is_due(6)
        row.write(journal)
        row.write(journal)
        meter.add(Phase.STUDENT, {"loss": torch.tensor(4.0)}, torch.tensor(False))
        row.begin(journal, 6, Phase.STUDENT)
        row.forget()
        row.write(journal)
    found = read_rows(tmp_path / "metrics.jsonl")
    assert [(one["kind"], one["step"]) for one in found] == [("train", 2), ("warning", 2)]
    assert found[0]["student"] == {"steps": 3, "skipped": 1, "loss": 1.5}
    assert found[0]["lr"] == {"student": 1e-3, "augmentor": 0.01} and found[0]["epoch"] == 0.5
