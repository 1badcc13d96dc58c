import pytest
import torch

from hard_fast.evals.corruptions import CORRUPTIONS
from hard_fast.evals.suites import PictureFormat, find_suite
from hard_fast.evals.suites.names import SuiteName, check_names, parse_name, pick, split_names
from hard_fast.evals.suites.suite import Request

ALL = (1, 2, 3, 4, 5)


@pytest.mark.parametrize(
    "name, wanted",
    [
        ("imagenet", SuiteName("imagenet", "", None)),
        ("pacs:photo", SuiteName("pacs", "photo", None)),
        ("cifar10_c@4", SuiteName("cifar10_c", "", 4)),
        ("cifar10_c:fog,snow@4", SuiteName("cifar10_c", "fog,snow", 4)),
        ("folder:a@2/val", SuiteName("folder", "a@2/val", None)),
        ("mnist+corrupted", SuiteName("mnist", "", None, CORRUPTIONS, ALL)),
        ("mnist+corrupted@3", SuiteName("mnist", "", None, CORRUPTIONS, (3,))),
        ("mnist+corrupted:fog,frost", SuiteName("mnist", "", None, ("fog", "frost"), ALL)),
        (
            "folder:a:b/val+corrupted:saturate@5",
            SuiteName("folder", "a:b/val", None, ("saturate",), (5,)),
        ),
    ],
)
def test_names_are_taken_apart(name, wanted):
    assert parse_name(name) == wanted


@pytest.mark.parametrize(
    "name, text",
    [
        ("mnist+corrupted:fogg", "no corruption 'fogg'; choose from fog"),
        ("mnist+corrupted@6", "severity '6' is not from 1 to 5"),
        ("cifar10_c:fog@x", "severity 'x' is not from 1 to 5"),
        ("mnist+corruptedly", "write mnist+corrupted, +corrupted:fog,snow or +corrupted@3"),
    ],
)
def test_wrong_names_end_with_one_line(name, text):
    with pytest.raises(ValueError) as error:
        parse_name(name)
    assert str(error.value).startswith(f"{name}: ") and text in str(error.value)


def test_a_list_of_suites_keeps_lists_of_corruptions_together():
    text = "mnist, cifar10+corrupted:fog,snow@3,cifar10_c:spatter,pixelate,folder:a/b,,usps"
    assert split_names(text) == [
        "mnist",
        "cifar10+corrupted:fog,snow@3",
        "cifar10_c:spatter,pixelate",
        "folder:a/b",
        "usps",
    ]


def test_unknown_corruptions_are_named():
    check_names("a", ("fog",), ("fog", "snow"))
    with pytest.raises(ValueError, match="a: no corruption 'frost'; choose from fog, snow"):
        check_names("a", ("fog", "frost"), ("fog", "snow"))


def test_picking_needs_what_was_asked_for_only(tmp_path):
    suite, asked = find_suite("cifar10_c:snow")
    wanted = PictureFormat(32, 1.0, "bilinear"), torch.device("cpu")
    request = Request(suite, "cifar10_c:snow", asked.detail, None, tmp_path, *wanted)

    def find(name):
        return tmp_path / name if name == "snow" else None

    known = ("fog", "snow"), ()
    assert pick(request, tmp_path, find, *known) == {"snow": tmp_path / "snow"}
    with pytest.raises(ValueError, match=f"{tmp_path}: lacks fog, expected CIFAR-10-C/"):
        pick(request._replace(detail="fog"), tmp_path, find, *known)
