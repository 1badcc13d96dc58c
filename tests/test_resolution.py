"""Runs whose pictures grow: the sizes of every part, resuming, and what cannot take part."""

import numpy as np
import pytest
import torch
from PIL import Image

from hard_fast.config import RunConfig
from hard_fast.runtime.configfile import ConfigError, Source, merge, parse
from hard_fast.runtime.dist import World
from hard_fast.trainer import Trainer

WORLD = World(0, 1, torch.device("cpu"))
GROWING = {"resolution": {"start_px": 8, "stage_px": 4, "end": 0.7}}
# Of 12 steps; 8 are 0.7 of them.
WANTED = [8] * 4 + [12] * 4 + [16] * 4


@pytest.fixture
def tree(tiny_run):
    """A run of 12 steps with both phases at every size, by a student that takes any size."""
    schedule = {"kind": "alternate", "student_steps": 2, "augmentor_steps": 1}
    student = {"name": "cnn", "options": {"widths": [4, 4], "pools": [1, 2], "dropout": 0.3}}
    teacher = {"name": "cnn", "options": {"widths": [4, 4], "pools": [1, 2], "batch_norm": True}}
    # Not merged: keys of another kind would stay.
    changed = tiny_run | {"schedule": schedule, "student": student, "teacher": teacher}
    return merge(changed, {"train": {"gallery": False, **GROWING}})


def build(tree, **changes):
    return Trainer(parse(RunConfig, Source(merge(tree, changes), {})), WORLD)


def weights(trainer):
    state = trainer.net.state_dict().items()
    return {name: value.clone() for name, value in state if not name.startswith("drawn.")}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def watch(module):
    """The sides of the pictures that a module is given from now on."""
    seen = []
    module.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[3]))
    return seen


def test_training_grows_and_evaluation_does_not(tree):
    average = {"batchnorm_batches": 2}
    student = {"options": {"batch_norm": True, "widths": [4, 4], "pools": [1, 2]}}
    trainer = build(tree, average=average, student=student)
    stepped, seen = [], watch(trainer.net.student)
    step = trainer.engine.step

    def note(phase, number, batch, noise):
        assert batch.image.is_contiguous(memory_format=torch.channels_last)
        before = len(seen)
        result = step(phase, number, batch, noise)
        stepped.append(batch.image.shape[3])
        assert set(seen[before:]) == {batch.image.shape[3]}
        del seen[before:]
        return result

    trainer.engine.step = note
    results = trainer.run()
    assert stepped == WANTED
    # Scores, and the averaged student's BatchNorm statistics.
    assert seen and set(seen) == {16} and set(results["phases"]) == {"student", "augmentor"}


def test_a_run_resumes_inside_every_size_bit_for_bit(tree, tmp_path):
    tree["checkpoint"] = {"every_steps": 1, "keep": 50}
    whole = build(tree, run_dir=str(tmp_path / "whole"))
    whole.run()
    for step in (1, 4, 6):
        place = tmp_path / f"cut{step}"
        resumed = build(tree, run_dir=str(place))
        resumed.checkpointer = whole.checkpointer
        resumed.bank._folder = whole.bank._folder
        whole.checkpointer.load(step, resumed._parts(), WORLD.device)
        resumed.net.learn(resumed.controller.phase)
        place.mkdir(exist_ok=True)
        resumed.run()
        assert resumed.step == 12 and same(weights(resumed), weights(whole)), f"resumed at {step}"


def test_each_size_of_each_phase_is_one_graph(tree):
    trainer, shapes = build(tree, train={"resolution": {"stage_px": 8}}), []

    def count(graph, given):
        shapes.append(next(x.shape[3] for x in given if x.dtype == torch.uint8))
        return graph.forward

    torch._dynamo.reset()
    trainer.engine._forward = torch.compile(
        trainer.net, fullgraph=True, dynamic=False, backend=count
    )
    trainer.run()
    assert sorted(shapes) == [8, 8, 16, 16]


def test_pictures_in_files_grow_as_well(tree, tmp_path):
    generator = np.random.default_rng(0)
    for name in ("cat", "dog"):
        place = tmp_path / "pictures" / "train" / name
        place.mkdir(parents=True)
        for i in range(12):
            noise = generator.integers(0, 256, (20, 24, 3), np.uint8)
            Image.fromarray(noise).save(place / f"{i}.jpg")
    tree["data"] = {"kind": "pictures", "root": str(tmp_path / "pictures"), "size": 16}
    tree["data"] |= {"val_share": 0.25, "threads": 1}
    tree["train"]["batch_size"] = 4
    whole = build(tree)
    seen = watch(whole.net.teacher)
    whole.run()
    assert list(dict.fromkeys(seen)) == [8, 12, 16]
    resumed = build(tree, run_dir=str(tmp_path / "other"))
    resumed.bank._folder = whole.bank._folder
    whole.checkpointer.load(9, resumed._parts(), WORLD.device)
    resumed.net.learn(resumed.controller.phase)
    resumed.run()
    assert same(weights(resumed), weights(whole))


SMALL = {"patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 2}
VIT = {"name": "vit_tiny_patch16_224", "options": SMALL}
VDVAE = {"enc_blocks": "32x1,32d2,16d16,1x1", "dec_blocks": "1x1,16m1,16x1,32m16,32x1"}
VDVAE |= {"width": 16, "zdim": 2, "num_mixtures": 2, "train_from_block": 1}
COLOUR = {"kind": "synthetic", "size": 32, "channels": 3, "num_train": 72, "num_test": 20}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"student": {"name": "mlp"}}, "[student] name = 'mlp' does not take pictures of 10 px"),
        (
            {"teacher": {"name": "vit_mnist", "options": {"patch": 4}}},
            "[teacher] name = 'vit_mnist'",
        ),
        ({"student": VIT}, "timm's ViTs do with options.dynamic_img_size = true"),
        (
            {"augmentor": {"kind": "autoencoder", "net": "vdvae", "options": VDVAE}}
            | {"data": COLOUR},
            "[augmentor] kind = 'autoencoder' does not take pictures of 10 px",
        ),
    ],
)
def test_what_takes_one_size_alone_is_one_line_that_names_it(tree, changes, words):
    with pytest.raises(ValueError) as caught:
        build(tree | changes, train={"resolution": {"start_px": 10}})
    said = str(caught.value)
    assert said.startswith("train.resolution: ") and words in said and "\n" not in said


def test_a_vit_that_may_grow_does(tree):
    free = {"name": VIT["name"], "options": SMALL | {"dynamic_img_size": True}}
    assert build(tree | {"student": free}).run()["steps"] == 12


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"kind": "line"}, "objective": {"kind": "hard", "distance": "mse"}}
        | {"augmentor": {"kind": "noise"}},
        {"augmentor": {"kind": "generator"}, "objective": {"kind": "dafl"}}
        | {"data": {"kind": "digits", "val_share": 0.0, "train_zeros": 64}}
        | {"bank": {"capacity": 0}},
    ],
)
def test_what_is_no_picture_cannot_grow(tree, changes):
    with pytest.raises(ConfigError, match="train.resolution: there are no pictures that could"):
        parse(RunConfig, Source(tree | changes, {}))


def test_a_size_beyond_the_data_is_one_line(tree):
    with pytest.raises(ValueError, match="start_px = 16: must be below the 16 px"):
        build(tree, train={"resolution": {"start_px": 16}})
