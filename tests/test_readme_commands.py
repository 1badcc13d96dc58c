"""Every command of the README runs: shrunk where it trains, on made-up data in true formats."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from hard_fast.models.zoo import NetworkConfig, build_network

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
PROGRAMS = ("python ", "torchrun ", "make ", "bash ")
# What the text leaves to the reader.
NAMES = {"DIR": "runs/r18", "FILE": "teacher.safetensors", "NODE": "localhost", "ID": "7"}
# These fetch, install or measure for minutes; other tests run them.
ELSEWHERE = (
    "make ",
    "python -m hard_fast.data.prepare mnist",
    "bash bench/gpu.sh",
    "python -m bench",
)


def commands() -> list[str]:
    """Every command line in a block of the README, without its comment, in order."""
    found = []
    for kind, block in BLOCKS:
        if kind or block.startswith("#!"):
            continue
        lines = block.replace("\\\n", " ").splitlines()
        found += [line.partition("  #")[0].strip() for line in lines if line.startswith(PROGRAMS)]
    return [command for command in found if not command.startswith(ELSEWHERE)]


def shrunk(command: str, number: int) -> str:
    """The command as it can run here: in seconds, on one machine."""
    command = command.replace("prepare check DIR", "prepare check data/caltech25")
    for name, value in NAMES.items():
        command = re.sub(rf"\b{name}\b", value, command)
    command = command.replace("--nproc-per-node 8", "--nproc-per-node 2")
    command = re.sub(r"--nnodes \d+", "--nnodes 1", command).replace(":29500", ":0")
    if command.startswith("torchrun "):
        command = "python -m torch.distributed.run " + command.removeprefix("torchrun ")
    if re.search(r"hard_fast\.(train|study|estimate|rank) ", command):
        command += " smoke=true" * ("smoke=true" not in command)
        command += f" run_dir=runs/{number}" * ("run_dir" not in command)
    return f"{sys.executable} {command.removeprefix('python ')}"


def run(command: str, place: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = f"{ROOT}:{ROOT / 'kernels'}"
    given = {"cwd": place, "env": environment, "capture_output": True, "text": True}
    return subprocess.run(["bash", "-c", command], timeout=300, **given)


def write_data(place: Path) -> None:
    """A few pictures of CIFAR-10 and of a folder, in their formats, and weights of strangers."""
    random = np.random.default_rng(0)
    folder = place / "data" / "cifar10" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        images = random.integers(0, 256, (40, 3073), np.uint8)
        images[:, 0] = np.arange(40) % 10
        (folder / f"{name}.bin").write_bytes(images.tobytes())
    raw = place / "data" / "mnist" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        head, sizes = bytes([0, 0, 8]), (40, 28, 28)
        images, labels = (
            random.integers(0, 256, sizes, np.uint8),
            np.arange(40, dtype=np.uint8) % 10,
        )
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            shape = b"".join(size.to_bytes(4, "big") for size in array.shape)
            payload = head + bytes([array.ndim]) + shape + array.tobytes()
            (raw / f"{part}-{name}-ubyte").write_bytes(payload)
    label_map = json.loads((ROOT / "configs/label_maps/caltech25.json").read_text())
    for part, name in itertools.product(("train", "val"), label_map):
        folder = place / "data" / "caltech25" / part / name
        folder.mkdir(parents=True)
        picture = Image.fromarray(random.integers(0, 256, (40, 50, 3), np.uint8))
        picture.save(folder / "1.jpg")
    (place / "data" / "weights").mkdir()
    sizes = {"num_classes": 10, "in_channels": 3, "image_size": 32}
    for name, file in (("20", "resnet20.th"), ("56", "data/weights/resnet56-x.th")):
        network = build_network(NetworkConfig(name=f"cifar_resnet{name}"), **sizes).net
        torch.save({"state_dict": network.state_dict()}, place / file)
    lite = timm.create_model("tf_efficientnet_lite0")
    torch.save(lite.state_dict(), place / "efficientnet-lite0.pth")
    shutil.copytree(ROOT / "configs", place / "configs")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A user's folder: data, weights and two runs that commands after them read."""
    place = tmp_path_factory.mktemp("user")
    write_data(place)
    for command in (
        "python -m hard_fast.train --config imagenet/hard_affine_r18 run_dir=runs/r18",
        "python -m hard_fast.study --config quickstart run_dir=runs/quickstart study.seeds=[0]",
    ):
        done = run(shrunk(command, 0), place)
        assert done.returncode == 0, done.stderr
    return place


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", range(len(commands())), ids=lambda i: f"{i}-{commands()[i][:60]}"
)
def test_a_command_runs(number, place):
    command = commands()[number]
    done = run(shrunk(command, number), place)
    # Who has no ImageNet is told what is missing.
    is_gap = "imagenet_a" in command and "imagenet_a: no imagenet-a/" in done.stdout
    assert done.returncode == (1 if is_gap else 0), f"{done.args}\n{done.stdout}\n{done.stderr}"


