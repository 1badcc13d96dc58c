import io
import logging

import numpy as np
import pytest
import torch

from hard_fast.data.dali import TooManyBadFiles, TrainLoader
from hard_fast.data.sources import PicturesConfig, read_pictures
from hard_fast.runtime.seed import derive_seed

CPU = torch.device("cpu")


@pytest.fixture
def set_of(tmp_path, encode):
    """A function that writes a folder of `num` pictures and returns its config and samples."""

    def set_of(num: int, **options):
        for name in ("cat", "dog"):
            (tmp_path / "train" / name).mkdir(parents=True, exist_ok=True)
        for i in range(num):
            place = tmp_path / "train" / ("cat", "dog")[i % 2] / f"{i:02d}.jpg"
            place.write_bytes(encode(seed=i, size=(20 + i, 30 - i)))
        (tmp_path / "val").mkdir(exist_ok=True)
        for name in ("cat", "dog"):
            (tmp_path / "val" / name).mkdir(exist_ok=True)
            (tmp_path / "val" / name / "0.jpg").write_bytes(encode(seed=99))
        options = {"size": 8, "val_share": 0.0, "threads": 1} | options
        config = PicturesConfig(root=str(tmp_path), **options)
        return config, read_pictures(config).train

    return set_of


def open_loader(config, samples, batch_size=2, **options):
    return TrainLoader(samples, config, batch_size=batch_size, seed=3, device=CPU, **options)


def test_an_epoch_shows_every_picture_once_and_the_next_in_another_order(set_of):
    config, samples = set_of(6)
    loader = open_loader(config, samples._replace(label=np.arange(6)))
    epochs = [torch.cat([loader.next_batch().label for _ in range(3)]).tolist() for _ in range(2)]
    loader.close()
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(6)) and epochs[0] != epochs[1]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_ranks_share_the_same_global_batches(set_of, world_size):
    config, samples = set_of(13)
    samples = samples._replace(label=np.arange(13))
    seen = []
    for rank in range(world_size):
        loader = open_loader(config, samples, 6, rank=rank, world_size=world_size)
        seen.append([loader.next_batch().label for _ in range(4)])
        loader.close()
    batches = [torch.cat(parts).tolist() for parts in zip(*seen, strict=True)]
    for epoch in range(2):
        generator = torch.Generator().manual_seed(derive_seed(3, "order", epoch))
        order = torch.randperm(13, generator=generator).tolist()
        assert batches[2 * epoch] == order[:6] and batches[2 * epoch + 1] == order[6:12]


def test_a_run_resumes_at_every_position_bit_for_bit(set_of):
    config, samples = set_of(7)
    whole = open_loader(config, samples)
    batches, states = [], []
    for _ in range(8):
        batches.append(whole.next_batch())
        # As a checkpoint does it: through a file that may hold plain values only.
        buffer = io.BytesIO()
        torch.save(whole.state_dict(), buffer)
        states.append(buffer)
    whole.close()
    for position, buffer in enumerate(states[:-1]):
        buffer.seek(0)
        resumed = open_loader(config, samples)
        resumed.load_state_dict(torch.load(buffer, weights_only=True))
        for expected in batches[position + 1 : position + 3]:
            got = resumed.next_batch()
            assert torch.equal(got.image, expected.image), position
            assert torch.equal(got.label, expected.label), position
        resumed.close()


def test_another_number_of_processes_starts_the_epoch_again_and_says_so(set_of, caplog):
    config, samples = set_of(8)
    first = open_loader(config, samples, 4)
    expected = first.next_batch().label
    state = first.state_dict()
    first.close()
    second = open_loader(config, samples, 4, rank=0, world_size=2)
    with caplog.at_level(logging.WARNING):
        second.load_state_dict(state)
    assert "another number of processes: epoch 0 starts again" in caplog.text
    assert torch.equal(second.next_batch().label, expected[:2])
    second.close()


def test_bad_files_are_named_and_cost_their_batch_and_too_many_end_the_run(
    set_of, caplog, tmp_path
):
    config, samples = set_of(8, max_bad=0.2)
    (tmp_path / "train" / "cat" / "04.jpg").write_bytes(b"<html>not found</html>" * 20)
    loader = open_loader(config, samples)
    for _ in range(4):
        loader.next_batch()
    # One of the epoch's four batches was lost, so the fourth is the first of the next.
    assert loader.num_bad == 1 and loader.state_dict()["epoch"] == 1
    assert "04.jpg" in caplog.text and "skipped a batch" in caplog.text
    loader.close()
    strict = open_loader(PicturesConfig(**config.model_dump() | {"max_bad": 0.0}), samples)
    with pytest.raises(TooManyBadFiles, match="hard_fast.data.prepare check"):
        for _ in range(4):
            strict.next_batch()
    strict.close()


def test_shards_give_what_a_folder_gives(tmp_path, write_shard):
    write_shard(tmp_path / "a-0.tar", [0, 1, 2, 0])
    write_shard(tmp_path / "a-1.tar", [1, 2, 0, 1])
    root = str(tmp_path / "a-{0..1}.tar")
    config = PicturesConfig(root=root, num_classes=3, val_share=0.3, size=8, threads=1)
    samples = read_pictures(config).train
    loader = open_loader(config, samples, 1)
    labels = [int(loader.next_batch().label) for _ in range(len(samples.label))]
    loader.close()
    assert sorted(labels) == sorted(samples.label.tolist())
