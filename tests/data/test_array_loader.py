import pytest
import torch

from hard_fast.data.array_loader import ArrayLoader, permutation
from hard_fast.types import Batch


def numbered(num: int, channels: int = 3) -> Batch:
    """Images whose every pixel is their label, so that a mix-up of the two shows."""
    label = torch.arange(num)
    image = label.byte().view(-1, 1, 1, 1).expand(num, channels, 4, 5)
    return Batch(image.contiguous(memory_format=torch.channels_last), label)


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


def test_pictures_grow_where_the_loader_is_told_so():
    label = torch.arange(12)
    image = (20 * label).byte().view(-1, 1, 1, 1).expand(12, 1, 8, 8)
    whole = Batch(image.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2), label)
    given = {"batch_size": 4, "seed": 1}
    loader = ArrayLoader(whole, **given, size_at=lambda step: (3, 6, 8)[min(step // 2, 2)])
    plain = ArrayLoader(whole, **given)
    for side in (3, 3, 6, 6, 8, 8):
        (image, label), other = loader.next_batch(), plain.next_batch()
        assert image.shape == (4, 1, side, side) and image.dtype == torch.uint8
        assert image.stride() == (side * side, 1, side, 1)
        assert torch.equal(label, other.label)
        assert (image == (20 * label).byte().view(-1, 1, 1, 1)).all()
    resumed = ArrayLoader(whole, **given, size_at=lambda step: (3, 6, 8)[min(step // 2, 2)])
    resumed.load_state_dict({"step": 3})
    assert resumed.next_batch().image.shape[2:] == (6, 6)
    assert resumed.next_batch().image.shape[2:] == (8, 8)


def test_an_order_is_that_of_its_seed():
    assert sorted(permutation(9, 3).tolist()) == list(range(9))
    assert torch.equal(permutation(9, 3), permutation(9, 3))
    assert not torch.equal(permutation(9, 3), permutation(9, 4))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_on_the_device_never_waits():
    device = torch.device("cuda")
    arrays = Batch(*(tensor.to(device) for tensor in numbered(64)))
    loader = ArrayLoader(arrays, batch_size=16, seed=0)
    expected = labels_of(ArrayLoader(numbered(64), batch_size=16, seed=0), 9)
    torch.cuda.set_sync_debug_mode("error")
    try:
        batches = [loader.next_batch() for _ in range(9)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [batch.label.tolist() for batch in batches] == expected
