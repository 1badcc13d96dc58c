"""Pictures that cannot be decoded."""

import logging
from pathlib import Path

import pytest
import torch

from hard_fast.data.dali import TooManyBadFiles
from hard_fast.data.order import Order
from hard_fast.data.sources import PicturesConfig
from tests.data.loops import BATCH, NUM, build, growing, labels, same, saved, take


def test_a_bad_picture_does_not_move_the_sizes(encode, write_samples):
    payloads = [encode(seed=i) for i in range(NUM)]
    payloads[9] = b"<html>"
    found = take(build(write_samples(payloads), max_bad=1.0, size_at=growing), 9)
    assert [batch.image.shape[2] for batch in found] == [growing(step) for step in range(9)]


BAD = {
    "empty": lambda good: b"",
    "html": lambda good: b"<!DOCTYPE html><title>404</title>",
    "cut in its header": lambda good: good[:100],
    "noise": lambda good: bytes(range(256)),
}


@pytest.mark.parametrize("num_shards", [0, 2])
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_picture_is_named_and_another_takes_its_place(
    solid, write_samples, caplog, kind, num_shards
):
    payloads = [solid(i) for i in range(NUM)]
    payloads[9] = BAD[kind](payloads[9])
    samples = write_samples(payloads, num_shards)
    order = Order(NUM, BATCH, seed=5)
    asked = [order.work(step).index.tolist() for step in range(9)]
    loader = build(samples, max_bad=0.1)
    with caplog.at_level(logging.WARNING):
        batches = take(loader, 9)
    for expected, found in zip(asked, labels(batches), strict=True):
        first = next(i for i in expected if i != 9)
        assert found == [first if i == 9 else i for i in expected]
    for image, label in batches:
        assert (image.float() - (8 * label + 4).view(-1, 1, 1, 1)).abs().max() <= 1
    num_bad = sum(9 in expected for expected in asked)
    assert loader.num_bad == num_bad > 0
    # The log is one batch ahead.
    assert 0 <= len(caplog.messages) - num_bad <= 1
    assert all(samples.name(9) in message for message in caplog.messages)


def test_a_picture_cut_short_is_bad_where_its_crop_needs_the_rest(encode, write_samples, caplog):
    payloads = [encode(size=(40, 30), seed=i) for i in range(NUM)]
    payloads[9] = payloads[9][: len(payloads[9]) // 2]
    samples = write_samples(payloads)
    loader = build(samples, max_bad=0.1)
    found = labels(take(loader, 30))
    assert len(caplog.messages) - 1 <= loader.num_bad <= len(caplog.messages) > 0
    assert all(samples.name(9) in message for message in caplog.messages)
    order = Order(NUM, BATCH, seed=5)
    num_asked = sum(9 in order.work(step).index for step in range(30))
    assert sum(9 in batch for batch in found) == num_asked - loader.num_bad


def test_a_batch_without_any_good_picture_shows_those_of_a_later_one(solid, write_samples):
    order = Order(NUM, 2, seed=5)
    first, second = (order.work(step).index.tolist() for step in range(2))
    bad = {*first, second[0]}
    payloads = [b"<html>" if i in bad else solid(i) for i in range(NUM)]
    loader = build(write_samples(payloads), 2, max_bad=0.5)
    assert labels(take(loader, 2)) == [[second[1]] * 2] * 2
    # Two at the first step, and one at both.
    assert loader.num_bad == 4


def test_bad_pictures_of_one_process_do_not_part_it_from_the_others(encode, write_samples):
    payloads = [encode(size=(40, 30), seed=i) for i in range(NUM)]
    step, bad = 2, 0
    while bad not in (index := Order(NUM, BATCH, seed=5).work(step).index.tolist()):
        step += 1
    payloads[bad] = b"<html>"
    rank = index.index(bad) // 2
    samples = write_samples(payloads)
    ranks = [build(samples, rank=r, world_size=2, max_bad=0.5) for r in range(2)]
    for loader in ranks:
        take(loader, step + 1)
    assert [loader.num_bad > 0 for loader in ranks] == [rank == 0, rank == 1]
    places = [[loader.state_dict()[key] for key in ("epoch", "position")] for loader in ranks]
    assert places == [list(divmod(step + 1, 3))] * 2


@pytest.mark.parametrize("num_before", range(7))
def test_resume_is_exact_among_bad_pictures(encode, write_samples, num_before):
    payloads = [encode(size=(40, 30), seed=i) for i in range(NUM)]
    payloads[3] = b"<html>"
    samples = write_samples(payloads)
    straight, resumed = (build(samples, max_bad=0.5) for _ in "ab")
    take(straight, num_before)
    resumed.load_state_dict(saved(straight))
    assert same(take(resumed, 6), take(straight, 6))
    assert resumed.num_bad == straight.num_bad
    assert saved(resumed) == saved(straight)


def test_a_file_that_vanishes_is_bad(samples, caplog):
    loader = build(samples, 2, max_bad=1.0)
    loader.next_batch()
    Path(samples.files[-1]).unlink()
    # What was read ahead of time is still whole.
    take(loader, 6)
    # One picture of the folder, or the second half in shards.
    gone = {13} if len(samples.files) == NUM else set(range(7, 14))
    assert set(sum(labels(take(loader, 20)), [])) == set(range(NUM)) - gone
    assert loader.num_bad > 0 and samples.files[-1] in caplog.text


def test_above_the_limit_the_run_ends_with_the_command(solid, write_samples):
    payloads = [solid(i) for i in range(NUM)]
    payloads[2] = payloads[11] = b"<html>"
    samples = write_samples(payloads)
    # An epoch has 12 pictures: two are 0.17 of them and one is 0.08.
    with pytest.raises(TooManyBadFiles) as error:
        take(build(samples, max_bad=0.1), 20)
    text = str(error.value)
    assert "python -m hard_fast.data.prepare check /some/root" in text
    assert "data.max_bad = 0.1" in text and "\n" not in text
    loader = build(samples, max_bad=0.2)
    take(loader, 20)
    # Each epoch is judged by itself.
    assert loader.num_bad > 0.2 * 12


def test_one_bad_picture_of_a_small_set_does_not_end_the_run(solid, write_samples):
    payloads = [solid(i) for i in range(NUM)]
    payloads[2] = b"<html>"
    samples = write_samples(payloads)
    assert 1 / NUM > PicturesConfig(root="unused").max_bad > 0
    loader = build(samples)
    take(loader, 12)
    assert loader.num_bad > 0
    with pytest.raises(TooManyBadFiles, match=r"max_bad = 0 allows"):
        take(build(samples, max_bad=0.0), 12)


@pytest.mark.parametrize("batch_size", [1, BATCH, NUM])
def test_a_run_without_any_good_picture_ends(write_samples, batch_size):
    loader = build(write_samples([b"<html>"] * NUM), batch_size, max_bad=1.0)
    with pytest.raises(
        TooManyBadFiles, match=r"no picture of an epoch can be decoded; .*check /some/root"
    ):
        loader.next_batch()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_skips_bad_pictures(solid, write_samples):
    payloads = [solid(i) for i in range(NUM)]
    payloads[9], payloads[2] = b"<html>", payloads[2][:100]
    loader = build(write_samples(payloads), max_bad=0.5, device=torch.device("cuda"))
    for image, label in take(loader, 12):
        assert not {2, 9} & set(label.tolist())
        apart = image.float() - (8 * label + 4).view(-1, 1, 1, 1)
        assert apart.abs().max() <= 3
    assert loader.num_bad > 0
