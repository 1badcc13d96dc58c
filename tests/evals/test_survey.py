from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hard_fast.data import Arrays, PicturesConfig
from hard_fast.data.toys import DigitsConfig
from hard_fast.evals.suites import Loaded, PictureFormat
from hard_fast.evals.survey import (
    Opened,
    check_suites,
    in_one_row,
    open_suites,
    picture_format,
    survey,
)
from hard_fast.runtime.dist import World

CPU = torch.device("cpu")
WORLD = World(0, 1, CPU)
FORMAT = PictureFormat(32, 1.0, "bilinear")


class First(nn.Module):
    """Class 0 for whatever it sees."""

    def forward(self, image: Tensor) -> Tensor:
        return torch.tensor([1.0] + [0.0] * 9).expand(len(image), -1)


def loaded(*shape: int, num: int = 10, columns: Tensor | None = None) -> Loaded:
    return Loaded(
        {"test": Arrays(torch.zeros(2, *shape).byte(), torch.zeros(2).long())}, num, columns
    )


def test_data_that_are_not_there_are_a_gap_and_no_error(cifar_root: Path):
    opened = open_suites(["usps", "cifar10", "cifar10"], cifar_root, FORMAT, CPU, limit=5)
    assert list(opened.suites) == ["cifar10"] and opened.suites["cifar10"].parts["test"].num == 5
    assert list(opened.gaps) == ["usps"] and "usps.h5" in opened.gaps["usps"]
    with pytest.raises(ValueError, match="cifar11: no such suite; choose from cifar10"):
        open_suites(["cifar11"], cifar_root, FORMAT, CPU)


def test_a_label_map_that_no_suite_reads_is_refused(cifar_root: Path):
    label_map = cifar_root / "map.json"
    with pytest.raises(ValueError, match="map.json: only folder:PATH and pacs:DOMAIN read one"):
        open_suites(["cifar10"], cifar_root, FORMAT, CPU, label_map=label_map)
    names = ["cifar10", "folder:mine+corrupted@1"]
    opened = open_suites(names, cifar_root, FORMAT, CPU, label_map=label_map)
    assert list(opened.suites) == ["cifar10"] and list(opened.gaps) == names[1:]


def test_student_and_teacher_are_scored_on_every_suite_and_part(cifar_root: Path):
    names = ["cifar10", "cifar10+corrupted:contrast,pixelate@1"]
    opened = open_suites(names, cifar_root, FORMAT, CPU)
    label = opened.suites["cifar10"].parts["test"].label
    share = 100 * (label == 0).double().mean().item()
    found = survey(First(), First(), opened, WORLD)
    assert found.student["cifar10"]["top1"] == found.teacher["cifar10"]["top1"]
    assert found.student["cifar10"]["top1"] == pytest.approx(share)
    assert found.student["cifar10"]["agreement"] == 100.0
    assert (
        set(found.parts[names[1]])
        == {"contrast/1", "pixelate/1"}
        == set(found.teacher_parts[names[1]])
    )
    assert found.student[names[1]]["contrast_error"] == pytest.approx(100 - share)
    row = in_one_row(found.student)
    assert row["cifar10_top1"] == found.student["cifar10"]["top1"]
    assert f"{names[1]}_corruption_error" in row and f"{names[1]}_contrast_error" not in row
    alone = survey(First(), None, opened, WORLD)
    assert alone.teacher is None and "agreement" not in alone.student["cifar10"]


@pytest.mark.parametrize(
    ("suite", "said"),
    [
        (loaded(1, 8, 8), "mine: its images are 1x8x8, and the network reads 3x8x8"),
        (loaded(3, 8, 8, num=7), "mine: has 7 classes, and the network 10 outputs"),
        (
            loaded(3, 8, 8, num=2, columns=torch.tensor([3, 12])),
            "mine: its classes are outputs up to number 12, and the network has 10",
        ),
    ],
)
def test_other_images_and_classes_are_refused_before_anything_runs(suite: Loaded, said: str):
    with pytest.raises(ValueError, match=said):
        check_suites(Opened({"mine": suite}, {}), (3, 8, 8), 10)


def test_what_fits_passes():
    two = loaded(3, 8, 8, num=2, columns=torch.tensor([3, 9]))
    check_suites(Opened({"mine": loaded(3, 8, 8), "two": two}, {}), (3, 8, 8), 10)


def test_a_mistake_met_on_the_way_begins_with_the_suite():
    with pytest.raises(ValueError, match="mine: the network has 10 outputs"):
        survey(First(), None, Opened({"mine": loaded(3, 8, 8, num=7)}, {}), WORLD)


def test_the_format_of_pictures_is_that_of_the_run():
    config = PicturesConfig(root="x", size=64, eval_crop=0.5, interpolation="bicubic")
    assert picture_format(config, 64) == PictureFormat(64, 0.5, "bicubic")
    assert picture_format(DigitsConfig(), 28) == PictureFormat(28, 0.875, "bilinear")
