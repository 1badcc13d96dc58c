"""Runs that are resumed go on bit for bit."""

import copy
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from hard_fast.journal import Journal
from hard_fast.runtime.configfile import merge
from tests.whole_run import build, rows, same, weights


def test_resume_from_any_step_is_the_same_run_bit_for_bit(tiny_run, tmp_path):
    # Dropout, every phase, a bank draw, half-full log windows and a late error lie on the way.
    tree = merge(tiny_run, {"student": {"options": {"hidden": [16], "dropout": 0.5}}})
    tree["checkpoint"] = {"every_steps": 1, "keep": 50}
    whole = build(tree, run_dir=str(tmp_path / "whole"))
    whole.run()
    for step in range(1, 12):
        cut_dir = tmp_path / f"cut{step}"
        first = build(tree, run_dir=str(cut_dir))
        while first.step < 12:
            if first.checkpointer.steps()[:1] == [step]:
                break
            _one_step(first)
        first.journal.__exit__()
        second = build(tree, run_dir=str(cut_dir))
        assert second.step == step
        second.run()
        assert same(weights(second), weights(whole)), f"resumed at {step}"
        kinds = ("train", "eval", "switch", "warning")
        assert rows(second, *kinds) == rows(whole, *kinds), f"resumed at {step}"


def _one_step(trainer):
    """What `run` does in one turn of its loop, so that a test can stop between two."""
    if trainer.step == 0:
        settings = {"num_steps": 12, "first_step": 0, "use_tensorboard": False}
        trainer.journal = Journal(trainer.run_dir, **settings)
    switch = trainer.train_step()
    if switch:
        trainer._change_phase(switch)
    trainer._keep_books()


def test_the_averaged_student_is_the_result_and_resumes_exactly(tiny_run, tmp_path):
    average = {"average": {"decay": 0.5}}
    whole = build(tiny_run, **average, run_dir=str(tmp_path / "whole"))
    results = whole.run()
    evaluation = rows(whole, "eval")[-1]
    assert results["metrics"]["nll"] == evaluation["average_nll"] != evaluation["nll"]
    shipped = load_file(whole.run_dir / "student.safetensors")
    own = whole.student.network.net.state_dict()
    assert own.keys() == shipped.keys()
    assert not any(torch.equal(shipped[name], own[name]) for name in own)
    shutil.copytree(whole.run_dir, tmp_path / "cut")
    for path in (tmp_path / "cut" / "checkpoints").glob("step_000000012*"):
        path.unlink()
    resumed = build(tiny_run, **average, run_dir=str(tmp_path / "cut"))
    assert resumed.step == 9 and resumed.run()["metrics"] == results["metrics"]


def test_what_changes_over_a_run_resumes_exactly_inside_a_group_of_steps(tiny_run, tmp_path):
    del tiny_run["augmentor_optim"]
    options = {"widths": [4, 4, 4], "dropout": 0.1, "batch_norm": True}
    dropout = {"layers": ["relu*"], "rate": {"ends": 0.1, "peak": 0.8, "factor": 1.0}}
    cyclic = {"kind": "random_affine", "rotation_deg": {"ends": 0.0, "peak": 60.0}}
    tree = tiny_run | {
        "student": {"name": "cnn", "options": options, "dropout": dropout},
        "augmentor": {"kind": "compose", "parts": [{"kind": "erasing"}, cyclic]},
        "objective": {"kind": "kd", "temperature": {"ends": 1.0, "peak": 4.0}},
        "schedule": {"kind": "student_only"},
        "average": {"kind": "swa", "start": 0.5, "batchnorm_batches": 2},
        "optim": {"lr": 1e-2, "clip_norm": 1.0, "update_every": {"ends": 2, "peak": 5}},
        "checkpoint": {"every_steps": 1, "keep": 50},
    }
    whole = build(tree, run_dir=str(tmp_path / "whole"))
    results = whole.run()
    gathered = set()
    for step in (1, 4, 7, 12):
        cut = tmp_path / f"cut{step}"
        shutil.copytree(whole.run_dir, cut)
        for path in (cut / "checkpoints").glob("step_*"):
            if int(path.stem.removeprefix("step_")) > step:
                path.unlink()
        resumed = build(tree, run_dir=str(cut))
        gathered.add(resumed.engine.learner.state_dict()["gathered"]["num"])
        assert resumed.step == step and resumed.run()["metrics"] == results["metrics"], step
        assert same(weights(resumed), weights(whole)), step
    assert len(gathered) > 2


