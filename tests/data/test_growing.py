from types import SimpleNamespace

import pytest
import torch

from hard_fast.data.growing import Growth, ResolutionConfig, resized

SHAPE = torch.Size((3, 224, 224))


def grow(num_steps, shape=SHAPE, is_picture=True, **keys):
    part = SimpleNamespace(image_shape=torch.Size(shape), is_picture=is_picture)
    return Growth(ResolutionConfig(**keys) if keys else None, part, num_steps)


def test_sizes_divide_the_beginning_evenly_and_the_rest_is_whole():
    growth = grow(100, start_px=128, end=0.6)
    assert growth.sizes == (128, 160, 192, 224)
    found = [growth.at(step) for step in range(100)]
    assert found == [128] * 20 + [160] * 20 + [192] * 20 + [224] * 40
    assert [growth.share(px, 100) for px in growth.sizes] == [0.2, 0.2, 0.2, 0.4]
    said = growth.describe()
    assert said == "pictures of 128, 160, 192 px up to step 60, then of 224 px"


def test_without_a_setting_every_step_has_the_full_size():
    growth = grow(5, (1, 28, 20), is_picture=False)
    assert growth.sizes == (20,) and {growth.at(step) for step in range(9)} == {20}
    assert growth.describe() is None


def test_the_full_size_need_not_be_a_whole_number_of_stages():
    growth = grow(10, (1, 28, 28), start_px=16, stage_px=8, end=0.5)
    assert growth.sizes == (16, 24, 28)
    # A run that is asked beyond its end, as one whose files have changed, has the full size.
    assert [growth.at(step) for step in (0, 2, 3, 4, 5, 9, 500)] == [16, 16, 24, 24, 28, 28, 28]


@pytest.mark.parametrize("num_steps", [1, 2, 7, 100])
@pytest.mark.parametrize("end", [0.01, 0.33, 0.99])
def test_shares_are_those_of_the_steps(num_steps, end):
    for keys in ({}, {"start_px": 100, "end": end}):
        growth = grow(num_steps, **keys)
        found = [growth.at(step) for step in range(num_steps)]
        for px in growth.sizes:
            assert growth.share(px, num_steps) == found.count(px) / num_steps


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_a_short_run_ends_at_the_full_size_where_it_can(num_steps):
    growth = grow(num_steps, start_px=128, end=0.5)
    found = [growth.at(step) for step in range(num_steps)]
    assert found == sorted(found) and found[0] == 128
    assert num_steps == 1 or found[-1] == 224


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"start_px": 224}, "train.resolution.start_px = 224: must be below the 224 px"),
        ({"start_px": 64, "stage_px": 16}, "train.resolution.stage_px = 16: makes 11 sizes"),
        ({"start_px": 64, "is_picture": False}, "needs square pictures of bytes"),
        ({"start_px": 64, "shape": (3, 224, 200)}, "needs square pictures of bytes"),
    ],
)
def test_what_cannot_grow_is_one_line(given, words):
    with pytest.raises(ValueError) as caught:
        grow(10, **given)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [7, 16, 24])
def test_pictures_become_the_means_of_what_they_cover(channels, side):
    torch.manual_seed(0)
    image_NHWC = torch.randint(256, (5, 32, 32, channels), dtype=torch.uint8)
    image = image_NHWC.permute(0, 3, 1, 2)
    made = resized(image, side)
    assert made.shape == (5, channels, side, side) and made.dtype == torch.uint8
    # The strides of the loaders, by which graphs are compiled.
    assert made.stride() == (side * side * channels, 1, side * channels, channels)
    exact = torch.nn.functional.interpolate(
        image.double(), (side, side), mode="bilinear", antialias=True
    )
    assert (made.double() - exact).abs().max() <= 1.01
    assert resized(image, 32) is image


@pytest.mark.gpu
def test_a_gpu_makes_the_same_pictures_but_for_a_level():
    image = torch.randint(256, (5, 32, 32, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    there = resized(image.cuda(), 20)
    assert there.stride() == resized(image, 20).stride() and there.dtype == torch.uint8
    assert (there.cpu().int() - resized(image, 20).int()).abs().max() <= 1
