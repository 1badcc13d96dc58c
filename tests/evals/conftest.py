"""A tiny CIFAR-10 in its published layout, and weights of the nets that read it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hard_fast.models.zoo import NetworkConfig, build_network, save_weights


@pytest.fixture
def cifar_root(tmp_path: Path) -> Path:
    """A data root with 12 images of CIFAR-10's test set, made up."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(256, (12, 3073), dtype=torch.uint8, generator=generator)
    rows[:, 0] %= 10
    folder = tmp_path / "data" / "cifar10" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    (folder / "test_batch.bin").write_bytes(rows.numpy().tobytes())
    return tmp_path / "data"


@pytest.fixture
def write_weights(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes random weights of a network for 32x32x3 and ten classes."""

    def write_weights(name: str, seed: int = 0, **options) -> Path:
        torch.manual_seed(seed)
        sizes = {"num_classes": 10, "in_channels": 3, "image_size": 32}
        net = build_network(NetworkConfig(name=name, options=options), **sizes)
        return save_weights(net, tmp_path / f"{name}-{seed}.safetensors")

    return write_weights


@pytest.fixture
def write_run():
    """Writes what evaluation reads of a finished run."""

    def write_run(run_dir, weights, student, data='{ kind = "cifar10" }'):
        run_dir.mkdir()
        weights.rename(run_dir / "student.safetensors")
        (run_dir / "config.toml").write_text(
            f"data = {data}\nstudent = {student}\n"
            'objective = { kind = "ce" }\noptim = { lr = 1e-3 }\ntrain = { steps = 1 }\n'
        )
        return run_dir

    return write_run
