import sys

import pytest
import torch

from hard_fast.data import PicturesConfig, load_data

CPU = torch.device("cpu")


def test_a_folder_becomes_parts_that_give_batches(folder):
    config = PicturesConfig(root=str(folder), size=16, val_share=0.25, threads=1)
    data = load_data(config, CPU)
    assert data.num_classes == 2
    assert (data.train.num, data.val.num, data.test["test"].num) == (6, 2, 2)
    assert data.train.image_shape == (3, 16, 16) and data.train.is_picture

    loader = data.train.loader(batch_size=3, seed=0)
    batch = loader.next_batch()
    loader.close()
    assert loader.num_steps_per_epoch == 2
    assert batch.image.shape == (3, 3, 16, 16) and batch.image.dtype == torch.uint8
    assert batch.image.is_contiguous(memory_format=torch.channels_last)

    seen = [batch.label.tolist() for batch in data.test["test"].batches(8)]
    assert seen == [[0, 1]]


def test_without_dali_nothing_is_opened(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(ValueError, match="NVIDIA DALI cannot be loaded"):
        load_data(PicturesConfig(root=str(folder)), CPU)


def test_a_second_pass_decodes_nothing(folder, caplog):
    (folder / "val/dog/1.jpg").write_bytes(b"<html>")
    test = load_data(PicturesConfig(root=str(folder), size=16, val_share=0.25), CPU).test["test"]
    # A pass that is not finished keeps nothing.
    assert next(test.batches(1)).label.tolist() == [0]
    first = list(test.batches(2))
    for path in folder.glob("val/*/*.jpg"):
        path.unlink()
    second = list(test.batches(2))
    assert [batch.label.tolist() for batch in second] == [[0, 1]]
    assert second[0].image.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(first[0].image, second[0].image) and len(first) == len(second)
    assert [batch.label.tolist() for batch in test.batches(1)] == [[0], [1]]
    # The bad picture is named once.
    assert len(caplog.messages) == 1
    # Another process has another share, which was never decoded.
    assert list(test.batches(2, rank=1, world_size=2)) == []


def test_a_large_part_is_decoded_anew(folder, monkeypatch):
    monkeypatch.setattr("hard_fast.data.pictures._KEPT_BYTES", 2 * 3 * 16 * 16 - 1)
    test = load_data(PicturesConfig(root=str(folder), size=16, val_share=0.25), CPU).test["test"]
    assert [batch.label.tolist() for batch in test.batches(2)] == [[0, 1]]
    (folder / "val/cat/0.jpg").unlink()
    assert [batch.label.tolist() for batch in test.batches(2)] == [[1]]


def test_shards_without_a_set_of_their_own_are_judged_by_the_split(tmp_path, write_shard):
    write_shard(tmp_path / "a-0.tar", [0, 1, 2, 0])
    write_shard(tmp_path / "a-1.tar", [1, 2, 0, 1])
    root = str(tmp_path / "a-{0..1}.tar")
    data = load_data(PicturesConfig(root=root, num_classes=3, val_share=0.3, size=8), CPU)
    assert data.test == {} and data.train.num + data.val.num == 8
