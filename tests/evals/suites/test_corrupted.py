import pytest
import torch

from hard_fast.data.arrays import Arrays
from hard_fast.evals.corruptions import corrupt
from hard_fast.evals.suites.corrupted import CorruptedPart, number
from hard_fast.evals.suites.stored import store

CPU = torch.device("cpu")


def arrays(num=7):
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (num, 3, 32, 32), dtype=torch.uint8, generator=generator)
    image = image.contiguous(memory_format=torch.channels_last)
    return Arrays(image, torch.arange(num) % 3)


def everything(part, batch_size, world_size=1):
    seen = [b for rank in range(world_size) for b in part.batches(batch_size, rank, world_size)]
    return torch.cat([b.image for b in seen]), torch.cat([b.label for b in seen])


@pytest.mark.parametrize("wrap", [lambda a: a, lambda a: store(a, CPU)])
def test_each_sample_has_its_own_corruption_and_label(wrap):
    data = arrays()
    part = CorruptedPart(number(wrap(data), CPU), "gaussian_noise", 3)
    assert part.num == 7 and part.image_shape == (3, 32, 32) and part.is_picture
    image, label = everything(part, 7)
    assert label.tolist() == data.label.tolist()
    assert torch.equal(image, corrupt(data.image, "gaussian_noise", 3, torch.arange(7)))
    assert image.permute(0, 2, 3, 1).is_contiguous()
    assert not torch.equal(image, data.image)


@pytest.mark.parametrize("batch_size, world_size", [(1, 1), (3, 1), (4, 2), (2, 3), (5, 9)])
def test_batches_and_processes_change_nothing(batch_size, world_size):
    part = CorruptedPart(number(arrays(), CPU), "impulse_noise", 5)
    whole, again = everything(part, 7), everything(part, batch_size, world_size)
    assert torch.equal(whole[0], again[0]) and torch.equal(whole[1], again[1])


def test_severities_and_seeds_differ():
    numbered = number(arrays(), CPU)
    mild, _ = everything(CorruptedPart(numbered, "gaussian_noise", 1), 7)
    hard, _ = everything(CorruptedPart(numbered, "gaussian_noise", 5), 7)
    other, _ = everything(CorruptedPart(numbered, "gaussian_noise", 5, seed=1), 7)
    assert not torch.equal(hard, other)
    clean = arrays().image.float()
    assert (mild.float() - clean).abs().mean() < 0.7 * (hard.float() - clean).abs().mean()


def test_an_unreadable_picture_moves_no_other(load, write_folders):
    folder = write_folders("mine", ["a", "b", "c", "d"])
    part = load("folder:mine+corrupted:gaussian_noise@3").parts["gaussian_noise/3"]
    image, label = everything(part, 2)
    assert label.tolist() == [0, 1, 2, 3]
    (folder / "b" / "0.png").write_bytes(b"no picture")
    part = load("folder:mine+corrupted:gaussian_noise@3").parts["gaussian_noise/3"]
    again, label = everything(part, 2)
    assert label.tolist() == [0, 2, 3] and torch.equal(again, image[[0, 2, 3]])
