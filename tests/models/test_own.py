"""Networks of the person's own: from any module that can be imported, tried out before a run."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

from hard_fast.models.own import build_own, count_outputs

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"num_classes": 3, "in_channels": 1, "image_size": 4}
MODULE = """
    from torch import nn

    def linear(num_classes, in_channels, image_size, bias=True):
        num = in_channels * image_size**2
        return nn.Sequential(nn.Flatten(), nn.Linear(num, num_classes, bias))

    def deaf(num_classes, in_channels, image_size):
        return linear(7, in_channels, image_size)

    def small(num_classes, in_channels, image_size):
        return linear(num_classes, in_channels, 2)

    def not_a_net(num_classes, in_channels, image_size):
        return "net"

    class Wrapped(nn.Module):
        def __init__(self, how):
            super().__init__()
            self.how, self.net = how, linear(3, 1, 4)

        def forward(self, image):
            return self.how(self.net(image))

    def dictionary(num_classes, in_channels, image_size):
        return Wrapped(lambda logits: {"logits": logits})

    def flat(num_classes, in_channels, image_size):
        return Wrapped(lambda logits: logits.flatten())

    def broken(num_classes, in_channels, image_size):
        return 1 / 0
"""


@pytest.fixture(autouse=True)
def own_module(tmp_path, monkeypatch):
    """A file my_nets.py in the current folder, which is where python -m and torchrun look."""
    (tmp_path / "my_nets.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    yield
    sys.modules.pop("my_nets", None)


def mistake(name, **options):
    with pytest.raises(ValueError) as caught:
        build_own(f"python:{name}", options, SIZES)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_function_of_a_file_in_this_folder():
    net = build_own("python:my_nets:linear", {"bias": False}, SIZES)
    assert net(torch.rand(2, 1, 4, 4)).shape == (2, 3) and net[1].bias is None
    assert net.training and all(module.training for module in net.modules())


def test_what_cannot_be_found_or_called():
    assert "No module named 'my_netz'" in mistake("my_netz:linear")
    assert "of a module in this folder or on PYTHONPATH" in mistake("my_netz:linear")
    assert "linar" in mistake("my_nets:linar")
    assert "must read python:package.module:function" in mistake("my_nets")
    assert "unexpected keyword argument 'bas'" in mistake("my_nets:linear", bas=1)
    assert "options.image_size: is given by the data" in mistake("my_nets:linear", image_size=1)
    assert "returned a str, not an nn.Module" in mistake("my_nets:not_a_net")
    with pytest.raises(ZeroDivisionError):
        build_own("python:my_nets:broken", {}, SIZES)


def test_what_would_fail_at_the_first_step_fails_at_the_start():
    said = mistake("my_nets:deaf")
    assert said.startswith("name = 'python:my_nets:deaf': has 7 outputs, and num_classes is 3")
    said = mistake("my_nets:small")
    assert "my_nets:small': cannot read an image of 1x4x4 (RuntimeError: " in said
    assert "must return logits or a pair of logits, not a dict" in mistake("my_nets:dictionary")
    assert "returned [3] for one image; it must be [1, number of classes]" in mistake(
        "my_nets:flat"
    )


def test_outputs_are_counted_without_a_trace():
    net = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(0.5), nn.Flatten(), nn.Linear(16, 5))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    drawn = torch.get_rng_state()
    assert count_outputs(net, (1, 4, 4)) == 5
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert torch.equal(drawn, torch.get_rng_state()) and net.training
    net[0].eval()
    count_outputs(net, (1, 4, 4))
    assert net.training and not net[0].training
    for mode in (False, True):
        net.train(mode)
        with pytest.raises(ValueError, match="cannot read an image of 1x8x8"):
            count_outputs(net, (1, 8, 8))
        assert all(module.training == mode for module in net.modules())


RUN = """
    [data]
    kind = "synthetic"
    size = 4
    channels = 1
    num_train = 32
    num_test = 8
    [student]
    name = "python:my_nets:linear"
    [teacher]
    name = "python:my_nets:linear"
    checkpoint = "mine.pth"
    [objective]
    kind = "kd"
    [optim]
    lr = 0.01
    [train]
    steps = 2
    batch_size = 8
    device = "cpu"
    tensorboard = false
    gallery = false
"""


@pytest.mark.slow
def test_own_networks_weights_and_evaluation_from_a_folder_of_ones_own(tmp_path):
    net = build_own("python:my_nets:linear", {}, SIZES | {"num_classes": 10})
    weights = {f"module.{name}": value for name, value in net.state_dict().items()}
    torch.save({"model": weights, "epoch": 3}, tmp_path / "mine.pth")
    (tmp_path / "run.toml").write_text(textwrap.dedent(RUN))
    # As installed: the package is found, and this folder is not the package's own.
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    train = ["-m", "hard_fast.train", "--config", "run.toml"]
    for command in (
        [*train, "run_dir=one"],
        [*torchrun, *train, "run_dir=two"],
        ["-m", "hard_fast.evaluate", "--run", "one", "--suites", "own"],
    ):
        done = subprocess.run(
            [sys.executable, *command],
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
