import numpy as np
import pytest

from hard_fast.data.order import Order


def indices(order: Order, num_steps: int) -> list[list[int]]:
    return [order.work(step).index.tolist() for step in range(num_steps)]


def test_an_epoch_takes_each_sample_once_and_epochs_and_seeds_differ():
    order = Order(20, 5, seed=1)
    assert order.num_steps_per_epoch == 4
    first, second = sum(indices(order, 4), []), sum(indices(order, 8)[4:], [])
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second and first != list(range(20))
    assert sum(indices(Order(20, 5, seed=2), 4), []) != first


def test_an_incomplete_batch_waits_for_another_epoch():
    order = Order(11, 4, seed=1)
    assert order.num_steps_per_epoch == 2
    assert len(set(sum(indices(order, 2), []))) == 8
    assert len(set(sum(indices(order, 40), []))) == 11


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ranks_divide_the_global_batches_of_one_process(world_size):
    whole = Order(31, 12, seed=5, flip=True)
    ranks = [
        Order(31, 12, seed=5, flip=True, rank=r, world_size=world_size) for r in range(world_size)
    ]
    for step in (0, 1, 2, 7):
        parts = [order.work(step) for order in ranks]
        assert all(len(part.index) == order.share for part, order in zip(parts, ranks, strict=True))
        for joined, one in zip(zip(*parts, strict=True), whole.work(step), strict=True):
            assert np.array_equal(np.concatenate(joined), one)


def test_steps_may_be_asked_for_in_any_order():
    steps = [9, 0, 25, 3, 17, 1, 9]
    order, again = Order(6, 3, seed=2, flip=True), Order(6, 3, seed=2, flip=True)
    forward = [again.work(step) for step in range(26)]
    for step in steps:
        index, is_flipped = order.work(step)
        assert np.array_equal(index, forward[step].index)
        assert np.array_equal(is_flipped, forward[step].is_flipped)


def test_half_of_the_pictures_are_mirrored_or_none():
    flipped = Order(4000, 4000, seed=0, flip=True).work(0).is_flipped
    assert 1850 < flipped.sum() < 2150
    again = Order(4000, 4000, seed=0, flip=True).work(1).is_flipped
    assert not np.array_equal(flipped, again)
    assert not Order(4000, 4000, seed=0).work(0).is_flipped.any()


@pytest.mark.parametrize(("batch_size", "world_size"), [(0, 1), (21, 1), (6, 4)])
def test_a_batch_that_cannot_be_made_names_its_key(batch_size, world_size):
    with pytest.raises(ValueError, match=rf"train\.batch_size = {batch_size}"):
        Order(20, batch_size, seed=0, world_size=world_size)
