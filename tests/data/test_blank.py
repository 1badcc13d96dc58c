"""A training part of zeros: nothing of the real one reaches a run."""

import pytest
import torch

from hard_fast.data import load_data
from hard_fast.data.blank import Blank
from hard_fast.data.readers import MnistConfig
from hard_fast.data.toys import SyntheticConfig
from hard_fast.runtime.configfile import Source, parse

CPU = torch.device("cpu")
SET = {"size": 8, "channels": 1, "num_train": 20, "num_test": 6}


def test_training_batches_are_zeros_and_the_test_part_is_whole():
    real = load_data(SyntheticConfig(**SET, val_share=0.0), CPU)
    blank = load_data(SyntheticConfig(**SET, val_share=0.0, train_zeros=50), CPU)
    assert blank.val is None and blank.train.num == 50
    loader = blank.train.loader(batch_size=16, seed=0, rank=1, world_size=2)
    assert loader.num_steps_per_epoch == 3 and loader.num_bad == 0
    for _ in range(4):
        image, label = loader.next_batch()
        assert image.dtype == torch.uint8 and image.shape == (8, 1, 8, 8)
        assert not image.any() and (label == -1).all()
    want = real.train.loader(batch_size=8, seed=0).next_batch().image
    assert image.stride() == want.stride()
    assert torch.equal(blank.test["test"].image, real.test["test"].image)
    assert torch.equal(blank.test["test"].label, real.test["test"].label)


def test_a_pass_over_it_counts_every_zero_once_over_all_processes():
    part = Blank(11, torch.rand(1, 3, 4, 4))
    sizes = [[len(b.label) for b in part.batches(3, rank, 2)] for rank in range(2)]
    assert sizes == [[3, 2], [3, 3]] and not part.is_picture
    assert part.image_shape == (3, 4, 4)


def test_mnist_is_read_without_its_training_files(tmp_path):
    for name, shape in (("images-idx3", (4, 28, 28)), ("labels-idx1", (4,))):
        head = bytes([0, 0, 8, len(shape)]) + b"".join(s.to_bytes(4, "big") for s in shape)
        size = int(torch.tensor(shape).prod())
        (tmp_path / f"t10k-{name}-ubyte").write_bytes(head + bytes([7]) * size)
    config = {"root": str(tmp_path), "train_zeros": 9}
    data = load_data(MnistConfig(**config, val_share=0.0), CPU)
    assert data.train.num == 9 and data.test["centered"].num == 4
    assert not data.train.loader(batch_size=4, seed=0).next_batch().image.any()
    with pytest.raises(ValueError, match="train-images-idx3-ubyte"):
        load_data(MnistConfig(**config, val_share=0.5), CPU)


def test_what_does_not_fit_is_one_line():
    tree = {"kind": "synthetic", "train_zeros": 5, "train_limit": 5}
    with pytest.raises(ValueError, match="train_zeros replaces what it would limit"):
        parse(SyntheticConfig, Source(tree, {}))
    part = Blank(8, torch.rand(1, 1, 4, 4))
    with pytest.raises(ValueError, match="from 1 to data.train_zeros = 8"):
        part.loader(batch_size=9, seed=0)
    with pytest.raises(ValueError, match="divisible by the 3 processes"):
        part.loader(batch_size=8, seed=0, world_size=3)
