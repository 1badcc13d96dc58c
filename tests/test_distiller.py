"""A loop of one's own: the trainer's run bit for bit, resumed bit for bit, undisturbed."""

import copy

import pytest
import torch

import hard_fast
from hard_fast.config import RunConfig
from hard_fast.data import load_data
from hard_fast.models.zoo import NetworkConfig, build_network, save_weights
from hard_fast.runtime.configfile import Source, merge, parse
from hard_fast.runtime.dist import World
from hard_fast.trainer import Trainer
from tests.own_loops import RUNS, SIZES, TABLES, bare, distiller, same, with_differences

WORLD = World(0, 1, torch.device("cpu"))


@pytest.fixture
def run(tiny_run):
    return with_differences(tiny_run)


def record(tree, **changes):
    """A trainer that has run, and the batches that it saw."""
    trainer = Trainer(parse(RunConfig, Source(merge(tree, changes), {})), WORLD)
    batches, whole = [], trainer.loader.next_batch

    def next_batch():
        batches.append(whole())
        return batches[-1]

    trainer.loader.next_batch = next_batch
    trainer.run()
    return trainer, batches


@pytest.mark.parametrize("kind", RUNS)
def test_the_same_batches_are_the_trainers_run_bit_for_bit(run, kind):
    tree = {key: value for key, value in merge(run, RUNS[kind]).items() if value is not None}
    trainer, batches = record(tree)
    student, teacher = bare(tree["student"], "student"), bare(tree["teacher"], "teacher")
    before = copy.deepcopy(teacher)
    own = distiller(tree, student, teacher)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    reports = [own.step(image, label) for image, label in batches]
    assert torch.equal(torch.rand(3), expected), "the caller's random numbers were touched"
    assert same(student, trainer.student.network.net)
    assert same(own._learning.net.augmentor, trainer.net.augmentor)
    assert same(own._learning.net.objective, trainer.net.objective)
    assert same(teacher, before) and teacher.training
    assert [report.step for report in reports] == list(range(1, 13))
    phases = {name: num for name, num in trainer.phase_steps.items() if num}
    assert {n: sum(r.phase == n for r in reports) for n in phases} == phases
    switches = [report.switch for report in reports if report.switch]
    assert bool(switches) == (kind == "threshold")
    last = reports[-1]
    assert last.loss == last.logs["loss"] and last.error == last.logs["error"]
    assert not last.is_skipped and str(last).startswith(f"step 12 {last.phase}: loss ")


def test_several_teachers_with_statistics_of_their_own(run):
    also = {"name": "mlp", "options": {"hidden": [8]}, "mean": [0.5], "std": [0.25], "weight": 2.0}
    tree = merge(run, {"teacher": {"also": [also]}})
    trainer, batches = record(tree)
    # As the trainer does: one after the other from one seed.
    teachers = [
        bare(tree["teacher"], "teacher"),
        build_network(
            NetworkConfig(**{key: also[key] for key in ("name", "options")}), **SIZES
        ).net,
    ]
    second = hard_fast.Network(teachers[1], mean=(0.5,), std=(0.25,), weight=2.0)
    student = bare(tree["student"], "student")
    own = distiller(tree, student, [teachers[0], second])
    for image, label in batches:
        own.step(image, label)
    assert same(student, trainer.student.network.net)


def test_floats_from_0_to_1_are_the_bytes_they_stand_for(run):
    image, label = torch.randint(256, (8, 1, 16, 16), dtype=torch.uint8), torch.arange(8)
    found = []
    for given in (image, image / 255, (image / 255).double(), (image / 255).permute(0, 1, 3, 2)):
        own = distiller(run)
        if given.stride() != image.stride():
            given = given.permute(0, 1, 3, 2)
        own.step(given, label)
        found.append(own.step(given, label).loss)
    assert found == pytest.approx([found[0]] * 4, rel=1e-5)


def test_labels_are_for_those_who_have_them(run):
    tree = merge(run, RUNS["student_only"]) | {"augmentor": {"kind": "identity"}}
    tree = {key: value for key, value in tree.items() if value is not None}
    image, known = torch.randint(256, (8, 1, 16, 16), dtype=torch.uint8), torch.arange(8)
    losses = []
    for label in (torch.full((8,), -1), known, known.to(torch.uint8)):
        own = distiller(tree)
        own.step(image, known)
        losses.append(own.step(image, label).loss)
    assert losses[0] != losses[1] == losses[2]


def test_batches_without_labels_are_refused_by_those_who_read_them(run):
    """A batch none of whose images has one may come where few have."""
    image, none = torch.randint(256, (8, 1, 16, 16), dtype=torch.uint8), torch.full((8,), -1)
    distiller(run, objective={"kind": "hard"}).step(image)
    own = distiller(run, objective={"kind": "hard", "reference": "label"})
    for _ in range(2):
        with pytest.raises(ValueError, match="^Distiller: label: the objective reads labels"):
            own.step(image)
        own.step(image, none)


