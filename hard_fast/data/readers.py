"""The official files of MNIST (idx) and CIFAR-10 (binary), and what every reader checks.

Every reader returns the whole set on the CPU, before the validation split. A mistake in a file is
one ValueError line: which file, what is wrong with it, what to do.
"""

import gzip
import io
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from hard_fast.data.arrays import Arrays, DataSet, SplitConfig
from hard_fast.data.shifted import ShiftedConfig

MNIST_FOLDERS = ("", "raw", "MNIST/raw", "mnist/raw")
CIFAR10_FOLDERS = ("", "cifar-10-batches-bin", "cifar10/cifar-10-batches-bin")
# Deflate packs at most 1,032 bytes into one.
_MOST_TIMES = 1032
CIFAR10_TRAIN = tuple(f"data_batch_{i}.bin" for i in range(1, 6))


class MnistConfig(ShiftedConfig):
    """MNIST, or any set in its four idx files with labels 0 to 9, gzipped or not."""

    kind: Literal["mnist"] = "mnist"
    root: str | None = None
    """Folder of the files, or of raw/, MNIST/raw/ or mnist/raw/."""


def read_mnist(config: MnistConfig) -> DataSet:
    """MNIST; its test is scored as it is ("centered") and as MNIST-C translates it ("shifted")."""
    root = _root(config.root, "mnist")

    def read_part(prefix: str) -> Arrays:
        names = (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
        paths = [_require(root, MNIST_FOLDERS, (n, f"{n}.gz"), "mnist") for n in names]
        image, label = read_idx(paths[0], ndim=3), read_idx(paths[1], ndim=1)
        return checked(image[:, None], label, paths[0], paths[1], num_classes=10)

    test = read_part("t10k")
    train = read_part("train") if config.reads_train else test
    check_same_shape(train, test, root)
    return DataSet(10, train, None, {"test": test})


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """The array of unsigned bytes in an idx file, gzipped or not.

    Raises:  ValueError if the file is anything but one such array of `ndim` dimensions.
    """
    payload = _read_bytes(path)
    again = "fetch it again"
    if payload[:2] == b"\x1f\x8b":
        payload = _unzip(payload, path, start=4 + 4 * ndim)
    if len(payload) < 4 or payload[:2] != b"\0\0":
        raise ValueError(f"{path}: not an idx file (starts with {payload[:4]!r}); {again}")
    if payload[2] != 0x08:
        raise ValueError(
            f"{path}: idx data type 0x{payload[2]:02x}, expected 0x08 (unsigned bytes); {again}"
        )
    if payload[3] != ndim:
        raise ValueError(
            f"{path}: idx array of {payload[3]} dimensions, expected {ndim}; images and labels "
            "may have changed places"
        )
    start = 4 + 4 * ndim
    if len(payload) < start:
        raise ValueError(f"{path}: truncated inside the idx header; {again}")
    shape = struct.unpack_from(f">{ndim}I", payload, 4)
    # In Python's integers, which do not overflow on a damaged header.
    num_expected, num_found = 1, len(payload) - start
    for size in shape:
        num_expected *= size
    if num_found != num_expected:
        what = "truncated" if num_found < num_expected else "trailing bytes"
        raise ValueError(
            f"{path}: {what}: {num_found} bytes of data, expected {num_expected} for shape "
            f"{shape}; {again}"
        )
    return np.frombuffer(payload, np.uint8, offset=start).reshape(shape)


def _unzip(payload: bytes, path: Path, start: int) -> bytes:
    """What a gzipped idx file holds, up to one byte more than its header announces.

    Args:    start: of the data behind the header.
    """
    try:
        with gzip.open(io.BytesIO(payload)) as file:
            header = file.read(start)
            num = math.prod(
                struct.unpack(f">{start // 4 - 1}I", header[4:].ljust(start - 4, b"\0"))
            )
            if num > _MOST_TIMES * len(payload):
                raise ValueError(
                    f"{path}: {len(payload):,} bytes whose header announces {num:,}: gzip cannot "
                    "pack so much; fetch it again"
                )
            # To the end of the data, where gzip keeps its checksum.
            return header + file.read(num + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: damaged or truncated gzip ({error}); fetch it again") from None


class Cifar10Config(SplitConfig):
    """CIFAR-10 from the official binary files."""

    kind: Literal["cifar10"] = "cifar10"
    root: str | None = None
    """Folder of the files, of cifar-10-batches-bin/ or of cifar10/cifar-10-batches-bin/."""


def read_cifar10(config: Cifar10Config) -> DataSet:
    """CIFAR-10: five training files and the test file of the official binary layout."""
    root = _root(config.root, "cifar10")

    def read(name: str) -> Arrays:
        return read_cifar_file(_require(root, CIFAR10_FOLDERS, (name,), "cifar10"))

    test = read("test_batch.bin")
    parts = [read(name) for name in CIFAR10_TRAIN] if config.reads_train else [test]
    train = Arrays(torch.cat([p.image for p in parts]), torch.cat([p.label for p in parts]))
    return DataSet(10, train, None, {"test": test})


def read_cifar_file(path: Path) -> Arrays:
    """One CIFAR-10 binary file: records of a label byte and 32x32 red, green and blue planes."""
    record = 1 + 3 * 32 * 32
    payload = _read_bytes(path)
    if len(payload) % record:
        raise ValueError(
            f"{path}: {len(payload)} bytes is not a multiple of {record}, the size of one CIFAR-10 "
            "record; the file is damaged or of another format, fetch it again"
        )
    rows = np.frombuffer(payload, np.uint8).reshape(-1, record)
    return checked(rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0], path, path, num_classes=10)


def find_file(root: Path, folders: Sequence[str], names: Sequence[str]) -> Path | None:
    """The first file of one of these names, folder by folder below the root."""
    paths = (root / folder / name for folder in folders for name in names)
    return next((path for path in paths if path.is_file()), None)


def checked(
    image: np.ndarray,
    label: np.ndarray,
    image_path: Path,
    label_path: Path,
    num_classes: int | None,
    lowest: int = 0,
) -> Arrays:
    """Images and labels as tensors of their own memory, once they fit together.

    Args:    image: [N,C,H,W]. label: [N] or [N,1]. num_classes: None = any label is in range.
    """
    if not image.size:
        raise ValueError(f"{image_path}: holds no images (shape {image.shape}); use another file")
    if label.ndim == 2 and label.shape[1] == 1:
        label = label[:, 0]
    if label.ndim != 1 or label.dtype.kind not in "iu":
        raise ValueError(
            f"{label_path}: labels are {label.dtype} of shape {label.shape}; store one integer "
            "class per image"
        )
    if len(label) != len(image):
        raise ValueError(
            f"{label_path}: {len(label)} labels for the {len(image)} images of {image_path.name}; "
            "the files do not belong together, or one is damaged"
        )
    low, high = int(label.min()), int(label.max())
    top = high if num_classes is None else num_classes - 1
    if low < lowest or high > top:
        wrong = low if low < lowest else high
        raise ValueError(
            f"{label_path}: label {wrong} is out of range, classes go from {lowest} to {top}; the "
            "file is damaged or of another set"
        )
    return Arrays(torch.from_numpy(np.array(image)), torch.from_numpy(label.astype(np.int64)))


def check_same_shape(train: Arrays, test: Arrays, path: Path) -> None:
    """Raise ValueError if training and test images differ in shape or type."""
    parts = [f"{tuple(a.image.shape[1:])} {a.image.dtype}" for a in (train, test)]
    if parts[0] != parts[1]:
        raise ValueError(
            f"{path}: training images are {parts[0]}, test images {parts[1]} (C,H,W); "
            "they must be alike"
        )


def _root(root: str | None, kind: str) -> Path:
    command = f"python -m hard_fast.data.prepare {kind} --root DIR"
    if root is None:
        raise ValueError(f"data.root is not set: name the folder of the files, or run `{command}`")
    path = Path(root).expanduser()
    if not path.is_dir():
        raise ValueError(f"data.root = {root!r}: no such folder; correct it, or run `{command}`")
    return path


def _require(root: Path, folders: Sequence[str], names: Sequence[str], kind: str) -> Path:
    path = find_file(root, folders, names)
    if path is None:
        below = ", ".join(filter(None, folders))
        raise ValueError(
            f"{' or '.join(names)}: no such file in {root}, nor below it in {below}; correct "
            f"data.root, or run `python -m hard_fast.data.prepare {kind} --root {root}`"
        )
    return path


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
