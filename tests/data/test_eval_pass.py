import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform

from hard_fast.data.eval_pass import eval_batches
from hard_fast.data.sources import PicturesConfig, read_pictures
from hard_fast.models.weights import load_weights

CPU = torch.device("cpu")


def part_of(root, **options):
    config = PicturesConfig(root=str(root), val_share=0.0, threads=1, **options)
    return config, read_pictures(config).test


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_picture_comes_exactly_once_over_all_ranks(folder, encode, world_size):
    for i in range(1, 4):
        (folder / "val" / "cat" / f"{i}.jpg").write_bytes(encode(seed=i))
    config, samples = part_of(folder, size=8)
    samples = samples._replace(label=np.arange(len(samples.label)))
    seen = []
    for rank in range(world_size):
        for batch in eval_batches(samples, config, 2, CPU, rank, world_size):
            assert batch.image.shape[1:] == (3, 8, 8) and len(batch.label) <= 2
            seen += batch.label.tolist()
    assert seen == list(range(5))


def test_a_picture_that_cannot_be_decoded_is_left_out_and_named(folder, encode, caplog):
    for i in range(1, 4):
        (folder / "val" / "cat" / f"{i}.jpg").write_bytes(encode(seed=i))
    config, samples = part_of(folder, size=8)
    (folder / "val" / "cat" / "1.jpg").write_bytes(b"<html>" * 99)
    samples = samples._replace(label=np.arange(len(samples.label)))
    seen = [batch.label.tolist() for batch in eval_batches(samples, config, 2, CPU)]
    assert sum(seen, []) == [0, 2, 3, 4] and "1.jpg" in caplog.text


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_pixels_are_those_of_timms_own_transform(folder, encode, interpolation):
    sizes = ((40, 24), (25, 61), (33, 33))
    for i, size in enumerate(sizes):
        place = folder / "val" / "dog" / f"{i}.jpg"
        place.write_bytes(encode(seed=i, size=size, quality=95))
    config, samples = part_of(folder, size=16, interpolation=interpolation)
    batch = next(iter(eval_batches(samples, config, 8, CPU)))
    transform = create_transform(
        (3, 16, 16), interpolation=interpolation, crop_pct=0.875, normalize=False
    )
    for image, i in zip(batch.image, range(len(samples.label)), strict=True):
        wanted = transform(Image.open(samples.name(i)).convert("RGB"))
        wanted = torch.as_tensor(np.asarray(wanted))
        assert (image.int() - wanted.int()).abs().float().mean() < 1.0


@pytest.mark.slow
def test_top1_on_real_photographs_agrees_with_timms_pipeline(real_data):
    config = PicturesConfig(
        root=str(real_data / "caltech25"), val_share=0.0, interpolation="bicubic", threads=2
    )
    samples = read_pictures(config).test
    net = timm.create_model("tf_efficientnet_lite0").eval()
    load_weights(net, real_data / "weights" / "efficientnet-lite0-57934424.pth")
    transform = create_transform(
        (3, 224, 224), interpolation="bicubic", crop_pct=0.875, normalize=False
    )
    place, agreed, difference = 0, 0, 0.0
    for batch in eval_batches(samples, config, 64, CPU):
        chosen = range(place, place + len(batch.label))
        opened = (Image.open(samples.name(i)).convert("RGB") for i in chosen)
        wanted = torch.stack([torch.as_tensor(np.asarray(transform(image))) for image in opened])
        difference += (batch.image.int() - wanted.int()).abs().float().mean((1, 2, 3)).sum().item()
        with torch.no_grad():
            tops = [net((x.float() - 127) / 128).argmax(1) for x in (batch.image, wanted)]
        agreed += int((tops[0] == tops[1]).sum())
        place += len(batch.label)
    print(f"agreement {100 * agreed / place:.2f} %, {difference / place:.3f} levels apart")
    assert place == len(samples.label) and agreed / place >= 0.98 and difference / place < 2.0
