import os
from pathlib import Path

import numpy as np
import pytest
import torch

from hard_fast.data.decoding import (
    build_resizer,
    count_threads,
    fingerprint,
    name_of,
    run,
    to_batch,
    to_tensor,
    with_index,
)
from hard_fast.data.feed import Feed
from hard_fast.data.order import Order
from hard_fast.data.pipelines import train_pipeline
from hard_fast.data.sources import PicturesConfig

CPU = torch.device("cpu")


def test_threads_are_as_configured_or_a_share_of_the_cores():
    assert count_threads(PicturesConfig(root="unused", threads=5), CPU, 2) == 5
    num_cores = len(os.sched_getaffinity(0))
    setting = PicturesConfig(root="unused")
    assert count_threads(setting, CPU, 1) == min(8, num_cores)
    assert count_threads(setting, CPU, 1000) == 1


def test_only_without_a_gpu_is_there_a_resizer():
    setting = PicturesConfig(root="unused")
    resizer = build_resizer(setting, 1, CPU, resize_in_graph=False)
    assert resizer is not None
    resizer.close()
    assert build_resizer(setting, 1, CPU, resize_in_graph=True) is None
    assert build_resizer(setting, 1, torch.device("cuda", 0), resize_in_graph=False) is None


def test_the_fingerprint_knows_the_list_but_not_its_place(encode, write_samples):
    samples = write_samples([encode(seed=i) for i in range(5)])
    moved = samples._replace(files=tuple(f"/elsewhere{path}" for path in samples.files))
    assert fingerprint(moved) == fingerprint(samples)
    one = np.arange(5) == 2
    others = [
        samples.take(np.arange(4)),
        samples.take(np.array([1, 0, 2, 3, 4])),
        samples._replace(label=samples.label + one),
        samples._replace(num_bytes=samples.num_bytes + one),
        samples._replace(offset=samples.offset + one),
    ]
    assert len({fingerprint(each) for each in (samples, *others)}) == 6


def test_a_picture_has_a_name_even_if_its_shard_is_gone(encode, write_samples):
    samples = write_samples([encode(seed=i) for i in range(4)], num_shards=2)
    assert name_of(samples, 3) == f"{samples.files[1]}/3.jpg"
    Path(samples.files[1]).unlink()
    assert name_of(samples, 3) == f"{samples.files[1]} at byte {samples.offset[3]}"


def test_what_comes_out_shares_no_memory_with_what_comes_next(encode, write_samples):
    samples = write_samples([encode(seed=i, size=(50, 40)) for i in range(4)])
    index = np.arange(4, dtype=np.int32)
    work = Order(4, 4, seed=0).work(0)._replace(index=index)
    feed = Feed(samples, lambda i: work, width_at=lambda i: 16)
    pipeline = train_pipeline(feed, PicturesConfig(root="unused", size=16), 4, CPU, 1)
    pictures, position = run(pipeline, CPU)
    assert position.tolist() == [0, 1, 2, 3]
    image = to_tensor(pictures)
    assert image.shape == (4, 3, 16, 16) and image.dtype == torch.uint8
    assert image.is_contiguous(memory_format=torch.channels_last)
    copy = image.clone()
    del pictures
    for _ in range(6):
        run(pipeline, CPU)
    del pipeline
    assert torch.equal(image, copy)
    batch = to_batch(image, np.array([3, 1, 2, 0]), CPU)
    assert batch.image is image
    assert batch.label.tolist() == [3, 1, 2, 0] and batch.label.dtype == torch.int64


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_device_without_a_number_is_the_current_one():
    assert with_index(CPU) == CPU
    assert with_index(torch.device("cuda")).index == torch.cuda.current_device()
    assert with_index(torch.device("cuda", 0)).index == 0
