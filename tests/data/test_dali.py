import gc
import io
import threading
import time
import weakref

import numpy as np
import pytest
import torch
from PIL import Image

from hard_fast.data.order import Order
from hard_fast.types import Batch
from tests.data.loops import NUM, build, growing, labels, same, saved, take


@pytest.mark.parametrize("resize_in_graph", [False, True])
def test_an_epoch_shows_each_picture_with_its_label(samples, resize_in_graph):
    loader = build(samples, 7, resize_in_graph=resize_in_graph)
    assert loader.num_steps_per_epoch == 2
    batches = take(loader, 4)
    for image, label in batches:
        assert image.shape == (7, 3, 12, 12) and image.dtype == torch.uint8
        assert image.is_contiguous(memory_format=torch.channels_last)
        assert label.dtype == torch.int64
        assert (image.float() - (8 * label + 4).view(-1, 1, 1, 1)).abs().max() <= 1
    first, second = (sum(labels(part), []) for part in (batches[:2], batches[2:]))
    assert sorted(first) == sorted(second) == list(range(NUM))
    assert first != second
    assert loader.num_bad == 0
    loader.close()


def test_a_batch_stays_what_it_was_when_others_come(noisy):
    for resize_in_graph in (False, True):
        loader = build(noisy, resize_in_graph=resize_in_graph)
        first = loader.next_batch()
        copy = first.image.clone()
        take(loader, 6)
        loader.close()
        assert torch.equal(first.image, copy)


def test_crops_and_mirrors_differ_from_epoch_to_epoch_and_with_the_seed(noisy):
    batches = take(build(noisy, NUM), 4)
    by_label = torch.stack([image[label.argsort()] for image, label in batches])
    assert len(by_label.flatten(2).unique(dim=0)) == 4
    other = build(noisy, NUM, seed=6).next_batch()
    again = build(noisy, NUM).next_batch()
    assert same([again], batches[:1]) and not same([other], batches[:1])


def test_half_of_the_pictures_are_mirrored(encode, write_samples):
    ramp = Image.linear_gradient("L").rotate(90).resize((64, 48)).convert("RGB")
    buffer = io.BytesIO()
    ramp.save(buffer, "PNG")
    samples = write_samples([buffer.getvalue()] * 60)

    def num_rising(flip: bool, in_graph: bool) -> int:
        image = build(samples, 60, flip=flip, resize_in_graph=in_graph).next_batch().image.int()
        return int((image[:, 0, 6, -1] > image[:, 0, 6, 0]).sum())

    whole = num_rising(False, False)
    assert whole in (0, 60) and num_rising(False, True) == whole
    expected = Order(60, 60, seed=5, flip=True).work(0).is_flipped.sum()
    for in_graph in (False, True):
        assert abs(num_rising(True, in_graph) - whole) == expected


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_global_batches(samples, world_size):
    whole = labels(take(build(samples, 6), 5))
    ranks = []
    for rank in range(world_size):
        loader = build(samples, 6, rank=rank, world_size=world_size)
        assert loader.num_steps_per_epoch == 2
        ranks.append(labels(take(loader, 5)))
        loader.close()
    assert [sum(parts, []) for parts in zip(*ranks, strict=True)] == whole
    for epoch in (whole[:2], whole[2:4]):
        assert len(set(sum(epoch, []))) == 12


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("resize_in_graph", [False, True])
def test_many_processes_see_what_one_sees(noisy, world_size, resize_in_graph):
    options = {"batch_size": 6, "resize_in_graph": resize_in_graph, "world_size": world_size}
    whole = take(build(noisy, 6, resize_in_graph=resize_in_graph), 4)
    ranks = [take(build(noisy, rank=rank, **options), 4) for rank in range(world_size)]
    for one, *parts in zip(whole, *ranks, strict=True):
        assert same([one], [Batch(*map(torch.cat, zip(*parts, strict=True)))])


@pytest.mark.parametrize("num_before", range(8))
@pytest.mark.parametrize("resize_in_graph", [False, True])
def test_resume_after_any_batch_continues_bit_for_bit(noisy, num_before, resize_in_graph):
    straight = build(noisy, resize_in_graph=resize_in_graph)
    take(straight, num_before)
    state = saved(straight)
    assert (state["epoch"], state["position"]) == divmod(num_before, 3)
    resumed = build(noisy, resize_in_graph=resize_in_graph)
    take(resumed, 2)
    resumed.load_state_dict(state)
    assert saved(resumed) == state
    assert same(take(resumed, 7), take(straight, 7))
    # And once more, from a run that was itself resumed.
    again = build(noisy, resize_in_graph=resize_in_graph)
    again.load_state_dict(saved(resumed))
    assert same(take(again, 3), take(straight, 3))


