"""Tiny pictures, folders and tar shards of them, written by the tests themselves."""

import io
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Encode = Callable[..., bytes]


@pytest.fixture(scope="session")
def encode() -> Encode:
    """A function that returns an encoded picture of noise in any Pillow mode and format."""

    def encode(
        kind: str = "JPEG",
        mode: str = "RGB",
        size: tuple[int, int] = (24, 16),
        seed: int = 0,
        orientation: int | None = None,
        **options,
    ) -> bytes:
        noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
        if mode == "I;16":
            picture = Image.fromarray(noise[:, :, 0].astype(np.uint16) * 257)
        else:
            picture = Image.fromarray(noise).convert(mode)
        if orientation is not None:
            options["exif"] = Image.Exif()
            options["exif"][0x0112] = orientation
        buffer = io.BytesIO()
        picture.save(buffer, kind, **options)
        return buffer.getvalue()

    return encode


@pytest.fixture(scope="session")
def write_tar() -> Callable[..., Path]:
    """A function that writes a tar of (name, payload) pairs and returns its path."""

    def write_tar(
        path: Path, members: Iterable[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w", format=form) as tar:
            for name, payload in members:
                info = tarfile.TarInfo(name)
                info.size = len(payload)
                tar.addfile(info, io.BytesIO(payload))
        return path

    return write_tar


@pytest.fixture
def write_shard(encode: Encode, write_tar: Callable[..., Path]) -> Callable[..., Path]:
    """A function that writes a shard of one picture per label, with keys 000, 001 and so on."""

    def write_shard(path: Path, labels: Iterable[int]) -> Path:
        members = []
        for i, label in enumerate(labels):
            members += [(f"{i:03d}.jpg", encode(seed=i)), (f"{i:03d}.cls", str(label).encode())]
        return write_tar(path, members)

    return write_shard


@pytest.fixture
def folder(tmp_path: Path, encode: Encode) -> Path:
    """Two classes of four training pictures and one for evaluation each."""
    root = tmp_path / "pictures"
    for part, num in (("train", 4), ("val", 1)):
        for name in ("cat", "dog"):
            place = root / part / name
            place.mkdir(parents=True)
            for i in range(num):
                (place / f"{i}.jpg").write_bytes(encode(seed=i))
    return root
