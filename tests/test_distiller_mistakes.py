"""What a loop of one's own gets wrong is one line, and can be mended where it stands."""

import pytest
import torch
from torch import nn

import hard_fast
from tests.own_loops import bare, distiller, mistake, with_differences


@pytest.fixture
def run(tiny_run):
    return with_differences(tiny_run)


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
    for wrong in (0, 2.5):
        assert mistake(hard_fast.Distiller, net, steps=1, steps_per_epoch=wrong, **tables) == (
            f"steps_per_epoch = {wrong}: must be whole, 1 or more"
        )
    assert "student: a str, not an nn.Module" in mistake(
        hard_fast.Distiller, "resnet18", steps=1, **tables
    )
    with pytest.raises(AttributeError, match="has no attribute 'Distilller'"):
        hard_fast.Distilller  # noqa: B018


def test_networks_that_do_not_fit_are_one_line(run):
    image = torch.randint(256, (8, 1, 16, 16), dtype=torch.uint8)
    said = mistake(distiller(run, nn.Sequential(nn.Flatten(), nn.Linear(9, 10))).step, image)
    assert said.startswith("student: cannot read an image of 1x16x16 (RuntimeError")
    other = bare(run["teacher"], "teacher", num_classes=7)
    with pytest.raises(
        ValueError, match=r"^\[teacher\] Sequential has 7 outputs, and the student 10"
    ):
        distiller(run, teacher=other).step(image)
    with pytest.raises(ValueError, match=r"^\[teacher\] mean = \[0.1, 0.2\]: has 2 numbers"):
        teacher = hard_fast.Network(bare(run["teacher"], "teacher"), mean=(0.1, 0.2))
        distiller(run, teacher=teacher).step(image)


def test_a_first_step_that_was_refused_can_be_made_again(run):
    image = torch.randint(256, (8, 1, 16, 16), dtype=torch.uint8)
    student = bare(run["student"], "student")
    student.norm2.eval()
    teacher = hard_fast.Network(bare(run["teacher"], "teacher"), precision="bf16")
    own = distiller(run, student, teacher, train={"device": "cpu", "accumulate": 4})
    with pytest.raises(ValueError, match="must be a multiple of 4"):
        own.step(image[:6])
    own.step(image)
    assert student.training and not student.norm2.training
    assert teacher.module.conv1.weight.dtype == torch.float32


def test_what_the_networks_cannot_do_names_them(run):
    image = torch.randint(256, (8, 1, 16, 16), dtype=torch.uint8)
    for dtype in (torch.float16, torch.float64):
        student = bare(run["student"], "student").to(dtype)
        assert mistake(distiller(run, student).step, image).startswith("student: cannot read an")
    teacher = bare(run["teacher"], "teacher")
    teacher.kept = teacher.conv1.weight * 2
    with pytest.raises(ValueError, match=r"^\[teacher\] \w+ cannot be copied \(RuntimeError: "):
        distiller(run, teacher=teacher).step(image)
