"""Steps of a run in a phase and at a size of one's choice, and what they take."""

import pytest
import torch

from hard_fast.config import RunConfig
from hard_fast.runtime.configfile import Source, merge, parse
from hard_fast.runtime.dist import World
from hard_fast.trial import Trial
from hard_fast.types import Phase

WORLD = World(0, 1, torch.device("cpu"))


def build(tree, folder, **changes):
    return Trial(parse(RunConfig, Source(merge(tree, changes), {})), WORLD, folder)


FIXED = {"augmentor": {"kind": "identity"}, "objective": {"kind": "kd"}}


@pytest.mark.parametrize(
    ("schedule", "phases"),
    [
        ("threshold", ["student", "augmentor"]),
        ("alternate", ["student", "augmentor"]),
        ("joint", ["joint"]),
        ("student_only", ["student"]),
    ],
)
def test_the_phases_are_those_of_the_schedule(tiny_run, tmp_path, schedule, phases):
    tree = tiny_run | {"schedule": {"kind": schedule}}
    if schedule == "student_only":
        tree |= FIXED
        del tree["augmentor_optim"]
    trial = build(tree, tmp_path)
    assert [phase.value for phase in trial.phases] == phases
    for phase in trial.phases:
        before = {name: value.clone() for name, value in trial.net.state_dict().items()}
        found = trial.time(phase, 16)
        assert found.ms > 0 and 0.0 <= found.waiting <= 1.0
        changed = {
            name.partition(".")[0]
            for name, value in trial.net.state_dict().items()
            if not torch.equal(value, before[name])
        }
        # Real updates; the drawn augmentor is overwritten from the bank.
        learned = {"student", "augmentor"} if phase is Phase.JOINT else {phase.value}
        assert changed - {"drawn"} == learned


def test_nothing_is_written_where_the_run_would_be(tiny_run, tmp_path):
    trial = build(tiny_run, tmp_path / "trial", train={"profile_steps": 3})
    trial.time(Phase.STUDENT, 16)
    assert not (tmp_path / "run").exists() and trial.config.train.profile_steps == 0


def test_memory_is_counted_by_what_it_is_for(tiny_run, tmp_path):
    optim = {"kind": "adamw", "lr": 1e-3}
    trial = build(tiny_run | {"optim": optim, "average": {}}, tmp_path)
    trial.time(Phase.STUDENT, 16)
    found = trial.memory()
    num = sum(p.numel() for p in trial.net.student.parameters())
    assert found["gradients"] == 4 * num
    # Two moments, and a count for each of three tensors.
    assert found["optimizer"] == 2 * 4 * num + 3 * 4
    assert found["weights"] > 4 * num and found["average"] >= 4 * num
    assert found["data"] == (72 + 20) * (16 * 16 + 8)
    # A byte a pixel, the label, and six numbers.
    assert trial.input_bytes() == 16 * 16 + 8 + 6 * 4


def test_gradients_that_wait_for_an_update_are_gradients(tiny_run, tmp_path):
    """And the optimizer has its moments, however many steps pass before the first update."""
    tree = merge(tiny_run, {"schedule": {"max_augmentor_steps": 90}, "train": {"steps": 200}})
    found = {}
    for every in (1, 8, 100):
        optim = {"kind": "adamw", "lr": 1e-3, "update_every": every}
        trial = build(tree | {"optim": optim}, tmp_path / str(every))
        trial.time(Phase.STUDENT, 16)
        found[every] = trial.memory()
        assert trial.step_peak(Phase.AUGMENTOR) > 2**20
    num = sum(p.numel() for p in trial.net.student.parameters())
    assert found[1]["optimizer"] == found[8]["optimizer"] == found[100]["optimizer"]
    assert [found[every]["gradients"] for every in (1, 8, 100)] == [4 * num, 8 * num, 8 * num]


def test_what_is_kept_grows_with_the_images(tiny_run, tmp_path):
    trial = build(tiny_run, tmp_path, train={"accumulate": 2})
    assert trial.num_images(Phase.STUDENT) == 8
    one, two, six = (trial.kept(Phase.AUGMENTOR, num) for num in (8, 16, 48))
    assert 1.9 * one < two < 2.1 * one and 5.5 * one < six < 6.5 * one
    assert trial.pass_peak(Phase.AUGMENTOR, 32) > 2**20
    assert all(p.grad is None for p in trial.net.parameters())
    assert trial.step_peak(Phase.STUDENT) > 2**20


def test_groups_stay_whole_and_sizes_are_those_asked_for(tiny_run, tmp_path):
    cnn = {"name": "cnn", "options": {"widths": [4, 4], "pools": [1, 2]}}
    tree = tiny_run | {"schedule": {"kind": "joint"}, "augmentor": {"kind": "patch_mix"}}
    tree |= {"objective": {"kind": "kd"}, "student": cnn, "teacher": cnn}
    trial = build(tree, tmp_path, train={"resolution": {"start_px": 8, "stage_px": 8}})
    assert trial.group == 2 and trial.growth.sizes == (8, 16)
    seen = []
    trial.net.student.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape))
    trial.time(Phase.JOINT, 8)
    assert {shape[2:] for shape in seen} == {(8, 8)}
    seen.clear()
    # Memory is that of the full size, of as many made images as there are groups.
    trial.kept(Phase.JOINT, 20)
    assert seen == [torch.Size((10, 1, 16, 16))]
