"""A loop of one's own: the trainer's run bit for bit, resumed bit for bit, and clear refusals."""

import copy
import io
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

import hard_fast
from hard_fast.config import RunConfig
from hard_fast.data import load_data
from hard_fast.models.zoo import NetworkConfig, build_network, save_weights
from hard_fast.runtime.configfile import Source, merge, parse
from hard_fast.runtime.dist import World
from hard_fast.runtime.seed import derive_seed
from hard_fast.trainer import Trainer

WORLD = World(0, 1, torch.device("cpu"))
TABLES = ("augmentor", "objective", "schedule", "optim", "augmentor_optim", "average", "bank")
SIZES = {"num_classes": 10, "in_channels": 1, "image_size": 16}


@pytest.fixture
def run(tiny_run):
    """The tiny run with what makes a difference: dropout, BatchNorm, a teacher that is folded."""
    student = {"name": "cnn", "options": {"widths": [4, 4, 4], "dropout": 0.3, "batch_norm": True}}
    teacher = {"name": "cnn", "options": {"widths": [4, 4, 4], "batch_norm": True}}
    tree = merge(tiny_run, {"student": student, "teacher": teacher})
    return merge(tree, {"train": {"gallery": False}})


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


def bare(table, role, **sizes):
    """The network that a trainer begins with, as a module of one's own."""
    torch.manual_seed(derive_seed(0, role))
    keys = {key: value for key, value in table.items() if key in ("name", "options", "checkpoint")}
    return build_network(NetworkConfig(**keys), **SIZES | sizes).net


def distiller(tree, student=None, teacher=None, **changes):
    tables = {name: tree[name] for name in TABLES if name in tree} | {"train": {"device": "cpu"}}
    student = bare(tree["student"], "student") if student is None else student
    teacher = bare(tree["teacher"], "teacher") if teacher is None else teacher
    return hard_fast.Distiller(student, teacher, steps=12, **tables | changes)


def same(first, second):
    one, other = (net.state_dict() for net in (first, second))
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


RUNS = {
    "threshold": {},
    "joint": {
        "augmentor": {"kind": "patch_mix", "patch_px": 4},
        "objective": {"kind": "kd"},
        "schedule": {"kind": "joint"},
    },
    "student_only": {
        "augmentor": {"kind": "mixup"},
        "objective": {"kind": "kd", "ce_share": 0.5, "temperature": {"ends": 1.0, "peak": 4.0}},
        "schedule": {"kind": "student_only"},
        "optim": {"lr": 1e-2, "rate": {"kind": "cosine"}, "update_every": 2},
        "average": {"kind": "ema"},
        "augmentor_optim": None,
    },
    "features": {
        "augmentor": {"kind": "standard"},
        "objective": {"kind": "features", "layers": [["conv2", "conv2"]], "kd_weight": 1.0},
        "schedule": {"kind": "student_only"},
        "augmentor_optim": None,
    },
}


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


@pytest.mark.parametrize("kind", ["threshold", "student_only"])
def test_a_saved_state_goes_on_as_if_nothing_had_been(run, kind):
    tree = {key: value for key, value in merge(run, RUNS[kind]).items() if value is not None}
    tree |= {"bank": {"capacity": 2}} if kind == "threshold" else {}
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randint(256, (8, 1, 16, 16), dtype=torch.uint8, generator=generator)] * 12
    labels = torch.arange(8)
    whole = distiller(tree)
    states, reports = [], []
    for image in batches:
        reports.append(whole.step(image, labels))
        states.append(io.BytesIO())
        torch.save(whole.state_dict(), states[-1])
    assert {report.phase for report in reports} >= {"student"}
    for step, file in enumerate(states[:-1], start=1):
        file.seek(0)
        state = torch.load(file, weights_only=True)
        resumed = distiller(tree)
        resumed.load_state_dict(state)
        assert resumed.steps_done == step
        found = [resumed.step(image, labels) for image in batches[step:]]
        assert [r.logs for r in found] == [r.logs for r in reports[step:]], step
        for name in ("student", "augmentor"):
            parts = (own._learning.parts()[name] for own in (whole, resumed))
            assert same(*parts), step
    # Also of a run that has moved on, and the state is as it was.
    resumed.load_state_dict(state)
    assert resumed.step(batches[-1], labels).logs == reports[-1].logs


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
    image = torch.randint(256, (8, 1, 16, 16), dtype=torch.uint8)
    losses = [
        distiller(tree).step(image, label).loss
        for label in (None, torch.full((8,), -1), torch.arange(8), torch.arange(8).to(torch.uint8))
    ]
    assert losses[0] == losses[1] != losses[2] == losses[3]