def test_what_runs_elsewhere_exists():
    targets = set(re.findall(r"^make ([\w-]+)", README, re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text()
    assert targets and all(re.search(rf"^{name}:", makefile, re.MULTILINE) for name in targets)
    assert len(commands()) >= 15


def test_the_loop_of_ones_own_runs(tmp_path, monkeypatch):
    (code,) = [block for kind, block in BLOCKS if kind == "python" and "Distiller(" in block]
    assert len(code.splitlines()) <= 10
    monkeypatch.chdir(tmp_path)
    images = torch.randint(0, 256, (32, 1, 8, 8), dtype=torch.uint8)
    loader = [(images[i : i + 8], torch.arange(8) % 4) for i in range(0, 32, 8)]
    student, teacher = (nn.Sequential(nn.Flatten(), nn.Linear(64, 4)) for _ in range(2))
    before = {name: value.clone() for name, value in student.state_dict().items()}
    names = {"student": student, "teacher": teacher, "loader": loader}
    exec(code, names)
    assert names["distiller"].steps_done == 80
    saved = torch.load(tmp_path / "student.pt", weights_only=True)
    assert saved.keys() == before.keys()
    assert not any(torch.equal(saved[name], before[name]) for name in before)


@pytest.mark.slow
def test_the_method_that_the_readme_adds_runs(tmp_path):
    source = [block for kind, block in BLOCKS if kind == "python" and "class Dkd(" in block]
    case = [block for kind, block in BLOCKS if kind == "python" and "case DkdConfig" in block]
    copied = shutil.copytree(ROOT / "hard_fast", tmp_path / "hard_fast", symlinks=False)
    (copied / "objectives" / "dkd.py").write_text(source[0])
    kinds = copied / "objectives" / "__init__.py"
    text = "from hard_fast.objectives.dkd import Dkd, DkdConfig\n" + kinds.read_text()
    text = text.replace("    | PrototypesConfig,\n", "    | PrototypesConfig\n    | DkdConfig,\n")
    before, builds, after = text.partition("def build_objective(")
    after = after.replace("    match config:\n", f"    match config:\n{case[0]}", 1)
    kinds.write_text(before + builds + after)
    (tmp_path / "run.toml").write_text(
        """
        run_dir = "run"
        data = { kind = "digits" }
        student = { name = "mlp" }
        teacher = { name = "cnn" }
        objective = { kind = "dkd" }
        optim = { kind = "adam", lr = 1e-3 }
        train = { steps = 3, batch_size = 16 }
        """
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = f"{tmp_path}:{ROOT / 'kernels'}"
    command = [sys.executable, "-m", "hard_fast.train", "--config", "run.toml"]
    given = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
    done = subprocess.run(command, timeout=120, **given)
    assert done.returncode == 0, done.stderr
    assert '"nckd"' in (tmp_path / "run" / "metrics.jsonl").read_text()
