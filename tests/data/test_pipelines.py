import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, InterpolationMode, Resize

from hard_fast.data.feed import Feed
from hard_fast.data.order import Order, Work
from hard_fast.data.pipelines import eval_pipeline, find_unreadable, import_dali, train_pipeline
from hard_fast.data.resizing import shorter_side
from hard_fast.data.sources import PicturesConfig, Samples

CPU = torch.device("cpu")


def config(**options) -> PicturesConfig:
    return PicturesConfig(root="unused", **options)


def crops(samples: Samples, setting: PicturesConfig, *, flip: bool = False, **options) -> list:
    """The training pictures of one batch of all samples: finished ones where a size is given."""
    num = len(samples.label)
    drawn = Order(num, num, seed=options.pop("seed", 3), min_scale=setting.min_scale).work(0)
    index = np.arange(num, dtype=np.int32)
    work = Work(index, np.full(num, flip), drawn.crop)
    width_px = options.pop("width_px", None)
    feed = Feed(samples, lambda i: work, (lambda i: width_px) if width_px else None)
    pictures, positions = train_pipeline(feed, setting, num, CPU, 1).run()
    feed.close()
    assert np.array_equal(positions.as_array(), index)
    return [np.array(picture) for picture in pictures]


def whole(samples: Samples, setting: PicturesConfig, *, resize: bool) -> list[np.ndarray]:
    """The evaluation pictures of all samples, one a batch."""
    works = [Work(np.array([i], np.int32)) for i in range(len(samples.label))]
    feed = Feed(samples, lambda i: works[i] if i < len(works) else None)
    pipeline = eval_pipeline(feed, setting, 1, CPU, 1, resize=resize)
    found = [np.array(pipeline.run()[0][0]) for _ in works]
    feed.close()
    return found


@pytest.mark.parametrize("num_shards", [0, 2])
def test_random_crops_keep_to_their_area_and_shape(encode, write_samples, num_shards):
    width, height = 96, 72
    samples = write_samples([encode(size=(width, height), seed=i) for i in range(60)], num_shards)
    found = crops(samples, config(min_scale=0.5))
    areas = np.array([h * w / (height * width) for h, w, _ in (c.shape for c in found)])
    ratios = np.array([w / h for h, w, _ in (c.shape for c in found)])
    assert 0.48 <= areas.min() < 0.6 and 0.9 < areas.max() <= 1.0
    # Whole pixels: a side of 50 is up to 2 % from what was drawn.
    assert 0.75 * 0.97 <= ratios.min() < 0.85 and 1.15 < ratios.max() <= 4 / 3 * 1.03
    assert min(c.shape[0] * c.shape[1] for c in crops(samples, config(min_scale=0.08))) < 0.3 * 6912


def test_crops_follow_the_seed(encode, write_samples):
    samples = write_samples([encode(size=(40, 40), seed=i) for i in range(4)])
    first, again = (crops(samples, config()) for _ in "ab")
    other = crops(samples, config(), seed=4)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert [c.shape for c in first] != [c.shape for c in other]


def expected_window(crop: np.ndarray, height: int, width: int) -> tuple[int, int, int, int]:
    """Top, left, height and width, worked out try by try as torchvision's RandomResizedCrop."""
    place = crop[:, -1]
    for rows, columns in crop[:, :-1].T:
        root = np.sqrt(np.float32(height * width))
        h, w = (max(1, int(side * root + np.float32(0.5))) for side in (rows, columns))
        if h <= height and w <= width:
            break
    else:
        h, w = height, width
        if width / height < 3 / 4:
            h = round(width * 4 / 3)
        elif width / height > 4 / 3:
            w = round(height * 4 / 3)
    top, left = int(place[0] * (height - h + 1)), int(place[1] * (width - w + 1))
    return top, left, h, w