def test_what_the_caller_does_between_steps_does_not_matter(run):
    images = torch.randint(256, (12, 8, 1, 16, 16), dtype=torch.uint8)
    plain, looked_at = bare(run["student"], "student"), bare(run["student"], "student")
    first, second = distiller(run, plain), distiller(run, looked_at)
    for number, image in enumerate(images):
        first.step(image)
        second.step(image)
        looked_at.train(number % 3 == 0)
        torch.rand(number)
    assert same(plain, looked_at)
    # And at the end it is left as it learns.
    assert plain.training and all(p.requires_grad for p in plain.parameters())


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


def test_the_average_is_there_while_it_is_asked_for(run):
    student = bare(run["student"], "student")
    tree = {key: value for key, value in merge(run, RUNS["student_only"]).items() if value}
    own = distiller(tree, student)
    with pytest.raises(ValueError, match="no average is kept"), own.averaged():
        pass
    for _ in range(4):
        own.step(torch.randint(256, (8, 1, 16, 16), dtype=torch.uint8))
    before = student.conv2.weight.clone()
    with own.averaged():
        assert not torch.equal(student.conv2.weight, before)
    assert torch.equal(student.conv2.weight, before)
    with pytest.raises(ValueError, match="no average is kept"), distiller(run).averaged():
        pass


def test_numbers_that_are_not_finite_are_skipped_or_end_the_run(run):
    image = torch.rand(8, 1, 16, 16)
    student = bare(run["student"], "student")
    own = distiller(run, student)
    own.step(image)
    before = [value.clone() for value in student.parameters()]
    report = own.step(torch.full_like(image, torch.nan))
    assert report.is_skipped and all(map(torch.equal, before, student.parameters()))
    own = distiller(run, guard={"on_nonfinite": "stop"})
    with pytest.raises(hard_fast.Diverged, match="a step had a loss or gradient"):
        for value in (0.5, torch.nan, torch.nan, torch.nan, torch.nan):
            own.step(torch.full_like(image, value))
    own = distiller(run, guard={"max_in_a_row": 3}, schedule={"kind": "threshold"})
    with pytest.raises(hard_fast.Diverged, match="^Distiller: step .* load a state saved before"):
        for value in (0.5, *[torch.nan] * 9):
            own.step(torch.full_like(image, value))


def mistake(call, *arguments, **keys):
    with pytest.raises(ValueError) as caught:
        call(*arguments, **keys)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("Distiller: ")
    return str(caught.value).removeprefix("Distiller: ")


def test_batches_that_do_not_fit_are_one_line(run):
    image, label = torch.randint(256, (8, 1, 16, 16), dtype=torch.uint8), torch.arange(8)
    own = distiller(run)
    assert "nothing to save before the first step" in mistake(own.state_dict)
    assert mistake(own.step, image[0]).startswith(
        "image: torch.uint8 [1, 16, 16]; must be a tensor"
    )
    assert mistake(own.step, [image]) == "image: a list; must be a tensor [B,C,H,W]"
    assert "torch.int64" in mistake(own.step, image.long(), label)
    assert "label: torch.float32 [8]; must be [8] whole numbers" in mistake(
        own.step, image, label.float()
    )
    assert "label: torch.int64 [7]" in mistake(own.step, image, label[:7])
    normalized = (image / 255 - 0.5) / 0.25
    assert "from -2 to 2; floats must be in [0,1]: leave normalization to" in mistake(
        own.step, normalized, label
    )
    assert "label: from 3 to 10; the student has 10 outputs" in mistake(own.step, image, label + 3)
    own.step(image, label)
    said = mistake(own.step, image[:5], label[:5])
    assert said.startswith(
        "image: [5, 1, 16, 16], and the first batch was [8, 1, 16, 16]; drop_last"
    )
    for _ in range(11):
        own.step(image, label)
    assert mistake(own.step, image, label) == "steps = 12: all of them are done"


