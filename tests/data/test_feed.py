from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hard_fast.data.feed import Feed, read_encoded
from hard_fast.data.order import Work

WORKS = [Work(np.array(index, np.int32)) for index in ([4, 0, 2], [1, 5, 3], [2, 2, 5])]


def plan(iteration: int) -> Work | None:
    return WORKS[iteration] if iteration < len(WORKS) else None


def at(iteration: int) -> SimpleNamespace:
    return SimpleNamespace(iteration=iteration)


@pytest.fixture
def payloads(encode) -> list[bytes]:
    return [encode(seed=i, size=(10 + i, 8)) for i in range(6)]


def test_files_are_given_as_paths(payloads, write_samples):
    samples = write_samples(payloads)
    feed = Feed(samples, plan)
    assert feed.has_paths
    encoded, index = feed(at(1))
    assert [path.tobytes().decode() for path in encoded] == [samples.files[i] for i in (1, 5, 3)]
    assert index.tolist() == [1, 5, 3]


@pytest.mark.parametrize("iterations", [(0, 1, 2), (1, 2), (2, 0, 0, 1)])
def test_pictures_of_shards_are_read_in_any_order(payloads, write_samples, iterations):
    feed = Feed(write_samples(payloads, num_shards=2), plan)
    assert not feed.has_paths
    for iteration in iterations:
        encoded, index = feed(at(iteration))
        assert index.tolist() == WORKS[iteration].index.tolist()
        assert [picture.tobytes() for picture in encoded] == [payloads[i] for i in index]
    feed.close()


def test_mirrored_pictures_have_negative_widths(payloads, write_samples):
    crop = np.random.default_rng(0).random((3, 2, 11), np.float32)
    work = WORKS[0]._replace(is_flipped=np.array([True, False, False]), crop=crop)
    samples = write_samples(payloads)
    feed = Feed(samples, lambda i: work, width_at=lambda i: 7 + i)
    _, index, given, width = feed(at(0))
    assert index is work.index and given is crop
    # Without a width nothing in the graph mirrors.
    assert len(Feed(samples, lambda i: work)(at(0))) == 3
    assert width.dtype == np.float32
    assert width.tolist() == [-7.0, 7.0, 7.0]
    assert feed(at(2))[3].tolist() == [-9.0, 9.0, 9.0]


@pytest.mark.parametrize("num_shards", [0, 2])
def test_after_the_last_batch_it_stops(payloads, write_samples, num_shards):
    feed = Feed(write_samples(payloads, num_shards), plan)
    feed(at(2))
    with pytest.raises(StopIteration):
        feed(at(3))
    feed.close()


def test_what_cannot_be_read_comes_out_short(payloads, write_samples):
    samples = write_samples(payloads, num_shards=2)
    Path(samples.files[0]).unlink()
    cut = int(samples.offset[5]) + 10
    Path(samples.files[1]).write_bytes(Path(samples.files[1]).read_bytes()[:cut])
    found = read_encoded(samples, [0, 3, 5])
    assert [len(picture) for picture in found] == [0, len(payloads[3]), 10]
    assert found[1].tobytes() == payloads[3]
