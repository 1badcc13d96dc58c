import torch
from torch import nn

from hard_fast.data import Arrays
from hard_fast.evals import runner
from hard_fast.evals.runner import evaluate
from hard_fast.runtime.dist import World
from hard_fast.types import Outputs

WORLD = World(0, 1, torch.device("cpu"))


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


def test_each_set_has_its_prefix_and_every_sample_counts_once(monkeypatch):
    monkeypatch.setattr(runner, "_MAX_BATCH", 2)
    image = torch.tensor([0, 0, 255, 255, 255], dtype=torch.uint8).view(5, 1, 1, 1)
    right, wrong = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([0, 0, 1, 1, 0])
    sets = {"test": Arrays(image, right), "shifted": Arrays(image, wrong)}
    found = evaluate(Bright(), sets, WORLD)
    assert found["top1"] == 100.0 and found["shifted_top1"] == 80.0


def test_regression_is_measured_against_the_truths_outputs():
    image = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)
    sets = {"test": Arrays(image, torch.tensor([-1, -1]))}
    found = evaluate(Mean(2.0), sets, WORLD, answer="values", truth=Mean(1.0))
    assert found == {"mse": 5.0}
