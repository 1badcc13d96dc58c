"""A tiny run, and the Distiller that is to do as it does."""

import pytest
import torch

import hard_fast
from hard_fast.models.zoo import NetworkConfig, build_network
from hard_fast.runtime.configfile import merge
from hard_fast.runtime.seed import derive_seed

TABLES = ("augmentor", "objective", "schedule", "optim", "augmentor_optim", "average", "bank")
SIZES = {"num_classes": 10, "in_channels": 1, "image_size": 16}


def with_differences(tree):
    """The tiny run with what makes a difference: dropout, BatchNorm, a teacher that is folded."""
    student = {"name": "cnn", "options": {"widths": [4, 4, 4], "dropout": 0.3, "batch_norm": True}}
    teacher = {"name": "cnn", "options": {"widths": [4, 4, 4], "batch_norm": True}}
    tree = merge(tree, {"student": student, "teacher": teacher})
    return merge(tree, {"train": {"gallery": False}})


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


def mistake(call, *arguments, **keys):
    with pytest.raises(ValueError) as caught:
        call(*arguments, **keys)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("Distiller: ")
    return str(caught.value).removeprefix("Distiller: ")


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
