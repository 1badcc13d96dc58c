"""Tiny pictures, folders and tar shards of them, written by the tests themselves."""

import io
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hard_fast.data.sources import Samples, list_shards
from tests.data.loops import NUM

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


@pytest.fixture(scope="session")
def solid() -> Callable[[int], bytes]:
    """A function that returns a JPEG of one grey, 8 * i + 4, so that any crop of it says i."""

    def solid(i: int) -> bytes:
        buffer = io.BytesIO()
        picture = Image.new("RGB", (40 + i % 5, 30 + i % 7), (8 * i + 4,) * 3)
        picture.save(buffer, "JPEG", quality=95)
        return buffer.getvalue()

    return solid


@pytest.fixture
def write_samples(tmp_path: Path, write_tar: Callable[..., Path]) -> Callable[..., Samples]:
    """A function that writes encoded pictures to files, or to shards; picture i has label i."""

    def write_samples(payloads: list[bytes], num_shards: int = 0) -> Samples:
        if num_shards:
            parts = np.array_split(np.arange(len(payloads)), num_shards)
            paths = [tmp_path / f"part-{k}.tar" for k in range(num_shards)]
            for path, part in zip(paths, parts, strict=True):
                both = [((f"{i}.jpg", payloads[i]), (f"{i}.cls", b"%d" % i)) for i in part]
                write_tar(path, [member for pair in both for member in pair])
            return list_shards([str(path) for path in paths], "data.root").samples
        (tmp_path / "loose").mkdir()
        paths = [tmp_path / "loose" / f"{i}.jpg" for i in range(len(payloads))]
        for path, payload in zip(paths, payloads, strict=True):
            path.write_bytes(payload)
        num = len(payloads)
        return Samples(
            tuple(map(str, paths)),
            np.arange(num, dtype=np.int32),
            np.zeros(num, np.int64),
            np.array([len(payload) for payload in payloads]),
            np.arange(num),
        )

    return write_samples


@pytest.fixture(params=[0, 2], ids=["folder", "shards"])
def samples(request, solid, write_samples) -> Samples:
    """Grey pictures that say which they are."""
    return write_samples([solid(i) for i in range(NUM)], request.param)


@pytest.fixture
def noisy(encode, write_samples) -> Samples:
    """Pictures whose every crop is different."""
    return write_samples([encode(size=(40, 30), seed=i) for i in range(NUM)])