@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (1, 2)])
def test_any_process_resumes_bit_for_bit_from_the_state_of_any(noisy, caplog, rank, world_size):
    saving = build(noisy, rank=0, world_size=4)
    take(saving, 4)
    place = {"rank": rank, "world_size": world_size}
    straight, resumed = build(noisy, **place), build(noisy, **place)
    take(straight, 4)
    resumed.load_state_dict(saved(saving))
    assert same(take(resumed, 4), take(straight, 4))
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"seed": 6}, "seed"),
        ({"batch_size": 7}, "batch size"),
    ],
)
def test_another_set_up_says_so_and_starts_the_epoch_again(noisy, caplog, change, word):
    loader = build(noisy)
    take(loader, 5)
    other = build(noisy, **change)
    other.load_state_dict(saved(loader))
    assert caplog.messages == [f"saved with another {word}: epoch 1 starts again"]
    assert saved(other)["position"] == 0
    straight = build(noisy, **change)
    take(straight, straight.num_steps_per_epoch)
    assert labels(take(other, 3)) == labels(take(straight, 3))


def test_another_list_of_samples_starts_the_epoch_again(noisy, caplog):
    loader = build(noisy)
    take(loader, 5)
    fewer = build(noisy.take(np.arange(NUM - 1)))
    fewer.load_state_dict(saved(loader))
    assert caplog.messages == ["saved with another list of samples: epoch 1 starts again"]
    assert 13 not in sum(labels(take(fewer, 4)), [])


@pytest.mark.parametrize("resize_in_graph", [False, True])
def test_pictures_that_grow_are_those_of_each_size_bit_for_bit(noisy, resize_in_graph):
    given = {"resize_in_graph": resize_in_graph}
    found = take(build(noisy, size_at=growing, **given), 9)
    assert [batch.image.shape[2] for batch in found] == [growing(step) for step in range(9)]
    assert all(b.image.is_contiguous(memory_format=torch.channels_last) for b in found)
    for size in (8, 10, 12):
        alone = take(build(noisy, size=size, **given), 9)
        mine = [step for step in range(9) if growing(step) == size]
        assert same([found[step] for step in mine], [alone[step] for step in mine])


@pytest.mark.parametrize("num_before", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("resize_in_graph", [False, True])
def test_a_resumed_loader_goes_on_at_its_size(noisy, num_before, resize_in_graph):
    given = {"resize_in_graph": resize_in_graph, "size_at": growing}
    straight, resumed = build(noisy, **given), build(noisy, **given)
    take(straight, num_before)
    take(resumed, 4)
    resumed.load_state_dict(saved(straight))
    assert same(take(resumed, 5), take(straight, 5))


@pytest.mark.parametrize("resize_in_graph", [False, True])
def test_a_loader_that_is_dropped_lets_go_of_memory_and_threads(samples, resize_in_graph):
    before = set(threading.enumerate())
    loader = build(samples, resize_in_graph=resize_in_graph)
    take(loader, 3)
    loader.load_state_dict(saved(loader))
    take(loader, 3)
    pipeline = weakref.ref(loader._pipeline)
    gc.disable()
    try:
        del loader
        # DALI's memory does not wait for the garbage collector, whose time comes when it likes.
        assert pipeline() is None
    finally:
        gc.enable()
    gc.collect()
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive()


def test_a_batch_that_cannot_be_made_names_its_key(samples):
    with pytest.raises(ValueError, match=r"train\.batch_size = 15: must be from 1 to the 14"):
        build(samples, 15)


def test_batches_are_decoded_while_the_last_one_is_in_use(write_samples):
    noise = np.random.default_rng(0).integers(0, 256, (900, 1200, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG", quality=90)
    samples = write_samples([buffer.getvalue()] * 8)
    loader = build(samples, 8)
    loader.next_batch()

    def wait_for_five(pause_s: float) -> float:
        before = loader.wait_s
        for _ in range(5):
            time.sleep(pause_s)
            loader.next_batch()
        return loader.wait_s - before

    hurried = wait_for_five(0.0)
    wait_for_five(hurried / 2)
    assert wait_for_five(hurried / 2) < hurried / 4
    loader.close()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("num_before", [0, 2, 3, 5])
def test_a_gpu_gives_the_same_samples_and_resumes_bit_for_bit(noisy, num_before):
    device = torch.device("cuda")
    straight, resumed = build(noisy, device=device), build(noisy, device=device)
    before = take(straight, num_before)
    resumed.load_state_dict(saved(straight))
    after = take(straight, 6)
    assert same(take(resumed, 6), after)
    assert labels(before + after) == labels(take(build(noisy), num_before + 6))
    image, label = after[0]
    assert image.device.type == label.device.type == "cuda"
    assert image.is_contiguous(memory_format=torch.channels_last)
    torch.cuda.synchronize()
    assert straight.wait_s > 0
