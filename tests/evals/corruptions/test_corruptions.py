"""The package's one function, over all corruptions."""

import pytest
import torch

from bench.evaluate import draw_images
from hard_fast.evals.corruptions import CORRUPTIONS, EXTRA_CORRUPTIONS, corrupt

NAMES = CORRUPTIONS + EXTRA_CORRUPTIONS
FIXED = ("defocus_blur", "zoom_blur", "gaussian_blur", "brightness", "contrast", "saturate")
FIXED += ("pixelate", "jpeg_compression")
SAME_IN_ALL_CHANNELS = tuple(n for n in NAMES if n not in ("saturate", "frost", "spatter"))
SAME_IN_ALL_CHANNELS = tuple(n for n in SAME_IN_ALL_CHANNELS if "noise" not in n)


def is_same(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """To a level in one of a thousand values: products of other shapes may round otherwise."""
    change = (found.int() - wanted.int()).abs()
    return change.max() <= 1 and float((change > 0).float().mean()) < 1e-3


def test_the_names_are_the_published_ones_in_their_order():
    assert len(CORRUPTIONS) == 15 and len(set(NAMES)) == 19
    assert CORRUPTIONS[0] == "gaussian_noise" and CORRUPTIONS[-1] == "jpeg_compression"


@pytest.mark.parametrize("size_px", [32, 72])
@pytest.mark.parametrize("name", NAMES)
def test_an_image_is_the_same_in_any_batch_and_order(name, size_px):
    image = draw_images(8, size_px, torch.device("cpu"))
    index_B = torch.tensor([3, 0, 77, 12345, 5, 6, 2**33, 9])
    found = corrupt(image, name, 4, index_B)
    alone = [corrupt(image[i : i + 1], name, 4, index_B[i : i + 1]) for i in range(8)]
    assert is_same(torch.cat(alone), found)
    order = torch.tensor([5, 2, 7, 0, 1, 6, 3, 4])
    assert is_same(corrupt(image[order], name, 4, index_B[order]), found[order])


@pytest.mark.parametrize("name", NAMES)
def test_chunks_do_not_show(name, monkeypatch):
    image = draw_images(7, 32, torch.device("cpu"))
    whole = corrupt(image, name, 2, torch.arange(7))
    tiny = {"cpu": 3 * 3072, "cuda": 3 * 3072}
    monkeypatch.setattr("hard_fast.evals.corruptions._CHUNK_VALUES", tiny)
    monkeypatch.setattr("hard_fast.evals.corruptions._CHUNK_VALUES_GROUPED", tiny)
    assert is_same(corrupt(image, name, 2, torch.arange(7)), whole)


@pytest.mark.parametrize("name", NAMES)
def test_memory_format_stays_and_does_not_matter(name):
    last = draw_images(3, 32, torch.device("cpu"))
    first = last.contiguous()
    found_last = corrupt(last, name, 3, torch.arange(3))
    found_first = corrupt(first, name, 3, torch.arange(3))
    assert found_last.stride() == last.stride() and found_first.stride() == first.stride()
    assert found_last.dtype == torch.uint8 and torch.equal(found_last, found_first)
    assert torch.equal(last, first)


@pytest.mark.parametrize("name", NAMES)
def test_seed_index_and_severity_change_what_is_random(name):
    image = draw_images(1, 32, torch.device("cpu")).expand(2, -1, -1, -1)
    found = corrupt(image, name, 5, torch.tensor([0, 1]))
    is_random = name not in FIXED
    assert torch.equal(found[0], found[1]) != is_random
    assert torch.equal(corrupt(image, name, 5, torch.tensor([0, 1]), seed=1), found) != is_random
    assert not torch.equal(corrupt(image, name, 4, torch.tensor([0, 1])), found)
    assert not torch.equal(found, image)


@pytest.mark.parametrize("name", NAMES)
def test_sides_may_differ(name):
    image = draw_images(2, 96, torch.device("cpu"))[:, :, :70]
    found = corrupt(image, name, 3, torch.arange(2))
    assert found.shape == (2, 3, 70, 96) and not torch.equal(found, image)


@pytest.mark.parametrize("name", NAMES)
def test_grey_pictures_are_corrupted_like_a_channel(name):
    grey = draw_images(4, 28, torch.device("cpu"))[:, :1]
    found = corrupt(grey, name, 3, torch.arange(4))
    assert found.shape == grey.shape
    if name in SAME_IN_ALL_CHANNELS:
        colour = corrupt(grey.expand(-1, 3, -1, -1), name, 3, torch.arange(4))
        # Three shares of brightness add up to 1 but for rounding.
        assert (found.int() - colour[:, :1].int()).abs().max() <= 1


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_a_gpu_makes_the_same(name):
    image = draw_images(8, 32, torch.device("cpu"))
    found = corrupt(image.cuda(), name, 3, torch.arange(8).cuda()).cpu()
    change = (found.int() - corrupt(image, name, 3, torch.arange(8)).int()).abs().float()
    assert change.mean() < 0.1


@pytest.mark.parametrize(
    ("shape", "dtype", "name", "severity", "num", "message"),
    [
        ((2, 3, 8, 8), torch.uint8, "rain", 1, 2, "corruption 'rain': choices: gaussian_noise"),
        ((2, 3, 8, 8), torch.uint8, "fog", 6, 2, "severity 6: choices"),
        ((2, 3, 8, 8), torch.float32, "fog", 1, 2, "uint8, not"),
        ((2, 4, 8, 8), torch.uint8, "fog", 1, 2, "1 or 3"),
        ((2, 3, 8, 8), torch.uint8, "fog", 1, 3, "2 images need as many indices"),
    ],
)
def test_mistakes_end_with_one_line(shape, dtype, name, severity, num, message):
    with pytest.raises(ValueError, match=message) as caught:
        corrupt(torch.zeros(shape, dtype=dtype), name, severity, torch.arange(num))
    assert "\n" not in str(caught.value)