def test_what_the_caller_does_between_steps_does_not_matter(run):
    images = torch.randint(256, (12, 8, 1, 16, 16), dtype=torch.uint8)
    plain, looked_at = bare(run["student"], "student"), bare(run["student"], "student")
    first, second = distiller(run, plain), distiller(run, looked_at)
    for number, image in enumerate(images):
        first.step(image)
        second.step(image)
        looked_at.train(number % 3 == 0)
        torch.rand(number)
        if number % 3 == 0:
            next(module for module in looked_at.modules() if not [*module.children()]).eval()
            looked_at.norm2.eval()
    assert same(plain, looked_at)
    # And at the end it is left as it learns.
    assert plain.training and all(p.requires_grad for p in plain.parameters())


def test_modules_in_eval_mode_stay_so_in_a_student_that_trains(run):
    images = torch.randint(256, (12, 8, 1, 16, 16), dtype=torch.uint8)
    for is_training in (True, False):
        student = bare(run["student"], "student").train(is_training)
        student.norm2.eval()
        before = student.norm2.running_mean.clone()
        own = distiller(run, student)
        for image in images:
            own.step(image)
        assert student.training and student.norm1.training
        assert student.norm2.training == (not is_training)
        assert torch.equal(student.norm2.running_mean, before) == is_training


def test_what_is_frozen_stays_and_the_student_is_trained_in_place(run):
    student = bare(run["student"], "student")
    student.conv1.requires_grad_(False)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    parameters = list(student.parameters())
    own = distiller(run, student)
    for _ in range(12):
        own.step(torch.randint(256, (8, 1, 16, 16), dtype=torch.uint8))
    changed = {
        name for name, value in student.state_dict().items() if not value.equal(before[name])
    }
    assert "conv1.weight" not in changed and {"conv2.weight", "head.weight"} <= changed
    assert all(one is other for one, other in zip(parameters, student.parameters(), strict=True))
    assert not student.conv1.weight.requires_grad


@pytest.mark.slow
def test_an_mlp_learns_real_digits_from_a_cnn(tiny_run, tmp_path):
    sizes = {"image_size": 28}
    tree = {
        "run_dir": str(tmp_path / "run"),
        "data": {"kind": "digits"},
        "student": {"name": "mlp", "options": {"hidden": [64]}},
        "teacher": {"name": "lenet5"},
        "augmentor": {"kind": "identity"},
        "objective": {"kind": "kd"},
        "schedule": {"kind": "student_only"},
        "optim": {"lr": 3e-3},
    }
    settings = {"batch_size": 64, "device": "cpu", "tensorboard": False, "gallery": False}
    data = load_data(parse(RunConfig, Source({**tree, "train": {"steps": 1}}, {})).data, "cpu")
    test = data.test["centered"]

    @torch.no_grad()
    def top1(network):
        return (network.eval()(test.image / 255).argmax(1) == test.label).float().mean().item()

    teacher = bare(tree["teacher"], "teacher", **sizes)
    loader = data.train.loader(batch_size=64, seed=0)
    cosine = {"lr": 3e-3, "rate": {"kind": "cosine"}}
    alone = hard_fast.Distiller(
        teacher, steps=200, objective={"kind": "ce"}, optim=cosine, train={"device": "cpu"}
    )
    for _ in range(200):
        alone.step(*loader.next_batch())
    assert top1(teacher) > 0.92
    save_weights(teacher, tmp_path / "teacher.safetensors")

    tree["teacher"]["checkpoint"] = str(tmp_path / "teacher.safetensors")
    trainer, batches = record(tree, train={"steps": 200, **settings})
    student = bare(tree["student"], "student", **sizes)
    tables = {name: tree[name] for name in TABLES if name in tree}
    own = hard_fast.Distiller(student, teacher, steps=200, train={"device": "cpu"}, **tables)
    for image, label in batches:
        own.step(image, label)
    assert same(student, trainer.student.network.net)
    assert top1(student) > 0.88


@pytest.mark.gpu
def test_a_step_does_not_wait_for_the_device(run):
    tree = {key: value for key, value in merge(run, RUNS["student_only"]).items() if value}
    own = distiller(tree, train={"device": "cuda"}, compile={"mode": "off"})
    image = torch.randint(256, (8, 1, 16, 16), dtype=torch.uint8, device="cuda")
    label = torch.arange(8, device="cuda")
    reports = [own.step(image, label) for _ in range(4)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        reports += [own.step(image, label) for _ in range(4)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(0.0 < report.loss < 10.0 for report in reports)
