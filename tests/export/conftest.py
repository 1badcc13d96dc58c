"""A run to export, and pictures to export it with."""

import pytest
import torch
from torch import nn

from hard_fast.models.taps import Normalized
from hard_fast.runtime.configfile import dump, merge
from hard_fast.train import main


@pytest.fixture
def finished_run(tiny_run, tmp_path):
    """The directory of a finished HARD run of 12 steps, with a teacher that has weights."""
    teacher = tmp_path / "teacher"
    own = {key: value for key, value in tiny_run.items() if key in ("data", "optim", "checkpoint")}
    own |= {"run_dir": str(teacher), "objective": {"kind": "ce"}, "student": tiny_run["teacher"]}
    own["train"] = tiny_run["train"] | {"steps": 3}
    tiny_run = merge(tiny_run, {"teacher": {"checkpoint": str(teacher / "student.safetensors")}})
    for name, tree in (("teacher", own), ("run", tiny_run)):
        path = tmp_path / f"{name}.toml"
        path.write_text(dump(tree))
        assert main(["--config", str(path)]) == 0
    return tmp_path / "run"


@pytest.fixture
def small_net():
    """A network with everything that 8 bits treat apart: convolution, ReLU, pooling, a sum."""
    torch.manual_seed(0)
    return Normalized(Branched(), [0.4], [0.3]).eval().requires_grad_(False)


class Branched(nn.Module):
    """A stem and a residual block on one-channel pictures, three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.body = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.pool(self.stem(x).relu())
        x = (self.body(x) + x).relu()
        return self.head(x.mean((2, 3)))
