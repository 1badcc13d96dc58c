import bz2
import gzip
import struct
import sys

import h5py
import numpy as np
import pytest
import torch

from hard_fast.data.shifted import shift_corners
from hard_fast.evals.suites import Missing, PictureFormat, load_suite
from hard_fast.evals.suites.names import MNIST_CORRUPTIONS


def write_mnist(folder, image, label, pack=lambda payload: payload, suffix=""):
    folder.mkdir(parents=True)
    for what, array in (("images-idx3", image), ("labels-idx1", label)):
        head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
        payload = pack(head + array.astype(np.uint8).tobytes())
        (folder / f"t10k-{what}-ubyte{suffix}").write_bytes(payload)


def write_c(folder, noise, names=MNIST_CORRUPTIONS):
    image = noise(3, 28, 28, 1)
    for i, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        np.save(folder / name / "test_images.npy", image ^ i)
        np.save(folder / name / "test_labels.npy", np.array([2, 7, 1]))
    return image


def write_h5(path, light, digit):
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as file:
        for part in ("train", "test"):
            group = file.create_group(part)
            group["data"], group["target"] = light, digit


@pytest.mark.parametrize("pack, suffix", [(lambda b: b, ""), (gzip.compress, ".gz")])
def test_mnist_as_it_is_and_shifted(tmp_path, load, see, noise, pack, suffix):
    raw = noise(5, 28, 28)
    write_mnist(tmp_path / "MNIST/raw", raw, np.arange(5), pack, suffix)
    image, label = see(load("mnist"))
    assert np.array_equal(image[:, 0].numpy(), raw) and label.tolist() == list(range(5))
    shifted, same = see(load("mnist_shifted"))
    assert torch.equal(shifted, shift_corners(image, 3, 0)) and torch.equal(label, same)
    assert not torch.equal(shifted, image)


def test_mnist_c_has_a_folder_per_corruption(tmp_path, load, see, noise):
    image = write_c(tmp_path / "mnist_c", noise)
    loaded = load("mnist_c")
    assert list(loaded.parts) == list(MNIST_CORRUPTIONS)
    seen, label = see(loaded, "glass_blur")
    assert label.tolist() == [2, 7, 1]
    assert np.array_equal(seen.permute(0, 2, 3, 1).numpy(), image ^ 2)


def test_some_of_mnist_c(tmp_path, load, noise, refused):
    write_c(tmp_path / "MNIST-C", noise, ("translate", "identity"))
    assert list(load("mnist_c:translate").parts) == ["translate"]
    assert list(load("mnist_c:identity,translate").parts) == ["identity", "translate"]
    assert "ask for mnist_c:translate,identity" in refused("mnist_c")
    assert "MNIST-C has one severity; leave out @3" in refused("mnist_c:translate@3")


def test_a_truncated_npy_and_wrong_labels_of_mnist_c(tmp_path, noise, refused):
    write_c(tmp_path / "mnist_c", noise, ("fog",))
    place = tmp_path / "mnist_c/fog"
    whole = (place / "test_images.npy").read_bytes()
    (place / "test_images.npy").write_bytes(whole[:200])
    assert refused("mnist_c:fog").startswith(f"{place}/test_images.npy: truncated")
    (place / "test_images.npy").write_bytes(whole)
    np.save(place / "test_labels.npy", np.array([0.5, 1.0, 2.0]))
    assert "labels are float64 of shape (3,)" in refused("mnist_c:fog")
    np.save(place / "test_labels.npy", np.array([1, 2, 3, 4]))
    assert "4 labels for the 3 images" in refused("mnist_c:fog")


def usps_digits():
    """A dark picture, a bright one, and one whose left half is bright."""
    light = np.stack([np.zeros((16, 16)), np.ones((16, 16)), np.zeros((16, 16))])
    light[2, :, :8] = 1.0
    return light.reshape(3, 256), np.array([0, 9, 4])


def check_usps(image, label):
    assert image.shape == (3, 1, 28, 28) and label.tolist() == [0, 9, 4]
    assert image[0].max() == 0 and image[1].min() == 255
    # Pixel centres 13 and 14 of 28 lie 2/7 of a pixel beside the edge, 3/14 into the other side.
    row = image[2, 0, 5]
    assert row[:13].eq(255).all() and row[15:].eq(0).all()
    assert row[13:15].tolist() == [round(255 * 11 / 14), round(255 * 3 / 14)]


def test_usps_as_hdf5(tmp_path, load, see):
    write_h5(tmp_path / "usps/usps.h5", *usps_digits())
    check_usps(*see(load("usps")))


@pytest.mark.parametrize("name", ["usps.t", "usps.t.bz2"])
def test_usps_as_libsvm(tmp_path, load, see, name):
    light, digit = usps_digits()
    lines = [
        " ".join([str(d + 1), *(f"{i}:{2 * v - 1:.6f}" for i, v in enumerate(row, 1))])
        for d, row in zip(digit, light, strict=True)
    ]
    text = "".join(f"{line} \n" for line in lines).encode()
    (tmp_path / "usps").mkdir()
    (tmp_path / "usps" / name).write_bytes(bz2.compress(text) if name.endswith("bz2") else text)
    check_usps(*see(load("usps")))


def test_wrong_files_of_usps_end_with_one_line(tmp_path, refused, monkeypatch):
    path = tmp_path / "usps/usps.h5"
    light, digit = usps_digits()
    write_h5(path, light, digit + 1)
    assert "label 10 is out of range" in refused("usps")
    write_h5(path, light * 255, digit)
    assert "brightness outside the published range" in refused("usps")
    write_h5(path, light[:, :100], digit)
    assert "images of shape (3, 100), expected (N, 256)" in refused("usps")
    with h5py.File(path, "w") as file:
        file["data"] = light
    assert "expected test/data and test/target" in refused("usps")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert refused("usps").startswith(f"{path}: truncated, or no HDF5 file")
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert "pip install 'hard-fast[usps]'" in refused("usps")


@pytest.mark.parametrize("line", ["3 1:0.5 257:1", "3 0:0.5", "3 1=0.5", "x 1:0", "", "-1 1:0"])
def test_wrong_lines_of_libsvm_are_named(tmp_path, refused, line):
    path = tmp_path / "usps.t"
    path.write_text(f"1 1:-1 256:1\n{line}\n")
    text = refused("usps")
    assert f"{path}: " in text and ("line 2 " in text or "label -2 is out of range" in text)


def test_a_truncated_bz2(tmp_path, refused):
    path = tmp_path / "usps.t.bz2"
    path.write_bytes(bz2.compress(b"1 1:-1\n")[:-5])
    assert refused("usps").startswith(f"{path}: truncated or damaged")


@pytest.mark.parametrize("name", ["mnist", "mnist_shifted", "mnist_c", "usps"])
def test_missing_data_are_a_gap(tmp_path, load, name):
    with pytest.raises(Missing, match=f"in {tmp_path} "):
        load(name)


def test_real_mnist(real_data, see):
    wanted = PictureFormat(28, 1.0, "bilinear"), torch.device("cpu")
    image, label = see(load_suite("mnist", real_data, *wanted), batch_size=1000)
    shifted, _ = see(load_suite("mnist_shifted", real_data, *wanted), batch_size=1000)
    assert len(label) == 10_000 and label[:5].tolist() == [7, 2, 1, 0, 4]
    # Three rows and three columns are lost, and digits keep away from the edge.
    assert shifted.sum() > 0.99 * image.sum() and not torch.equal(shifted, image)
