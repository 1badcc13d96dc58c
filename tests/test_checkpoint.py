import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from hard_fast.checkpoint import BestWeights, Checkpointer

CPU = torch.device("cpu")


def test_parts_come_back_exactly(tmp_path):
    torch.manual_seed(0)
    layer, other = nn.Linear(3, 2), nn.Linear(3, 2)
    Checkpointer(tmp_path).save(5, {"layer": layer})
    Checkpointer(tmp_path).load(5, {"layer": other}, CPU)
    assert torch.equal(layer.weight, other.weight)


def test_the_newest_stay_and_the_rest_go(tmp_path):
    checkpointer = Checkpointer(tmp_path, keep=2)
    for step in (1, 2, 10):
        checkpointer.save(step, {})
    assert checkpointer.steps() == [10, 2] and checkpointer.newest() == 10
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("damage", ["cut", "flip", "no file", "no note", "torn note"])
def test_a_damaged_checkpoint_is_skipped_with_a_warning(tmp_path, damage, caplog):
    checkpointer = Checkpointer(tmp_path)
    for step in (1, 2):
        checkpointer.save(step, {"layer": nn.Linear(3, 2)})
    file = tmp_path / "step_000000002.pt"
    payload = file.read_bytes()
    match damage:
        case "cut":
            file.write_bytes(payload[: len(payload) // 2])
        case "flip":
            file.write_bytes(payload[:300] + bytes([payload[300] ^ 1]) + payload[301:])
        case "no file":
            file.unlink()
        case "no note":
            file.with_suffix(".json").unlink()
        case "torn note":
            file.with_suffix(".json").write_text('{"step": 2, "si')
    with caplog.at_level(logging.WARNING):
        assert checkpointer.newest() == 1
    if damage != "no note":
        assert "step_000000002.pt" in caplog.text
        with pytest.raises(ValueError, match="damaged"):
            checkpointer.load(2, {"layer": nn.Linear(3, 2)}, CPU)


class Shelf:
    """Numbers that are in use now, and those that were last asked to stay."""

    numbers: list[int] = []
    kept: set[int] | None = None

    def keep(self, numbers):
        self.kept = numbers


def test_entries_stay_as_long_as_a_checkpoint_on_disk_names_them(tmp_path):
    shelf = Shelf()
    checkpointer = Checkpointer(tmp_path, keep=2, entries=shelf)
    for step, numbers, kept in (
        (1, [0, 1], {0, 1}),
        (2, [0, 2], {0, 1, 2}),
        (3, [3, 2], {0, 2, 3}),
        (4, [3, 4], {2, 3, 4}),
    ):
        shelf.numbers = numbers
        checkpointer.save(step, {})
        assert shelf.kept == kept
    # One that is damaged does not count among the two, and keeps what it needs all the same.
    (tmp_path / "step_000000004.pt").write_bytes(b"torn")
    shelf.numbers = [5]
    checkpointer.save(5, {})
    assert checkpointer.steps() == [5, 4, 3] and shelf.kept == {2, 3, 4, 5}


@pytest.mark.parametrize(
    "note", ["torn", '{"step": 1, "size": 1, "sha256": "of an older version"}']
)
def test_no_entry_goes_while_it_is_not_known_what_a_checkpoint_needs(tmp_path, note):
    shelf = Shelf()
    Checkpointer(tmp_path).save(1, {})
    (tmp_path / "step_000000001.json").write_text(note)
    checkpointer = Checkpointer(tmp_path, keep=2, entries=shelf)
    checkpointer.save(2, {})
    assert shelf.kept is None
    checkpointer.save(3, {})
    assert checkpointer.steps() == [3, 2] and shelf.kept == set()


def test_a_kill_while_an_old_checkpoint_is_removed_leaves_nothing_for_ever(tmp_path, monkeypatch):
    checkpointer, unlink, removed = Checkpointer(tmp_path, keep=1), Path.unlink, []

    def die_after_one(path, **options):
        if removed:
            raise KeyboardInterrupt
        removed.append(path)
        unlink(path, **options)

    checkpointer.save(1, {})
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "unlink", die_after_one)
        checkpointer.save(2, {})
    assert removed and checkpointer.newest() == 2
    checkpointer.save(3, {})
    assert {path.stem for path in tmp_path.iterdir()} == {"step_000000003"}


def test_other_parts_are_refused_by_name(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(1, {"student": nn.Linear(1, 1)})
    with pytest.raises(ValueError, match=r"other parts.*\(augmentor\)"):
        checkpointer.load(1, {"student": nn.Linear(1, 1), "augmentor": nn.Linear(1, 1)}, CPU)


def test_an_empty_folder_has_no_newest(tmp_path):
    assert Checkpointer(tmp_path / "none").newest() is None


def test_best_weights_come_back_and_survive_a_checkpoint(tmp_path):
    layer = nn.Linear(1, 1)
    best = BestWeights(layer)
    best.restore()
    layer.weight.data.fill_(1.0)
    best.remember(7)
    layer.weight.data.fill_(2.0)
    Checkpointer(tmp_path).save(9, {"best": best})
    resumed = BestWeights(layer)
    Checkpointer(tmp_path).load(9, {"best": resumed}, CPU)
    resumed.restore()
    assert layer.weight.item() == 1.0 and resumed.step == 7


def test_the_newest_before_a_step_may_be_asked_for(tmp_path):
    checkpointer = Checkpointer(tmp_path, keep=3)
    for step in (1, 4, 9):
        checkpointer.save(step, {})
    assert [checkpointer.newest(before) for before in (None, 9, 4, 1)] == [9, 4, 1, None]


def test_a_state_that_does_not_fit_is_one_line(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(1, {"layer": nn.Linear(3, 2)})
    with pytest.raises(ValueError, match=r"its layer does not fit this run \(.*another version"):
        checkpointer.load(1, {"layer": nn.Linear(2, 2)}, CPU)


def test_what_a_kill_left_half_written_is_swept_away(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(1, {})
    (tmp_path / ".step_000000002.pt.x7").write_bytes(b"half")
    (tmp_path / "step_of_another_kind.json").write_text("{}")
    checkpointer.save(2, {})
    assert not list(tmp_path.glob(".*")) and checkpointer.steps() == [2, 1]


def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_anew(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    assert checkpointer.to_resume() is None
    checkpointer.save(3, {})
    assert checkpointer.to_resume() == 3
    (tmp_path / "step_000000003.pt").write_bytes(b"")
    assert checkpointer.newest() is None and checkpointer.to_resume() == 3
