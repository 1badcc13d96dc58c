import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from hard_fast.data import load_data
from hard_fast.data.readers import (
    CIFAR10_TRAIN,
    Cifar10Config,
    MnistConfig,
    read_cifar_file,
    read_idx,
)

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)


def idx(array: np.ndarray, dtype: int = 0x08) -> bytes:
    header = struct.pack(">BBBB", 0, 0, dtype, array.ndim)
    return header + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def digits(num: int) -> np.ndarray:
    return RNG.integers(0, 256, (num, 28, 28), dtype=np.uint8)


def write_mnist(folder: Path, packed: bool = False) -> dict[str, np.ndarray]:
    """Twenty training and ten test images, and what the four files hold."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        "train-images-idx3-ubyte": digits(20),
        "train-labels-idx1-ubyte": np.arange(20, dtype=np.uint8) % 10,
        "t10k-images-idx3-ubyte": digits(10),
        "t10k-labels-idx1-ubyte": np.arange(10, dtype=np.uint8),
    }
    for name, array in arrays.items():
        payload = idx(array)
        path = folder / (f"{name}.gz" if packed else name)
        path.write_bytes(gzip.compress(payload) if packed else payload)
    return arrays


def write_cifar10(folder: Path) -> np.ndarray:
    """Six files of four records; the records, in the order of training and then test."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = RNG.integers(0, 256, (24, 3073), dtype=np.uint8)
    rows[:, 0] %= 10
    for i, name in enumerate((*CIFAR10_TRAIN, "test_batch.bin")):
        (folder / name).write_bytes(rows[4 * i : 4 * i + 4].tobytes())
    return rows


def one_line(error: pytest.ExceptionInfo[ValueError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("folder", ["", "raw", "MNIST/raw", "mnist/raw"])
def test_mnist_is_found_in_each_layout(tmp_path, folder, packed):
    arrays = write_mnist(tmp_path / folder, packed)
    data = load_data(MnistConfig(root=str(tmp_path), val_share=0.0), CPU)
    assert data.num_classes == 10
    image = torch.from_numpy(arrays["train-images-idx3-ubyte"])
    assert torch.equal(data.train.image[:, 0], image)
    assert data.train.label.tolist() == arrays["train-labels-idx1-ubyte"].tolist()
    assert list(data.test) == ["centered", "shifted"]
    test = torch.from_numpy(arrays["t10k-images-idx3-ubyte"])
    assert torch.equal(data.test["centered"].image[:, 0], test)
    assert not torch.equal(data.test["shifted"].image[:, 0], test)
    for arrays in (data.train, *data.test.values()):
        assert arrays.image.dtype == torch.uint8
        assert arrays.label.dtype == torch.int64


def test_shift_px_reaches_the_shifted_set(tmp_path):
    write_mnist(tmp_path)
    data = load_data(MnistConfig(root=str(tmp_path), shift_px=6), CPU)
    is_empty = data.test["shifted"].image.amax(dim=(0, 1, 2)) == 0
    assert not is_empty.all()
    # Each image leaves 6 rows and 6 columns empty; none of 784 random pixels else is zero so often.
    zeros = (data.test["shifted"].image == 0).sum((1, 2, 3))
    assert (zeros >= 28 * 28 - 22 * 22).all()
    assert (zeros < 28 * 28 - 22 * 22 + 20).all()


GOOD = idx(np.zeros((2, 3, 4), np.uint8))


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (GOOD[:-1], "truncated: 23 bytes of data, expected 24"),
        (GOOD + b"x", "trailing bytes: 25 bytes of data, expected 24"),
        (GOOD[:9], "truncated inside the idx header"),
        (b"", "not an idx file"),
        (b"\x00", "not an idx file"),
        (b"PK\x03\x04" + GOOD, "not an idx file"),
        (idx(np.zeros((2, 3, 4), np.float32), dtype=0x0D), "data type 0x0d, expected 0x08"),
        (idx(np.zeros(2, np.uint8)), "array of 1 dimensions, expected 3"),
        (struct.pack(">BBBB3I", 0, 0, 8, 3, *[2**32 - 1] * 3), "truncated: 0 bytes"),
        (gzip.compress(GOOD)[:-9], "damaged or truncated gzip"),
        (gzip.compress(GOOD)[:12] + b"\xff" * 9, "damaged or truncated gzip"),
        (gzip.compress(GOOD[:-1]), "truncated: 23 bytes"),
    ],
)
def test_a_damaged_idx_file_is_one_line(tmp_path, payload, said):
    path = tmp_path / "images"
    path.write_bytes(payload)
    with pytest.raises(ValueError) as error:
        read_idx(path, ndim=3)
    message = one_line(error)
    assert said in message
    assert str(path) in message
    assert "fetch it again" in message or "changed places" in message


