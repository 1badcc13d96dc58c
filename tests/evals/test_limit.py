from pathlib import Path

import pytest
import torch
from PIL import Image

from hard_fast.data import Arrays
from hard_fast.evals.limit import limited
from hard_fast.evals.suites import Loaded, PictureFormat, load_suite
from hard_fast.evals.suites.stored import store

CPU = torch.device("cpu")


def samples(part) -> tuple[torch.Tensor, torch.Tensor]:
    batches = list(part.batches(5))
    return torch.cat([b.image for b in batches]), torch.cat([b.label for b in batches])


@pytest.mark.parametrize("is_stored", [False, True])
def test_a_limit_takes_the_same_samples_always_in_their_old_order(is_stored):
    image = torch.arange(50, dtype=torch.uint8).view(50, 1, 1, 1).expand(-1, 3, 4, 2)
    arrays = Arrays(image.contiguous(memory_format=torch.channels_last), torch.arange(50))
    part = store(arrays, CPU) if is_stored else arrays
    few = limited(Loaded({"test": part}, 50), 20).parts["test"]
    found, label = samples(few)
    assert few.num == 20 and len(label.unique()) == 20 and label.equal(label.sort().values)
    # Not merely the first ones, which in class folders are of one class.
    assert label.max() > 30
    assert found.equal(arrays.image[label]) and found.stride() == arrays.image[label].stride()
    again = samples(limited(Loaded({"test": part}, 50), 20).parts["test"])[1]
    assert again.equal(label)
    assert limited(Loaded({"test": part}, 50), 50).parts["test"] is part


def test_a_corruption_does_to_a_sample_what_it_does_in_the_whole_suite(cifar_root: Path):
    name = "cifar10+corrupted:gaussian_noise,fog@3"
    whole = load_suite(name, cifar_root, PictureFormat(32, 1.0, "bilinear"), CPU)
    few = limited(whole, 5)
    plain = load_suite("cifar10", cifar_root, PictureFormat(32, 1.0, "bilinear"), CPU)
    clean = samples(limited(plain, 5).parts["test"])[0]
    place = [int((samples(plain.parts["test"])[0] == c).flatten(1).all(1).nonzero()) for c in clean]
    for corruption in ("gaussian_noise/3", "fog/3"):
        image, label = samples(whole.parts[corruption])
        found, found_label = samples(few.parts[corruption])
        assert found.equal(image[place]) and found_label.equal(label[place])
    # Both corruptions share the pictures, which are decoded and kept once.
    assert len({id(part.numbered.part) for part in few.parts.values()}) == 1


def test_pictures_in_folders_can_be_limited_too(tmp_path: Path):
    for i in range(6):
        place = tmp_path / "set" / ("cat" if i < 3 else "dog")
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (40 * i,) * 3).save(place / f"{i}.png")
    loaded = load_suite("folder:set", tmp_path, PictureFormat(16, 1.0, "bilinear"), CPU)
    few = limited(loaded, 4).parts["test"]
    image, label = samples(few)
    grey = image[:, 0, 0, 0] / 40
    assert few.num == 4 and grey.equal(grey.sort().values) and label.equal((grey >= 3).long())
