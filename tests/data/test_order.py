import numpy as np
import pytest

from hard_fast.data.order import NUM_TRIES, Order


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
    options = {"seed": 5, "min_scale": 0.1, "flip": True}
    whole = Order(31, 12, **options)
    ranks = [Order(31, 12, rank=r, world_size=world_size, **options) for r in range(world_size)]
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
        for column, expected in zip(order.work(step), forward[step], strict=True):
            assert np.array_equal(column, expected)


def test_crops_have_areas_and_ratios_uniform_in_their_bounds():
    crop = Order(9000, 3000, seed=0, min_scale=0.2).work(2).crop
    assert crop.shape == (3000, 2, NUM_TRIES + 1) and crop.dtype == np.float32
    area, ratio = crop[:, 0, :-1] * crop[:, 1, :-1], crop[:, 1, :-1] / crop[:, 0, :-1]
    log_ratio = np.log(ratio) / np.log(4 / 3)
    for values, low, high in ((area, 0.2, 1), (log_ratio, -1, 1), (crop[..., -1], 0, 1)):
        assert low - 1e-6 <= values.min() and values.max() <= high + 1e-6
        quarters = np.quantile(values, [0.25, 0.5, 0.75])
        assert np.abs(quarters - np.linspace(low, high, 5)[1:-1]).max() < 0.02 * (high - low)


def test_crops_differ_from_step_to_step_and_with_the_seed():
    order = Order(8, 4, seed=0, min_scale=0.2)
    crops = [order.work(step).crop for step in (0, 1, 2)]
    crops.append(Order(8, 4, seed=1, min_scale=0.2).work(0).crop)
    assert len(np.unique(np.stack(crops)[:, :, :, 0])) == 4 * 4 * 2


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