@pytest.mark.parametrize("min_scale", [0.08, 0.5, 1.0])
def test_crops_are_cut_where_the_first_try_that_fits_lies(encode, write_samples, min_scale):
    # Panoramas, in which often none fits, and pictures of a row, of a column and of a pixel.
    sizes = [(60, 50), (41, 77), (200, 11), (9, 130), (32, 32), (37, 1), (1, 23), (1, 1)] * 5
    payloads = [encode("PNG", size=size, seed=i) for i, size in enumerate(sizes)]
    # Its orientation is not applied, to the picture or to the crop.
    payloads.append(encode(size=(50, 20), orientation=6, subsampling=0))
    found = crops(write_samples(payloads), config(min_scale=min_scale))
    drawn = Order(len(payloads), len(payloads), seed=3, min_scale=min_scale).work(0).crop
    for payload, crop, image in zip(payloads, drawn, found, strict=True):
        whole = np.array(Image.open(io.BytesIO(payload)))
        top, left, h, w = expected_window(crop, *whole.shape[:2])
        assert np.array_equal(image, whole[top : top + h, left : left + w])


def test_a_place_just_below_the_end_stays_inside(encode, write_samples):
    samples = write_samples([encode("PNG", size=(1100, 700))])
    crop = np.full((1, 2, 11), 0.5, np.float32)
    crop[..., -1] = np.nextafter(np.float32(1), np.float32(0))
    feed = Feed(samples, lambda i: Work(np.zeros(1, np.int32), np.zeros(1, bool), crop))
    image = np.array(train_pipeline(feed, config(), 1, CPU, 1).run()[0][0])
    whole = np.array(Image.open(samples.files[0]))
    assert np.array_equal(image, whole[-image.shape[0] :, -image.shape[1] :])
    assert image.shape[:2] == (439, 439)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_graph_itself_resizes_and_mirrors(encode, write_samples, interpolation):
    samples = write_samples([encode(size=(60 + i, 50 - i), seed=i) for i in range(6)])
    setting = config(size=20, interpolation=interpolation)
    plain = np.stack(crops(samples, setting, width_px=20))
    assert plain.shape == (6, 20, 20, 3) and plain.dtype == np.uint8
    mirrored = np.stack(crops(samples, setting, width_px=20, flip=True))
    assert np.abs(plain[:, :, ::-1].astype(int) - mirrored).max() <= 1
    # It is the antialiased resize of the crops that come out without a width.
    method = Image.Resampling[interpolation.upper()]
    raw = [Image.fromarray(c).resize((20, 20), method) for c in crops(samples, setting)]
    assert np.abs(np.stack(raw).astype(int) - plain).mean() < 0.6


ODD = {
    "grey": {"mode": "L"},
    "cmyk": {"mode": "CMYK"},
    "exif": {"orientation": 6},
    "progressive": {"progressive": True},
    "grey png": {"kind": "PNG", "mode": "L"},
    "palette png": {"kind": "PNG", "mode": "P"},
    "alpha png": {"kind": "PNG", "mode": "RGBA"},
    "grey and alpha png": {"kind": "PNG", "mode": "LA"},
    "webp": {"kind": "WEBP"},
    "bmp": {"kind": "BMP"},
    "tiff": {"kind": "TIFF"},
}


def test_odd_pictures_are_decoded_as_by_pil(encode, write_samples):
    payloads = [encode(size=(37, 22), seed=i, **odd) for i, odd in enumerate(ODD.values())]
    found = whole(write_samples(payloads), config(), resize=False)
    for name, payload, image in zip(ODD, payloads, found, strict=True):
        wanted = np.array(Image.open(io.BytesIO(payload)).convert("RGB"))
        assert np.array_equal(image, wanted), name


def test_sixteen_bits_are_scaled_to_eight(encode, write_samples):
    payload = encode("PNG", "I;16", size=(9, 7))
    wanted = np.array(Image.open(io.BytesIO(payload))) // 257
    (image,) = whole(write_samples([payload]), config(), resize=False)
    assert np.array_equal(image, np.repeat(wanted[..., None], 3, axis=2))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("size", "eval_crop"), [(28, 0.875), (27, 0.9), (32, 1.0)])
def test_the_graph_cuts_the_centre_of_torchvision(
    encode, write_samples, interpolation, size, eval_crop
):
    sizes = [(60, 50), (41, 77), (29, 100), (101, 35), (32, 32), (35, 47), (20, 15)]
    payloads = [encode("PNG", size=shape, seed=i) for i, shape in enumerate(sizes)]
    payloads += [encode(size=(61, 40), **odd) for odd in ODD.values()]
    setting = config(size=size, eval_crop=eval_crop, interpolation=interpolation)
    found = whole(write_samples(payloads), setting, resize=True)
    resize = Resize(shorter_side(setting), InterpolationMode(interpolation), antialias=True)
    for payload, image in zip(payloads, found, strict=True):
        wanted = CenterCrop(size)(resize(Image.open(io.BytesIO(payload)).convert("RGB")))
        # On noise, PIL's bytes between its two passes, which DALI does not have, cut off bicubic
        # overshoots: up to 18 levels in single pixels. A shift by one pixel is 40 on average.
        assert np.abs(image.astype(int) - np.array(wanted)).mean() < 0.6


