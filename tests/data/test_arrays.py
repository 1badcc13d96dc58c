import pytest
import torch

from hard_fast.data import load_data
from hard_fast.data.arrays import (
    ArrayLoader,
    Arrays,
    DataSet,
    SplitConfig,
    place,
    shift_corners,
    split_off,
)
from hard_fast.data.readers import Cifar10Config, MnistConfig

CPU = torch.device("cpu")


def numbered(num: int, channels: int = 3) -> Arrays:
    """Images whose every pixel is their label, so that a mix-up of the two shows."""
    label = torch.arange(num)
    image = label.byte().view(-1, 1, 1, 1).expand(num, channels, 4, 5)
    return Arrays(image.contiguous(memory_format=torch.channels_last), label)


def labels_of(loader: ArrayLoader, num_steps: int) -> list[list[int]]:
    return [loader.next_batch().label.tolist() for _ in range(num_steps)]


def test_an_epoch_shows_each_image_once_and_epochs_differ():
    loader = ArrayLoader(numbered(20), batch_size=5, seed=1)
    assert loader.num_steps_per_epoch == 4
    first, second = sum(labels_of(loader, 4), []), sum(labels_of(loader, 4), [])
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    assert first != list(range(20))


def test_an_incomplete_batch_is_dropped():
    loader = ArrayLoader(numbered(11), batch_size=4, seed=1)
    assert loader.num_steps_per_epoch == 2
    assert len(set(sum(labels_of(loader, 2), []))) == 8


@pytest.mark.parametrize("channels", [1, 3])
def test_batches_keep_pairs_type_and_memory(channels):
    batch = ArrayLoader(numbered(20, channels), batch_size=6, seed=3).next_batch()
    assert batch.image.shape == (6, channels, 4, 5)
    assert batch.image.dtype == torch.uint8
    assert batch.label.dtype == torch.int64
    assert batch.image.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(batch.image[:, -1, 3, 4].long(), batch.label)


def test_the_order_depends_on_seed_and_epoch_only():
    once, again = (labels_of(ArrayLoader(numbered(30), batch_size=10, seed=7), 6) for _ in "ab")
    other = labels_of(ArrayLoader(numbered(30), batch_size=10, seed=8), 6)
    assert once == again
    assert once != other
    by_one = labels_of(ArrayLoader(numbered(30), batch_size=1, seed=7), 60)
    assert sum(once, []) == sum(by_one, [])


@pytest.mark.parametrize("num_before", [0, 2, 3, 5])
def test_resume_at_any_step_continues_the_same_batches(num_before):
    straight = ArrayLoader(numbered(16), batch_size=5, seed=2)
    labels_of(straight, num_before)
    resumed = ArrayLoader(numbered(16), batch_size=5, seed=2)
    labels_of(resumed, 4)
    resumed.load_state_dict(straight.state_dict())
    assert labels_of(resumed, 7) == labels_of(straight, 7)


def test_ranks_share_the_global_batch():
    whole = labels_of(ArrayLoader(numbered(24), batch_size=8, seed=5), 5)
    ranks = [
        labels_of(ArrayLoader(numbered(24), batch_size=8, seed=5, rank=r, world_size=4), 5)
        for r in range(4)
    ]
    assert [sum(parts, []) for parts in zip(*ranks, strict=True)] == whole


@pytest.mark.parametrize(("batch_size", "world_size"), [(0, 1), (21, 1), (6, 4)])
def test_a_batch_that_cannot_be_made_names_its_key(batch_size, world_size):
    with pytest.raises(ValueError, match=rf"train\.batch_size = {batch_size}"):
        ArrayLoader(numbered(20), batch_size=batch_size, seed=0, world_size=world_size)


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


def shifted_by(image: torch.Tensor, rows: int, columns: int, shift_px: int) -> torch.Tensor:
    """The window of a padded picture, as in the generator's reference code."""
    padded = torch.nn.functional.pad(image, [shift_px] * 4)
    height, width = image.shape[-2:]
    top, left = shift_px + rows, shift_px + columns
    return padded[..., top : top + height, left : left + width]


@pytest.mark.parametrize("shift_px", [1, 3])
def test_each_image_moves_to_one_of_four_corners(shift_px):
    image = torch.randint(1, 256, (400, 2, 7, 9), dtype=torch.uint8)
    moved = shift_corners(image, shift_px, seed=0)
    assert moved.dtype == torch.uint8
    counts = []
    for rows in (-shift_px, shift_px):
        for columns in (-shift_px, shift_px):
            there = shifted_by(image, rows, columns, shift_px)
            counts.append((moved == there).flatten(1).all(1).sum().item())
    assert sum(counts) == 400
    assert min(counts) > 60


def test_the_shifted_set_is_the_same_every_time():
    image = numbered(50).image + 1
    assert torch.equal(shift_corners(image, 2, seed=0), shift_corners(image, 2, seed=0))
    assert not torch.equal(shift_corners(image, 2, seed=0), shift_corners(image, 2, seed=1))
    assert torch.equal(shift_corners(image, 0, seed=0), image)


def test_a_shift_off_the_canvas_is_refused():
    with pytest.raises(ValueError, match=r"data\.shift_px = 4: must be from 0 to 3"):
        shift_corners(numbered(3).image, 4, seed=0)


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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_on_the_device_never_waits():
    device = torch.device("cuda")
    arrays = Arrays(*(tensor.to(device) for tensor in numbered(64)))
    loader = ArrayLoader(arrays, batch_size=16, seed=0)
    expected = labels_of(ArrayLoader(numbered(64), batch_size=16, seed=0), 9)
    torch.cuda.set_sync_debug_mode("error")
    try:
        batches = [loader.next_batch() for _ in range(9)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [batch.label.tolist() for batch in batches] == expected


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
    four = [shifted_by(mean, y, x, 3) for y in (-3, 3) for x in (-3, 3)]
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
