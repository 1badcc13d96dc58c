import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hard_fast.data import Arrays, DataSet
from hard_fast.data.toys import SyntheticConfig
from hard_fast.evals.surveyor import EvaluationConfig, Surveyor
from hard_fast.runtime.dist import World

WORLD = World(0, 1, torch.device("cpu"))
PART = Arrays(torch.zeros(1, 3, 32, 32).byte(), torch.zeros(1).long())


class First(nn.Module):
    """Class 0 for whatever it sees; counts what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.num_seen = 0

    def forward(self, image: Tensor) -> Tensor:
        self.num_seen += len(image)
        return torch.tensor([1.0] + [0.0] * 9).expand(len(image), -1)


def surveyor(root: Path, part: Arrays = PART, num_classes: int = 10, **given) -> Surveyor:
    options = {"suites": ["cifar10", "usps"], "data_root": str(root), "every_epochs": 2.0}
    learned = DataSet(num_classes, part, None, {})
    config = EvaluationConfig(**(options | given))
    return Surveyor(config, SyntheticConfig(), learned, 10, WORLD)


def test_suites_have_their_turn_at_the_first_evaluation_after_so_many_epochs(cifar_root: Path):
    mine, student = surveyor(cifar_root, limit=4), First()
    assert [line.split(":")[1] for line in mine.warnings] == [" usps"]
    # Evaluations every 15 steps, two epochs are 20.
    steps = range(15, 91, 15)
    turns = [step for step in steps if mine.row(student, step, 15)]
    assert turns == [30, 45, 60, 90] and student.num_seen == 4 * len(turns)
    assert {"cifar10_top1", "cifar10_nll", "cifar10_ece"} <= set(mine.row(student, 30, 15))


def test_at_the_end_a_file_holds_student_teacher_and_paper(cifar_root: Path, tmp_path: Path):
    mine = surveyor(cifar_root, paper="CIFAR R18->ViT KD")
    ours, theirs = mine.finish(First(), First(), "cnn", tmp_path)
    tree = json.loads((tmp_path / "evaluation.json").read_text())
    assert tree["suites"]["cifar10"]["top1"] == ours["cifar10_top1"] == theirs["cifar10_top1"]
    assert tree["teacher"]["model"] == "cnn" and "usps" in tree["gaps"]
    assert tree["paper"]["suites"]["cifar10"] == {"top1": 67.9}


def test_without_suites_nothing_happens(tmp_path: Path):
    none = Surveyor(None, SyntheticConfig(), DataSet(10, PART, None, {}), 10, WORLD)
    assert none.row(First(), 10, 10) == {} and none.warnings == []
    assert none.finish(First(), None, None, tmp_path) == ({}, {})
    assert not list(tmp_path.iterdir())


def test_a_suite_of_other_images_or_classes_is_refused_at_the_start(cifar_root: Path):
    grey = Arrays(torch.zeros(1, 1, 28, 28).byte(), torch.zeros(1).long())
    with pytest.raises(ValueError, match="cifar10: its images are 3x32x32"):
        surveyor(cifar_root, grey)
    with pytest.raises(ValueError, match="cifar10: has 10 classes, and the network 7 outputs"):
        surveyor(cifar_root, num_classes=7)
