import numpy as np
import pytest
import torch

from hard_fast.evals.corruptions import CORRUPTIONS
from hard_fast.evals.suites import Missing, PictureFormat, load_suite


def write_c(folder, noise, names=CORRUPTIONS, num=2):
    folder.mkdir(parents=True)
    image = noise(5 * num, 32, 32, 3)
    for i, name in enumerate(names):
        np.save(folder / f"{name}.npy", image ^ i)
    np.save(folder / "labels.npy", np.tile(np.arange(num, dtype=np.uint8), 5))
    return image


def test_the_official_test_batch(tmp_path, load, see, noise):
    folder = tmp_path / "cifar10/cifar-10-batches-bin"
    folder.mkdir(parents=True)
    rows = noise(3, 3073)
    rows[:, 0] = [7, 0, 9]
    (folder / "test_batch.bin").write_bytes(rows.tobytes())
    loaded = load("cifar10")
    image, label = see(loaded)
    assert label.tolist() == [7, 0, 9] and loaded.num_classes == 10 and loaded.columns is None
    assert np.array_equal(image.numpy(), rows[:, 1:].reshape(3, 3, 32, 32))


@pytest.mark.parametrize("version, name", [("v6", "cifar10_1"), ("v4", "cifar10_1_v4")])
def test_cifar_10_1(tmp_path, load, see, noise, refused, version, name):
    folder = tmp_path / "CIFAR-10.1/datasets"
    folder.mkdir(parents=True)
    data = noise(4, 32, 32, 3)
    np.save(folder / f"cifar10.1_{version}_data.npy", data)
    labels = folder / f"cifar10.1_{version}_labels.npy"
    assert "labels.npy: no such file" in refused(name)
    np.save(labels, np.array([3, 1, 4, 1], np.int32))
    image, label = see(load(name))
    assert label.tolist() == [3, 1, 4, 1]
    assert np.array_equal(image.permute(0, 2, 3, 1).numpy(), data)
    np.save(labels, np.array([3, 1, 4, 10]))
    assert "label 10 is out of range, classes go from 0 to 9" in refused(name)
    np.save(labels, np.array([3, 1, 4]))
    assert "3 labels for the 4 images" in refused(name)


def test_cifar_10_c_has_the_severities_one_after_another(tmp_path, load, see, noise):
    image = write_c(tmp_path / "CIFAR-10-C", noise)
    loaded = load("cifar10_c")
    assert len(loaded.parts) == 75 and list(loaded.parts)[:2] == [
        "gaussian_noise/1",
        "gaussian_noise/2",
    ]
    seen, label = see(loaded, "shot_noise/4")
    assert label.tolist() == [0, 1]
    assert np.array_equal(seen.permute(0, 2, 3, 1).numpy(), image[6:8] ^ 1)


def test_some_corruptions_and_one_severity(tmp_path, load, noise, refused):
    folder = tmp_path / "cifar10-c"
    write_c(folder, noise, ("fog", "snow", "saturate"))
    assert list(load("cifar10_c:fog,snow@3").parts) == ["fog/3", "snow/3"]
    assert list(load("cifar10_c:saturate@1").parts) == ["saturate/1"]
    text = refused("cifar10_c@5")
    assert f"{folder}: lacks gaussian_noise, shot_noise" in text
    assert "<corruption>.npy and labels.npy" in text
    assert text.endswith("ask for cifar10_c:snow,fog,saturate")
    assert "no corruption 'fogg'; choose from fog" in refused("cifar10_c:fogg")


def test_damaged_files_end_with_one_line(tmp_path, noise, refused):
    folder = tmp_path / "CIFAR-10-C"
    write_c(folder, noise, ("fog",))
    path = folder / "fog.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert refused("cifar10_c:fog").startswith(f"{path}: truncated")
    path.write_bytes(b"")
    assert refused("cifar10_c:fog").startswith(f"{path}: truncated")
    np.save(path, noise(10, 3, 32, 32))
    assert "expected uint8 of shape (N, 32, 32, 3)" in refused("cifar10_c:fog")
    np.save(path, noise(9, 32, 32, 3))
    np.save(folder / "labels.npy", np.zeros(9, np.int64))
    assert "9 images do not divide by the 5 severities" in refused("cifar10_c:fog")


@pytest.mark.parametrize("name", ["cifar10", "cifar10_1", "cifar10_c", "cifar10_c:fog"])
def test_missing_data_are_a_gap(tmp_path, load, name):
    with pytest.raises(Missing, match=f"no .* in {tmp_path} \\(from .*\\)") as error:
        load(name)
    assert "\n" not in str(error.value)


def test_real_cifar10(real_data, see):
    wanted = PictureFormat(32, 1.0, "bilinear"), torch.device("cpu")
    loaded = load_suite("cifar10", real_data, *wanted)
    _, label = see(loaded, batch_size=1000)
    assert label.bincount().tolist() == [1000] * 10
