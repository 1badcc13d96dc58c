"""The table of an estimate, from the tree that its file holds."""

import copy

from rich.console import Console

from hard_fast.report.estimate import estimate_table

TREE = {
    "processes": 1,
    "batch_size": 256,
    "accumulate": 1,
    "fits": True,
    "networks": {"student": {"name": "resnet18", "parameters": 11_689_512}},
    "memory": {"weights": 3 * 2**30, "activations": 300 * 2**20, "rest": 5120, "peak": 4 * 2**30},
    "phases": [
        {"phase": "student", "size_px": 224, "ms": 123.4, "images_per_s": 2075.0, "waiting": 0.25}
    ],
    "length": {"steps": 90_000, "seconds": 11_106.0, "augmentor_share": None, "range_s": None},
    "largest": {
        "limit": 64 * 2**30,
        "bytes_per_image": 12 * 2**20,
        "is_checked": False,
        "is_all_images": False,
        "batch_size": {"1": 4096, "2": 8000},
    },
    "versions": {"device": "a GPU"},
}


def said(tree):
    console = Console(width=120)
    with console.capture() as capture:
        console.print(estimate_table(tree))
    return capture.get().replace("\u00a0", " ")


def test_every_number_is_said_with_its_unit():
    text = said(TREE)
    for words in (
        *("train.batch_size = 256, a GPU", "student: resnet18", "11,689,512"),
        *("3 GiB", "300 MiB", "5 KiB", "of 64 GiB", "123 ms", "2,075 images/s"),
        *("25 % waiting for data", "the run, 90,000 steps", "3 h 5 min"),
        *("4,096", "by memory, not tried; 12 MiB an image", "accumulate = 2", "8,000"),
    ):
        assert words in text
    assert " at 224 px" not in text and "assumed" not in text


def test_what_was_changed_or_assumed_is_said():
    tree = copy.deepcopy(TREE) | {"fits": False, "accumulate": 4, "processes": 8}
    tree["length"] |= {"augmentor_share": 0.5, "range_s": [60.0, 7200.0]}
    tree["phases"].append(tree["phases"][0] | {"size_px": 128})
    text = said(tree)
    assert "does not fit as configured: measured with accumulate = 4" in text
    assert "each of 8 processes" in text and "student phase at 128 px" in text
    assert "50 % of the steps for the augmentor: assumed; 1 min to 2 h" in text
