import numpy as np
import pytest
import torch

from hard_fast.data.arrays import Arrays
from hard_fast.evals.suites.stored import Stored, open_images, open_labels, store

CPU = torch.device("cpu")


def numbered(num):
    image = np.arange(num, dtype=np.uint8)[:, None, None, None].repeat(2, 1).repeat(3, 2)
    return Stored(image, torch.arange(num), CPU)


@pytest.mark.parametrize("world_size", [1, 2, 3, 13])
def test_every_sample_once_over_all_processes(world_size):
    part = numbered(11)
    assert part.num == 11 and part.image_shape == (1, 2, 3) and part.is_picture
    seen = [b for rank in range(world_size) for b in part.batches(4, rank, world_size)]
    assert torch.cat([b.label for b in seen]).tolist() == list(range(11))
    for batch in seen:
        assert len(batch.label) <= 4
        assert torch.equal(batch.image[:, 0, 1, 2].long(), batch.label)
        assert batch.image.stride() == (6, 1, 3, 1)


def test_batches_can_be_asked_for_again_and_written_to():
    part = numbered(3)
    next(part.batches(3)).image.zero_()
    assert next(part.batches(3)).image[2].unique().tolist() == [2]


def test_storing_keeps_the_images():
    image = torch.randint(0, 256, (4, 3, 5, 6), dtype=torch.uint8)
    part = store(Arrays(image, torch.arange(4)), CPU)
    (batch,) = part.batches(9)
    assert torch.equal(batch.image, image) and batch.label.tolist() == [0, 1, 2, 3]


def test_a_file_is_not_read_before_it_is_used(tmp_path, noise):
    np.save(tmp_path / "a.npy", noise(4, 28, 28))
    image = open_images(tmp_path / "a.npy", (28, 28, 1))
    assert isinstance(image, np.memmap) and image.shape == (4, 28, 28, 1)


def test_an_npz_and_objects_are_refused(tmp_path, noise):
    np.savez(tmp_path / "a.npy", noise(4, 28, 28))
    (tmp_path / "a.npy.npz").rename(tmp_path / "a.npy")
    with pytest.raises(ValueError, match=r"a.npy: a .npz, expected a .npy file"):
        open_images(tmp_path / "a.npy", (28, 28, 1))
    np.save(tmp_path / "b.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(ValueError, match="b.npy: truncated, or no .npy file"):
        open_labels(tmp_path / "b.npy", 1, 10, tmp_path / "a.npy")
