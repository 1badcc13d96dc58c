"""Suites in tiny: pictures, folders of classes, and a way to ask for what lies in tmp_path."""

import functools
import io
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hard_fast.evals.suites import Loaded, PictureFormat, load_suite

CPU = torch.device("cpu")
FORMAT = PictureFormat(16, 0.875, "bilinear")


@functools.cache
def grey(level: int, size: tuple[int, int] = (20, 18)) -> bytes:
    """A PNG of one grey, so that any crop of it says which picture it is."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (level,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def picture() -> Callable[..., bytes]:
    """A function that returns a picture of one grey."""
    return grey


@pytest.fixture
def write_folders(tmp_path: Path) -> Callable[[str, Iterable[str]], Path]:
    """A function that writes a picture into each class folder; its grey is the place in the list,
    modulo 256."""

    def write_folders(home: str, classes: Iterable[str]) -> Path:
        for i, name in enumerate(classes):
            place = tmp_path / home / name
            place.mkdir(parents=True)
            (place / "0.png").write_bytes(grey(i % 256))
        return tmp_path / home

    return write_folders


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Loaded]:
    """A function that loads a suite whose data were written below tmp_path."""

    def load(name: str, **options) -> Loaded:
        return load_suite(name, tmp_path, FORMAT, CPU, **options)

    return load


@pytest.fixture
def refused(load: Callable[..., Loaded]) -> Callable[..., str]:
    """A function that returns the one line with which a suite is refused."""

    def refused(name: str, **options) -> str:
        with pytest.raises(ValueError) as error:
            load(name, **options)
        assert "\n" not in str(error.value)
        return str(error.value)

    return refused


@pytest.fixture
def see() -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """A function that returns all images and labels of one part of a loaded suite."""

    def see(loaded: Loaded, part: str = "test", batch_size: int = 64):
        batches = list(loaded.parts[part].batches(batch_size))
        for batch in batches:
            assert batch.image.dtype == torch.uint8 and batch.label.dtype == torch.int64
            assert batch.image.permute(0, 2, 3, 1).is_contiguous()
        return torch.cat([b.image for b in batches]), torch.cat([b.label for b in batches])

    return see


@pytest.fixture(scope="session")
def noise() -> Callable[..., np.ndarray]:
    """A function that returns random bytes in the shape of an image array."""

    def noise(*shape: int) -> np.ndarray:
        return np.random.default_rng(0).integers(0, 256, shape, np.uint8)

    return noise