@pytest.mark.parametrize(
    ("name", "array", "said"),
    [
        ("train-labels-idx1-ubyte", np.zeros(19, np.uint8), "19 labels for the 20 images"),
        ("train-labels-idx1-ubyte", np.full(20, 10, np.uint8), "label 10 is out of range"),
        ("t10k-images-idx3-ubyte", np.zeros((0, 28, 28), np.uint8), "holds no images"),
        ("t10k-images-idx3-ubyte", np.zeros((10, 28, 27), np.uint8), "must be alike"),
    ],
)
def test_idx_files_that_do_not_fit_are_one_line(tmp_path, name, array, said):
    write_mnist(tmp_path)
    (tmp_path / name).write_bytes(idx(array))
    with pytest.raises(ValueError, match=said) as error:
        load_data(MnistConfig(root=str(tmp_path)), CPU)
    assert str(tmp_path) in one_line(error)


def test_a_missing_file_names_places_and_command(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(ValueError) as error:
        load_data(MnistConfig(root=str(tmp_path)), CPU)
    message = one_line(error)
    assert message.startswith("t10k-labels-idx1-ubyte or t10k-labels-idx1-ubyte.gz: no such file")
    assert "raw, MNIST/raw, mnist/raw" in message
    assert f"python -m hard_fast.data.prepare mnist --root {tmp_path}" in message


@pytest.mark.parametrize(
    ("root", "said"), [(None, "data.root is not set"), ("/no/such/place", "no such folder")]
)
def test_a_missing_root_names_the_command(root, said):
    for config in (MnistConfig(root=root), Cifar10Config(root=root)):
        with pytest.raises(ValueError) as error:
            load_data(config, CPU)
        message = one_line(error)
        assert said in message
        assert f"hard_fast.data.prepare {config.kind}" in message


@pytest.mark.parametrize("folder", ["", "cifar-10-batches-bin", "cifar10/cifar-10-batches-bin"])
def test_cifar10_is_found_in_each_layout(tmp_path, folder):
    rows = torch.from_numpy(write_cifar10(tmp_path / folder))
    data = load_data(Cifar10Config(root=str(tmp_path), val_share=0.0), CPU)
    assert data.num_classes == 10
    assert torch.equal(data.train.label, rows[:20, 0].long())
    assert torch.equal(data.train.image.flatten(1), rows[:20, 1:])
    assert torch.equal(data.test["test"].image.flatten(1), rows[20:, 1:])
    assert data.train.image.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (b"\x00" * 3074, "3074 bytes is not a multiple of 3073"),
        (b"\x0a" * 3073, "label 10 is out of range"),
        (b"", "holds no images"),
    ],
)
def test_a_damaged_cifar_file_is_one_line(tmp_path, payload, said):
    path = tmp_path / "data_batch_1.bin"
    path.write_bytes(payload)
    with pytest.raises(ValueError, match=said) as error:
        read_cifar_file(path)
    assert str(path) in one_line(error)


def test_a_missing_cifar_file_names_the_command(tmp_path):
    write_cifar10(tmp_path)
    (tmp_path / "data_batch_3.bin").unlink()
    with pytest.raises(ValueError, match=r"data_batch_3\.bin: no such file") as error:
        load_data(Cifar10Config(root=str(tmp_path)), CPU)
    assert f"hard_fast.data.prepare cifar10 --root {tmp_path}" in one_line(error)