def test_lengths_and_modules_that_make_no_sense_are_one_line(run):
    tables = {"objective": {"kind": "ce"}, "optim": {"lr": 0.1}}
    net = nn.Linear(1, 1)
    assert "train.steps = 0: input should be" in mistake(
        hard_fast.Distiller, net, steps=0, **tables
    )
    assert mistake(hard_fast.Distiller, net, steps=1, steps_per_epoch=0, **tables) == (
        "steps_per_epoch = 0: must be 1 or more"
    )
    assert "student: a str, not an nn.Module" in mistake(
        hard_fast.Distiller, "resnet18", steps=1, **tables
    )
    with pytest.raises(AttributeError, match="has no attribute 'Distilller'"):
        hard_fast.Distilller  # noqa: B018


def test_states_that_do_not_fit_are_one_line(run):
    image = torch.randint(256, (8, 1, 16, 16), dtype=torch.uint8)
    own = distiller(run)
    own.step(image)
    assert "this is not what state_dict() returned" in mistake(own.load_state_dict, {})
    other = distiller(run, optim={"lr": 0.5})
    assert "other networks or settings" in mistake(other.load_state_dict, own.state_dict())
    state = own.state_dict()
    del state["parts"]["bank"]
    assert "the state: saved with other parts than this run has (bank)" in mistake(
        distiller(run).load_state_dict, state
    )


def test_networks_that_do_not_fit_are_one_line(run):
    image = torch.randint(256, (8, 1, 16, 16), dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"cannot read an image of 1x16x16 \(RuntimeError"):
        distiller(run, nn.Sequential(nn.Flatten(), nn.Linear(9, 10))).step(image)
    other = bare(run["teacher"], "teacher", num_classes=7)
    with pytest.raises(
        ValueError, match=r"^\[teacher\] Sequential has 7 outputs, and the student 10"
    ):
        distiller(run, teacher=other).step(image)
    with pytest.raises(ValueError, match=r"^\[teacher\] mean = \[0.1, 0.2\]: has 2 numbers"):
        teacher = hard_fast.Network(bare(run["teacher"], "teacher"), mean=(0.1, 0.2))
        distiller(run, teacher=teacher).step(image)


def test_a_group_of_the_callers_own_is_joined(run, tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1
    )
    try:
        own = distiller(run)
        own.step(torch.randint(256, (8, 1, 16, 16), dtype=torch.uint8))
        assert torch.distributed.is_initialized()
    finally:
        torch.distributed.destroy_process_group()


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


LOOP = """
    import os, sys, torch, hard_fast
    from torch import nn

    def net(seed):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))

    rank, num = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    student = net(rank)  # Rank 0's weights are everyone's.
    own = hard_fast.Distiller(
        student, net(9), steps=8, objective={"kind": "hard"}, optim={"lr": 1e-2},
        augmentor={"kind": "affine", "std": 0.1}, augmentor_optim={"lr": 0.01},
        schedule={"kind": "alternate", "student_steps": 2}, train={"device": "cpu"},
    )
    images = torch.randint(256, (8, 8, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    for step, image in enumerate(images.to(torch.uint8)):
        report = own.step(image.tensor_split(num)[rank])
    state = own.state_dict()
    if rank == 0:
        torch.save([report.loss, student.state_dict()], sys.argv[1])
"""


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path):
    script = tmp_path / "loop.py"
    script.write_text(textwrap.dedent(LOOP))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    found = []
    for name, launcher in (("one", []), ("two", torchrun)):
        done = subprocess.run(
            [sys.executable, *launcher, str(script), str(tmp_path / name)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
        found.append(torch.load(tmp_path / name, weights_only=True))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-5)


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
