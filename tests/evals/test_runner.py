import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hard_fast.data import Arrays
from hard_fast.evals import runner
from hard_fast.evals.runner import compare, evaluate, score
from hard_fast.evals.suites import Loaded
from hard_fast.runtime.dist import World
from hard_fast.types import Outputs

WORLD = World(0, 1, torch.device("cpu"))
SCRIPT = Path(__file__).with_name("two_processes.py")


class Bright(nn.Module):
    """Class 1 for images brighter than a half."""

    def forward(self, image: torch.Tensor) -> Outputs:
        assert not self.training and image.dtype == torch.float32
        score = image.mean((1, 2, 3)) - 0.5
        return Outputs(torch.stack([-score, score], 1), {})


class Mean(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, image: torch.Tensor) -> Outputs:
        return Outputs(self.factor * image.mean((1, 2, 3))[:, None], {})


class Table(nn.Module):
    """The probabilities in the row that an image's brightness names; bare logits."""

    def __init__(self, rows: list[list[float]]) -> None:
        super().__init__()
        self.rows = torch.tensor(rows)

    def forward(self, image: Tensor) -> Tensor:
        return self.rows[(image.mean((1, 2, 3)) * 255).round().long()].log()


def numbered(label: list[int]) -> Arrays:
    """Images whose brightness is their number."""
    image = torch.arange(len(label), dtype=torch.uint8).view(-1, 1, 1, 1)
    return Arrays(image, torch.tensor(label))


def suite(part: Arrays, num: int, columns=None, sets=None) -> Loaded:
    return Loaded({"test": part}, num, columns, sets)


def test_each_set_has_its_prefix_and_every_sample_counts_once(monkeypatch):
    monkeypatch.setattr(runner, "_MAX_BATCH", 2)
    image = torch.tensor([0, 0, 255, 255, 255], dtype=torch.uint8).view(5, 1, 1, 1)
    right, wrong = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([0, 0, 1, 1, 0])
    sets = {"test": Arrays(image, right), "shifted": Arrays(image, wrong)}
    found = evaluate(Bright(), sets, WORLD)
    assert found["top1"] == 100.0 and found["shifted_top1"] == 80.0
    assert set(found) == {"top1", "nll", "ece", "shifted_top1", "shifted_nll", "shifted_ece"}


def test_while_it_learns_top5_is_told_from_a_hundred_classes_on():
    part = numbered([0])
    rows = [[1 / 100] * 100]
    assert "top5" in evaluate(TableOutputs(rows), {"test": part}, WORLD)
    assert "top5" not in evaluate(TableOutputs([rows[0][:99]]), {"test": part}, WORLD)


class TableOutputs(Table):
    def forward(self, image: Tensor) -> Outputs:
        return Outputs(super().forward(image), {})


def test_regression_is_measured_against_the_truths_outputs():
    image = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)
    sets = {"test": Arrays(image, torch.tensor([-1, -1]))}
    found = evaluate(Mean(2.0), sets, WORLD, answer="values", truth=Mean(1.0))
    assert found == {"mse": 5.0}


def test_columns_pick_the_outputs_that_are_a_suites_classes():
    rows = [[0.5, 0.1, 0.3, 0.1], [0.5, 0.3, 0.1, 0.1]]
    loaded = suite(numbered([1, 1]), 2, columns=torch.tensor([1, 2]))
    found = score(Table(rows), loaded, WORLD)["test"]
    # Output 0 is no class here, so that the first image is right.
    assert found["top1"] == 50.0
    assert found["nll"] == pytest.approx(-(torch.tensor([0.75, 0.25]).log().mean().item()))


def test_a_label_map_adds_up_the_probabilities_of_a_class():
    rows = [[0.25, 0.2, 0.3, 0.25], [0.1, 0.1, 0.7, 0.1]]
    columns = torch.tensor([[0, 1], [2, -1]])
    found = score(Table(rows), suite(numbered([0, 1]), 2, columns), WORLD)["test"]
    # 0.45 beside 0.3, though 0.3 is the largest output.
    assert found["top1"] == 100.0
    want = torch.tensor([0.45 / 0.75, 0.7 / 0.9]).log().mean().item()
    assert found["nll"] == pytest.approx(-want, rel=1e-6)


def test_sets_of_labels_are_scored_by_real_alone():
    rows = [[0.6, 0.3, 0.1], [0.6, 0.3, 0.1], [0.1, 0.3, 0.6]]
    # The labels are rows of the sets, in another order than the images.
    sets = torch.tensor([[1, 2], [0, 1], [-1, -1]])
    loaded = suite(numbered([1, 0, 2]), 3, sets=sets)
    assert score(Table(rows), loaded, WORLD) == {"test": {"real": 50.0}}


def test_a_student_beside_its_teacher():
    student, teacher = Table([[0.5, 0.5], [0.2, 0.8]]), Table([[0.9, 0.1], [0.2, 0.8]])
    found = compare(student, teacher, suite(numbered([0, 0]), 2), WORLD)
    ours, theirs = found.student["test"], found.teacher["test"]
    want = 0.9 * torch.tensor(0.9 / 0.5).log() + 0.1 * torch.tensor(0.1 / 0.5).log()
    assert ours["teacher_kl"] == pytest.approx(want.item() / 2, rel=1e-6)
    assert ours["agreement"] == 100.0 and theirs["top1"] == 50.0
    assert "t_stddev" not in ours and "agreement" not in theirs
    alone = compare(student, None, suite(numbered([0, 0]), 2), WORLD)
    assert alone.teacher is None and set(alone.student["test"]) == {"top1", "nll", "ece"}


def test_draws_of_the_teachers_spread_are_whole_and_the_same_every_time(monkeypatch):
    monkeypatch.setattr(runner, "_DRAW_SIZE", 2)
    rows = [[0.9, 0.1], [0.7, 0.3], [0.4, 0.6], [0.2, 0.8], [0.5, 0.5]]
    loaded = suite(numbered([0] * 5), 2)
    found = score(Table(rows), loaded, WORLD, teacher=Table(rows))["test"]["t_stddev"]
    draw = runner._draws(5, WORLD.device)
    assert sorted(draw.tolist()) == [0, 0, 1, 1, 2]
    means = torch.stack([torch.tensor(rows)[draw == i].mean(0) for i in range(2)])
    assert found == pytest.approx(means.std(0).mean().item(), rel=1e-6)
    monkeypatch.setattr(runner, "_MAX_BATCH", 3)
    again = score(Table(rows), loaded, WORLD, teacher=Table(rows))["test"]["t_stddev"]
    assert again == pytest.approx(found, rel=1e-12)


@pytest.mark.parametrize(
    ("loaded", "said"),
    [
        (suite(numbered([0]), 3), "has 2 outputs, and these data 3 classes"),
        (suite(numbered([0]), 2, torch.tensor([0, 2])), "has 2 outputs, .* up to 2"),
    ],
)
def test_a_network_of_other_classes_is_refused(loaded, said):
    with pytest.raises(ValueError, match=said):
        score(Table([[0.5, 0.5]]), loaded, WORLD)


@pytest.mark.slow
def test_two_processes_find_what_one_finds():
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [sys.executable, *torchrun, str(SCRIPT)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert all(f"rank {rank} is through" in done.stdout for rank in (0, 1))
