"""The passes that a batch needs to fit, and the largest batch that does."""

import math

import pytest
import torch

from hard_fast import batch_size
from hard_fast.batch_size import Largest, Line, find_largest, open_fitting, with_passes
from hard_fast.config import RunConfig
from hard_fast.runtime.configfile import Source, merge, parse
from hard_fast.runtime.dist import World
from hard_fast.runtime.memory import used_bytes
from hard_fast.types import Phase

WORLD = World(0, 1, torch.device("cpu"))
MIB = 2**20


@pytest.fixture
def tree(tiny_run):
    """A teacher that keeps a megabyte and a half for each image of the augmentor's phase."""
    teacher = {"name": "cnn", "options": {"widths": [64, 64], "pools": [1, 1], "dropout": 0.0}}
    return merge(tiny_run, {"data": {"size": 28}}) | {"teacher": teacher}


def open_it(tree, folder, **changes):
    config = parse(RunConfig, Source(merge(tree, changes), {}))
    return open_fitting(config, WORLD, folder)


def spare(monkeypatch, num_mib):
    """Leave so much memory beside what the process has."""
    monkeypatch.setattr(batch_size, "_limit", lambda device: used_bytes(device) + num_mib * MIB)


def test_a_step_that_fits_is_left_as_it_is(tree, tmp_path):
    assert open_it(tree, tmp_path).config.train.accumulate == 1


def test_one_that_does_not_is_cut_into_passes(tree, tmp_path, monkeypatch):
    whole = open_it(tree, tmp_path)
    needed = 3 * whole.kept(Phase.AUGMENTOR, 16) // MIB
    spare(monkeypatch, 2 * needed // 5)
    trial = open_it(tree, tmp_path)
    assert trial.config.train.accumulate == 4
    assert trial.num_images(Phase.AUGMENTOR) == 4
    spare(monkeypatch, 1)
    with pytest.raises(ValueError, match="train.batch_size = 16: a step does not fit"):
        open_it(tree, tmp_path)


def test_a_step_that_needs_more_than_it_may_is_cut_into_passes(tree, tmp_path, monkeypatch):
    """There seems to be room before the first step, and after it that was too much."""
    limits = iter((math.inf, MIB))
    monkeypatch.setattr(batch_size, "_limit", lambda device: next(limits, math.inf))
    assert open_it(tree, tmp_path).config.train.accumulate == 2


def test_where_memory_became_less_fewer_images_fit_or_none(tree, tmp_path, monkeypatch):
    trial = open_it(tree, tmp_path)
    kept = trial.kept(Phase.AUGMENTOR, 16) / 16
    less = trial.step_peak(Phase.AUGMENTOR) - 6 * kept
    monkeypatch.setattr(batch_size, "_limit", lambda device: less)
    found = find_largest(trial, WORLD.device, 1.0, most=10_000)
    assert 0 < found.num < 16 and found.lines[-1].slope >= kept
    assert with_passes(found, 16, 1, 1, 0.0) == found.num
    monkeypatch.setattr(batch_size, "_limit", lambda device: MIB)
    found = find_largest(trial, WORLD.device, 1.0, most=10_000)
    assert found.num == 0 and found.lines[-1].slope >= kept
    assert [with_passes(found, 16, 1, more, 10.0) for more in (1, 2, 4)] == [0, 0, 0]


def test_an_augmentor_with_a_batch_of_its_own_counts_in_the_peak(tree, tmp_path):
    """The student is small and the teacher large: the augmentor's phase needs more."""
    trial = open_it(tree, tmp_path, train={"batch_size": 64, "augmentor_batch_size": 60})
    student, augmentor = trial.step_peak(Phase.STUDENT), trial.step_peak(Phase.AUGMENTOR)
    assert augmentor > student + 24 * MIB
    found = find_largest(trial, WORLD.device, 1.0, most=65)
    assert found.peak > (student + augmentor) / 2


def test_the_largest_batch_is_where_the_line_meets_the_limit(tree, tmp_path, monkeypatch):
    trial = open_it(tree, tmp_path)
    trial.time(Phase.STUDENT, 28)
    kept = trial.kept(Phase.AUGMENTOR, 16) / 16
    room = trial.step_peak(Phase.AUGMENTOR) + 200 * kept
    monkeypatch.setattr(batch_size, "_limit", lambda device: room)
    found = find_largest(trial, WORLD.device, 1.0, most=10_000)
    assert found.lines[-1].slope >= kept and found.is_checked
    # Temporary tensors come on top of what is kept.
    assert 60 < found.num <= 230
    assert trial.pass_peak(Phase.AUGMENTOR, found.num) < 1.05 * room
    assert find_largest(trial, WORLD.device, 1.0, most=50).num == 50
    # What would take an hour is not tried.
    slow = find_largest(trial, WORLD.device, 3.6e6, most=10_000)
    assert not slow.is_checked and slow.num > 60


def test_the_phase_that_grows_faster_sets_the_size_though_another_needs_more(
    tree, tmp_path, monkeypatch
):
    """A wide student, whose gradients are most of a small batch, and a teacher that keeps much."""
    student = {"name": "mlp", "options": {"hidden": [4096, 2048]}}
    trial = open_it(tree | {"student": student}, tmp_path, train={"batch_size": 2})
    peaks = [trial.step_peak(phase) for phase in (Phase.STUDENT, Phase.AUGMENTOR)]
    assert peaks[0] > peaks[1]
    kept = trial.kept(Phase.AUGMENTOR, 2) / 2
    room = peaks[0] + 60 * kept
    monkeypatch.setattr(batch_size, "_limit", lambda device: room)
    found = find_largest(trial, WORLD.device, 1.0, most=10_000)
    assert 30 < found.num <= 130
    lines = (Line(600.0, 1.0), Line(0.0, 10.0))
    assert with_passes(Largest(99, 700, lines, 650.0, True), 2, 1, 1, 0.0) == 50
    assert with_passes(Largest(99, 700, lines, 900.0, True), 2, 1, 1, 0.0) == 90


def test_more_passes_make_room_for_larger_batches_but_not_for_their_bytes():
    found = Largest(100, 1000, (Line(600.0, 10.0),), 1600.0, is_checked=True)
    assert with_passes(found, 40, 1, 1, input_bytes=2.0) == 100
    # 600 bytes to spare for ten a pass image and two for each that waits.
    assert with_passes(found, 40, 1, 2, input_bytes=2.0) == 2 * int(1000 / 12)
    assert with_passes(found, 40, 1, 4, input_bytes=0.0) == 400