def test_turns_with_a_new_optimizer_and_a_rate_that_stands_still_resume_exactly(tiny_run, tmp_path):
    # Epochs of two steps; any change of the loss is small enough to be a standstill.
    still = {"factor": 0.5, "least": 100.0, "least_share": 100.0}
    optim = {"kind": "sgd", "lr": 0.01, "fresh_turns": True, "standstill": still}
    tree = tiny_run | {
        "objective": {"kind": "tst"},
        "schedule": {"kind": "epochs", "every": 4, "augmentor_epochs": 3},
        "augmentor_optim": optim,
        "train": tiny_run["train"] | {"steps": 15, "batch_size": 32, "log_every": 1},
        "checkpoint": {"every_steps": 1, "keep": 50},
    }
    whole = build(tree, run_dir=str(tmp_path / "whole"))
    whole.run()
    turns = [row["lr"]["augmentor"] for row in rows(whole, "train") if row["phase"] == "augmentor"]
    # The first turn has three epochs, the second is cut after two and a half.
    assert turns == pytest.approx([0.01] * 4 + [0.005] * 2 + [0.01] * 4 + [0.005])
    losses = [row["augmentor"]["loss"] for row in rows(whole, "train")[-3:]]
    kept = whole.engine.augmentor_learner.state_dict()["standstill"]
    assert kept["sum"] == pytest.approx(losses[2])
    assert kept["last"] == pytest.approx(sum(losses[:2]) / 2.0)
    for step in (3, 5, 6, 8, 11):
        cut = tmp_path / f"cut{step}"
        shutil.copytree(whole.run_dir, cut)
        for path in (cut / "checkpoints").glob("step_*"):
            if int(path.stem.removeprefix("step_")) > step:
                path.unlink()
        resumed = build(tree, run_dir=str(cut))
        assert resumed.step == step
        resumed.run()
        assert same(weights(resumed), weights(whole)), step


def test_pictures_in_a_folder_are_trained_on_and_a_run_resumes_inside_an_epoch(tiny_run, tmp_path):
    generator = np.random.default_rng(0)
    for part, num in (("train", 12), ("val", 3)):
        for name in ("cat", "dog"):
            place = tmp_path / "pictures" / part / name
            place.mkdir(parents=True)
            for i in range(num):
                noise = generator.integers(0, 256, (20, 24, 3), np.uint8)
                Image.fromarray(noise).save(place / f"{i}.jpg")
    tiny_run["data"] = {
        "kind": "pictures",
        "root": str(tmp_path / "pictures"),
        "size": 16,
        "val_share": 0.0,
        "threads": 1,
    }
    tiny_run["train"]["batch_size"] = 4
    whole = build(tiny_run)
    results = whole.run()
    assert set(results["metrics"]) == {"top1", "nll", "ece"} and results["bad_samples"] == 0
    assert len(list((whole.run_dir / "gallery").iterdir())) == 2

    # A run stopped at step 9 of 6-step epochs goes on with the batch that would have come.
    other = copy.deepcopy(tiny_run) | {"run_dir": str(tmp_path / "other")}
    shutil.copytree(whole.run_dir, other["run_dir"])
    for path in (tmp_path / "other" / "checkpoints").glob("step_000000012*"):
        path.unlink()
    resumed = build(other)
    assert resumed.step == 9
    resumed.run()
    assert same(weights(resumed), weights(whole))
