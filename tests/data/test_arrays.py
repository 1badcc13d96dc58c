import pytest
import torch
from torch.nn import functional as F

from hard_fast.data import load_data
from hard_fast.data.arrays import (
    Arrays,
    DataSet,
    SplitConfig,
    place,
    split_off,
)
from hard_fast.data.readers import Cifar10Config, MnistConfig

CPU = torch.device("cpu")


def numbered(num: int, channels: int = 3) -> Arrays:
    """Images whose every pixel is their label, so that a mix-up of the two shows."""
    label = torch.arange(num)
    image = label.byte().view(-1, 1, 1, 1).expand(num, channels, 4, 5)
    return Arrays(image.contiguous(memory_format=torch.channels_last), label)


@pytest.mark.parametrize(("num", "batch_size", "world_size"), [(10, 4, 1), (10, 3, 4), (2, 5, 3)])
def test_evaluation_sees_every_sample_once(num, batch_size, world_size):
    seen = []
    for rank in range(world_size):
        for batch in numbered(num).batches(batch_size, rank, world_size):
            assert 0 < len(batch.label) <= batch_size
            assert batch.image.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(batch.image[:, 0, 0, 0].long(), batch.label)
            seen += batch.label.tolist()
    assert sorted(seen) == list(range(num))


def test_the_validation_part_can_stand_for_the_test():
    data = DataSet(40, numbered(40), None, {"test": numbered(7)})
    config = SplitConfig(val_share=0.25, score_on="val")
    placed = place(data, config, CPU)
    assert torch.equal(placed.test["test"].image, placed.val.image) and placed.val.num == 10
    with pytest.raises(ValueError, match="score_on = 'val': there is no validation part"):
        SplitConfig(val_share=0.0, score_on="val")


def test_a_split_divides_without_overlap_and_repeats():
    rest, part = split_off(numbered(50), 0.1, seed=3, part="val")
    assert len(part.label) == 5
    assert sorted(rest.label.tolist() + part.label.tolist()) == list(range(50))
    assert torch.equal(part.image[:, 0, 0, 0].long(), part.label)
    again, other = (split_off(numbered(50), 0.1, seed, "val")[1] for seed in (3, 4))
    assert torch.equal(again.label, part.label)
    assert not torch.equal(other.label, part.label)


def test_a_split_that_leaves_nothing_names_its_key():
    with pytest.raises(ValueError, match=r"data\.val_share = 0\.1: splits 4 images into 4 and 0"):
        split_off(numbered(4), 0.1, seed=0, part="val")


def test_place_limits_after_the_split_and_keeps_memory():
    image, label = numbered(40, channels=1)
    data = DataSet(40, Arrays(image.contiguous(), label), None, {"test": numbered(7)})
    full = place(data, SplitConfig(), CPU)
    assert full.val is not None
    assert (len(full.train.label), len(full.val.label)) == (36, 4)
    assert full.train.image.stride() == (20, 1, 5, 1)
    limited = place(data, SplitConfig(train_limit=9), CPU)
    more = place(data, SplitConfig(train_limit=12), CPU)
    assert torch.equal(limited.val.label, full.val.label)
    assert set(limited.train.label.tolist()) <= set(full.train.label.tolist())
    assert torch.equal(more.train.label[:9], limited.train.label)
    other = place(data, SplitConfig(val_seed=1), CPU)
    assert not torch.equal(other.val.label, full.val.label)
    whole = place(data, SplitConfig(val_share=0.0), CPU)
    assert whole.val is None
    assert torch.equal(whole.train.label, label)


def test_a_limit_beyond_the_set_is_refused():
    data = DataSet(40, numbered(40), None, {"test": numbered(7)})
    with pytest.raises(ValueError, match=r"data\.train_limit = 37: only 36 training images"):
        place(data, SplitConfig(train_limit=37), CPU)


def test_real_mnist_counts_and_shift(real_data):
    data = load_data(MnistConfig(root=str(real_data)), CPU)
    assert data.val is not None
    assert (len(data.train.label), len(data.val.label)) == (54_000, 6_000)
    assert data.train.image.shape[1:] == (1, 28, 28)
    counts = data.train.label.bincount() + data.val.label.bincount()
    assert counts.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    centered, shifted = data.test["centered"], data.test["shifted"]
    assert centered.label.bincount().tolist() == [
        *(980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009)
    ]
    assert torch.equal(centered.label, shifted.label)
    # Digits fill the inner 20 px, so a shift of 3 loses next to no ink, and on average it is
    # the mean of the four shifted mean images.
    mean, moved = (a.image.float().mean((0, 1)) for a in (centered, shifted))
    assert moved.sum() == pytest.approx(mean.sum().item(), rel=0.005)
    padded = F.pad(mean, [3] * 4)
    four = [padded[y : y + 28, x : x + 28] for y in (0, 6) for x in (0, 6)]
    assert (torch.stack(four).mean(0) - moved).abs().max() < 6
    assert (mean - moved).abs().max() > 30


def test_real_cifar10_counts(real_data):
    data = load_data(Cifar10Config(root=str(real_data), val_share=0.0), CPU)
    assert data.train.image.shape == (50_000, 3, 32, 32)
    assert data.train.label.bincount().tolist() == [5000] * 10
    assert data.test["test"].label.bincount().tolist() == [1000] * 10
    # The published channel means of the training set.
    mean = data.train.image.float().mean((0, 2, 3)) / 255
    assert torch.allclose(mean, torch.tensor([0.4914, 0.4822, 0.4465]), atol=1e-4)
