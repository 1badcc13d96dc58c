import io
import logging
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform

from hard_fast.data.eval_pass import eval_batches
from hard_fast.data.sources import PicturesConfig, read_pictures
from hard_fast.types import Batch

CPU = torch.device("cpu")
CONFIG = PicturesConfig(root="unused", size=8, threads=1)
BAD = {"empty": b"", "html": b"<!DOCTYPE html>" * 20, "cut short": None}


def all_batches(samples, batch_size: int, **options) -> list[Batch]:
    return list(eval_batches(samples, CONFIG, batch_size, CPU, **options))


def check_content(batches: list[Batch]) -> list[int]:
    """The labels, once every picture turned out to be the grey one that belongs to its label."""
    for image, label in batches:
        assert image.dtype == torch.uint8 and image.shape[1:] == (3, 8, 8)
        assert image.is_contiguous(memory_format=torch.channels_last)
        assert label.dtype == torch.int64
        apart = image.float() - (8 * label + 4).view(-1, 1, 1, 1)
        assert apart.abs().max() <= 1
    return [i for batch in batches for i in batch.label.tolist()]


@pytest.mark.parametrize("num_shards", [0, 3])
@pytest.mark.parametrize("resize_in_graph", [False, True])
def test_a_pass_shows_every_picture_once_in_order(
    solid, write_samples, num_shards, resize_in_graph
):
    samples = write_samples([solid(i) for i in range(11)], num_shards)
    batches = all_batches(samples, 4, resize_in_graph=resize_in_graph)
    assert [len(batch.label) for batch in batches] == [4, 4, 3]
    assert check_content(batches) == list(range(11))


@pytest.mark.parametrize(("num", "world_size"), [(11, 1), (11, 2), (11, 3), (2, 3)])
def test_ranks_share_the_pictures_without_padding(solid, write_samples, num, world_size):
    samples = write_samples([solid(i) for i in range(num)])
    ranks = [
        all_batches(samples, 4, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    assert sorted(i for rank in ranks for i in check_content(rank)) == list(range(num))
    assert all(0 < len(batch.label) <= 4 for rank in ranks for batch in rank)


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("num_shards", [0, 2])
def test_a_bad_picture_is_left_out_and_named(solid, write_samples, caplog, kind, num_shards):
    payloads = [solid(i) for i in range(12)]
    for i in (5, 6):
        payloads[i] = BAD[kind] if BAD[kind] is not None else payloads[i][:400]
    samples = write_samples(payloads, num_shards)
    with caplog.at_level(logging.WARNING):
        labels = check_content(all_batches(samples, 3))
    assert labels == [0, 1, 2, 3, 4, 7, 8, 9, 10, 11]
    assert [samples.name(5) in text or samples.name(6) in text for text in caplog.messages] == [
        True,
        True,
    ]


def test_a_pass_over_bad_pictures_alone_is_empty(solid, write_samples, caplog):
    samples = write_samples([b"", b"<html>", solid(2)[:300]])
    assert all_batches(samples, 2) == []
    assert len(caplog.messages) == 3


def test_files_that_vanish_during_a_pass_are_left_out(solid, write_samples, caplog):
    samples = write_samples([solid(i) for i in range(30)])
    batches = eval_batches(samples, CONFIG, 2, CPU)
    first = next(batches)
    Path(samples.files[29]).unlink()
    assert check_content([first, *batches]) == list(range(29))
    assert "29.jpg" in caplog.text


def test_a_pass_can_be_abandoned(solid, write_samples):
    samples = write_samples([solid(i) for i in range(9)], num_shards=2)
    batches = eval_batches(samples, CONFIG, 2, CPU)
    assert next(batches).label.tolist() == [0, 1]
    batches.close()
    with pytest.raises(StopIteration):
        next(batches)


# The state dict of torch.hub's EfficientNet-Lite0 lists the same tensors as timm's in its order.
WEIGHTS = "weights/efficientnet-lite0-57934424.pth"
MEAN, STD = 127 / 255, 128 / 255


@pytest.fixture(scope="module")
def pil_truth(real_data: Path):
    """Real pictures as timm's own PIL pipeline makes them, a network, and its answers on them."""
    config = PicturesConfig(root=str(real_data / "caltech25"), interpolation="bicubic", threads=2)
    samples = read_pictures(config).test
    transform = create_transform(
        (3, 224, 224), is_training=False, interpolation="bicubic", crop_pct=0.875
    )
    resize_and_crop = transform.transforms[:2]

    def pixels(path: str) -> torch.Tensor:
        picture = Image.open(path).convert("RGB")
        for step in resize_and_crop:
            picture = step(picture)
        return torch.from_numpy(np.array(picture))

    image = torch.stack([pixels(path) for path in samples.files]).permute(0, 3, 1, 2)
    network = timm.create_model("tf_efficientnet_lite0", num_classes=1000).eval()
    saved = torch.load(real_data / WEIGHTS, weights_only=True)
    own = network.state_dict()
    network.load_state_dict(dict(zip(own, saved.values(), strict=True)))

    @torch.no_grad()
    def answers(image: torch.Tensor) -> torch.Tensor:
        parts = [(part.float() / 255 - MEAN) / STD for part in image.split(64)]
        return torch.cat([network(part).argmax(1) for part in parts])

    return config, samples, image, answers, answers(image)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("resize_in_graph", "least_agreement", "most_apart"), [(False, 0.995, 0.01), (True, 0.98, 0.2)]
)
def test_real_pictures_are_those_of_timm(pil_truth, resize_in_graph, least_agreement, most_apart):
    config, samples, expected, answers, wanted = pil_truth
    batches = list(eval_batches(samples, config, 64, CPU, resize_in_graph=resize_in_graph))
    image = torch.cat([batch.image for batch in batches])
    assert torch.equal(
        torch.cat([batch.label for batch in batches]), torch.from_numpy(samples.label)
    )
    apart = (image.float() - expected.float()).abs().mean().item()
    agreement = (answers(image) == wanted).float().mean().item()
    print(f"\n{resize_in_graph=}: {apart:.4f} levels apart, top-1 agrees on {agreement:.2%}")
    assert apart <= most_apart
    assert agreement >= least_agreement


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_decodes_the_same_pass(encode, write_samples, caplog):
    rng = np.random.default_rng(0)
    payloads = []
    for i in range(9):
        noise = Image.fromarray(rng.integers(0, 256, (6, 5, 3), np.uint8))
        buffer = io.BytesIO()
        noise.resize((90 + i, 70)).save(buffer, "JPEG", quality=95)
        payloads.append(buffer.getvalue())
    payloads[4] = b"<html>"
    samples = write_samples([*payloads, encode("PNG", size=(50, 60))])
    config = PicturesConfig(root="unused", size=32, threads=2)
    expected = list(eval_batches(samples, config, 4, CPU))
    found = list(eval_batches(samples, config, 4, torch.device("cuda")))
    label = torch.cat([batch.label for batch in found])
    assert label.device.type == "cuda" and label.tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    image, truth = (torch.cat([b.image.cpu() for b in part]).float() for part in (found, expected))
    assert found[0].image.is_contiguous(memory_format=torch.channels_last)
    # Other decoders upsample colour in their own way; a picture of another sample is 50 apart.
    assert (image - truth).abs().mean() < 5