def bad_pictures(good: bytes) -> dict[str, bytes]:
    return {
        "empty": b"",
        "html": b"<!DOCTYPE html><title>404</title>" * 9,
        "cut short": good[: len(good) * 3 // 4],
        "noise": bytes(range(256)) * 3,
    }


@pytest.mark.parametrize("kind", ["empty", "html", "noise", "cut short"])
def test_a_large_batch_with_a_bad_picture_is_an_error_and_no_crash(encode, write_samples, kind):
    payloads = [encode(seed=i, size=(40, 30)) for i in range(60)]
    payloads[57] = bad_pictures(payloads[57])[kind]
    samples = write_samples(payloads)
    for _ in range(10):
        with pytest.raises(RuntimeError):
            crops(samples, config(min_scale=1.0))


@pytest.mark.parametrize("num_shards", [0, 2])
def test_exactly_the_undecodable_pictures_are_found(encode, write_samples, num_shards):
    payloads = [encode(seed=i) for i in range(70)]
    where = [0, 1, 40, 69]
    bad = dict(zip(where, bad_pictures(payloads[0]).values(), strict=True))
    samples = write_samples([bad[i] if i in bad else p for i, p in enumerate(payloads)], num_shards)
    found = find_unreadable(samples, Work(np.arange(70)), CPU, 1)
    assert sorted(found) == where
    assert all(reason and "\n" not in reason for reason in found.values())
    good = np.setdiff1d(np.arange(70), where)
    assert find_unreadable(samples, Work(good), CPU, 1) == {}


def test_a_picture_is_judged_by_its_crop(encode, write_samples):
    payloads = [encode(size=(120, 120), seed=i) for i in range(12)]
    payloads[4] = payloads[10] = payloads[4][: len(payloads[4]) // 2]
    samples = write_samples(payloads)
    crop = Order(12, 12, seed=0, min_scale=0.1).work(0).crop
    # A quarter of the height, at the top in one picture and at the bottom in the other.
    crop[[4, 10], :, :-1] = 0.25
    crop[4, 0, -1], crop[10, 0, -1] = 0.0, 0.99
    work = Work(np.arange(12, dtype=np.int32), np.zeros(12, bool), crop)
    found = find_unreadable(samples, work, CPU, 1)
    assert found == {10: "Failed to decode"}
    with pytest.raises(RuntimeError):
        train_pipeline(Feed(samples, lambda i: work), config(), 12, CPU, 1).run()
    part = work._replace(index=np.delete(work.index, 10), crop=np.delete(crop, 10, axis=0))
    train_pipeline(Feed(samples, lambda i: part), config(), 11, CPU, 1).run()
    assert sorted(find_unreadable(samples, Work(work.index), CPU, 1)) == [4, 10]


def test_a_file_that_is_gone_is_named_as_such(encode, write_samples):
    samples = write_samples([encode(seed=i) for i in range(3)])
    Path(samples.files[1]).unlink()
    found = find_unreadable(samples, Work(np.arange(3)), CPU, 1)
    assert list(found) == [1]
    assert samples.files[1] in found[1]


def test_a_missing_dali_costs_one_line_with_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(
        ValueError, match=r'DALI cannot be loaded .*"hard-fast\[cuda1\d\]"'
    ) as error:
        import_dali()
    assert "\n" not in str(error.value)


def test_a_dali_for_another_cuda_names_both(monkeypatch):
    built = str(import_dali().__cuda_version__)[:2]
    other = {"12": "13", "13": "12"}[built]
    monkeypatch.setattr(torch.version, "cuda", f"{other}.4")
    import_dali()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    wanted = rf"CUDA {built} and PyTorch for CUDA {other}; .*hard-fast\[cuda{other}\]"
    with pytest.raises(ValueError, match=wanted):
        import_dali()
