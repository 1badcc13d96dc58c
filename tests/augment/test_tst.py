import math

import pytest
import torch
from torch.nn.functional import grid_sample

from hard_fast.augment import build_augmentor, is_learned, learns
from hard_fast.augment.tst import _LEARNED, OPERATIONS, Tst, TstConfig, _threshold
from hard_fast.types import View


def pictures(num=6, channels=3, size=12):
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (num, channels, size, size), generator=generator).byte()


def picked(name, num, magnitude=0.5):
    """An augmentor that does `name` alone, and the noise for it: sure choices, signs of +."""
    augmentor = Tst(TstConfig(num=1, magnitude=magnitude))
    order = torch.ones(num, len(OPERATIONS))
    order[:, OPERATIONS.index(name)] = 0.0
    sure = torch.full((num, len(OPERATIONS)), 1.0 - 1e-6)
    sign = torch.full((num, len(_LEARNED)), 0.9)
    return augmentor, {"order": order, "choice": sure, "sign": sign, "centre": torch.ones(num, 2)}


@pytest.mark.parametrize("channels", [1, 3])
def test_output_is_a_function_of_the_noise_in_range_and_channels_last(channels):
    image = pictures(channels=channels)
    augmentor = build_augmentor(TstConfig(), image.shape[1:], is_picture=True)
    target = torch.eye(6)
    found = []
    for seed in (0, 0, 1):
        noise = augmentor.draw_noise(image.shape, torch.Generator().manual_seed(seed))
        assert all(len(value) == 6 for value in noise.values())
        found.append(augmentor(View(image, target), noise))
    assert found[0].image.dtype == torch.float32 and found[0].image.shape == image.shape
    assert found[0].image.min() >= 0 and found[0].image.max() <= 1
    assert found[0].image.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found[0].image, found[1].image)
    assert not torch.equal(found[0].image, found[2].image)
    assert torch.equal(found[0].target_BK, target)


def test_so_many_operations_are_picked_and_a_choice_is_nearly_yes_or_no():
    augmentor = Tst(TstConfig(num=4, probability=0.3))
    shape = torch.Size([20000, 1, 1, 1])
    share = augmentor.shares(augmentor.draw_noise(shape, torch.Generator().manual_seed(0)))
    picked_BO = share > 0
    assert (picked_BO.sum(1) <= 4).all() and picked_BO.any(0).all()
    # P(logistic + logit(0.3) > 0) = 0.3, and few choices lie between.
    is_done = (share > 0.5).float().mean(0) * len(OPERATIONS) / 4
    torch.testing.assert_close(is_done, torch.full((len(OPERATIONS),), 0.3), atol=0.02, rtol=0)
    assert ((share > 0.1) & (share < 0.9)).sum() < 0.1 * 4 * len(share)


def test_a_relaxed_choice_by_hand():
    augmentor = Tst(TstConfig(num=14, temperature=0.5, probability=0.5))
    noise = {"order": torch.rand(1, 14), "choice": torch.full((1, 14), 0.6)}
    # sigmoid(log(0.6 / 0.4) / 0.5) = 1 / (1 + (2 / 3)^2)
    torch.testing.assert_close(augmentor.shares(noise), torch.full((1, 14), 1 / (1 + 4 / 9)))


VALUES = {
    "brightness": 0.2 * 1.45,
    "color": 0.2 + (0.2 - (0.2989 * 0.2 + 0.587 * 0.4 + 0.114 * 0.6)) * 0.45,
    "contrast": 0.2 + (0.2 - (0.2989 * 0.2 + 0.587 * 0.4 + 0.114 * 0.6)) * 0.45,
    "sharpness": 0.2,
    "posterize": 48 / 255,  # 6 bits: 51 becomes 48
    "solarize": 0.2,
    "invert": 0.8,
}


@pytest.mark.parametrize("name", VALUES)
def test_values_of_a_flat_colour_by_hand(name):
    image = torch.tensor([0.2, 0.4, 0.6]).view(1, 3, 1, 1).expand(2, 3, 5, 5).contiguous()
    augmentor, noise = picked(name, 2)
    made = augmentor(View(image, None), noise).image
    torch.testing.assert_close(made[:, 0], torch.full((2, 5, 5), VALUES[name]))
    if name == "solarize":
        torch.testing.assert_close(made[:, 2], torch.full((2, 5, 5), 0.4))


def test_changes_add_up():
    image = torch.full((1, 1, 4, 4), 0.4)
    augmentor, noise = picked("brightness", 1)
    augmentor.num = 2
    noise["order"][:, OPERATIONS.index("invert")] = 0.0
    # 0.4 + (0.58 - 0.4) + (0.6 - 0.4)
    made = augmentor(View(image, None), noise).image
    torch.testing.assert_close(made, torch.full_like(image, 0.78))


def test_a_cut_is_black_from_the_centre_on():
    augmentor, noise = picked("cut", 1)
    augmentor.cut, noise["centre"] = 0.5, torch.tensor([[0.5, 0.99]])
    made = augmentor(View(torch.ones(1, 1, 8, 8), None), noise).image[0, 0]
    assert made[2:6, 5:].abs().max() == 0.0 and made.sum() == 64 - 12


def test_equalize_spreads_what_was_crowded():
    image = (100 + torch.arange(1024) // 128).view(1, 1, 32, 32).byte()
    augmentor, noise = picked("equalize", 1)
    made = augmentor(View(image, None), noise).image
    # Eight levels of 128 pixels, (1024 - 128) // 255 = 3 a step: (128 n + 1) // 3.
    wanted = torch.tensor([min((128 * n + 1) // 3, 255) for n in range(8)]) / 255
    torch.testing.assert_close(made.unique(), wanted.unique())


@pytest.mark.parametrize("name", ["translate_x", "translate_y", "rotate", "shear_x", "shear_y"])
def test_warps_are_the_published_ones_on_an_oblong_picture(name):
    image = torch.rand(1, 1, 8, 12, generator=torch.Generator().manual_seed(0))
    magnitude = 331 / 150 / 4 if "translate" in name else 0.5
    augmentor, noise = picked(name, 1, magnitude)
    made = augmentor(View(image, None), noise).image[0, 0]
    if name == "translate_x":
        torch.testing.assert_close(made[:, 3:], image[0, 0, :, :-3], atol=1e-5, rtol=0)
        assert made[:, :3].abs().max() < 1e-5
        return
    if name == "translate_y":
        torch.testing.assert_close(made[2:], image[0, 0, :-2], atol=1e-5, rtol=0)
        return
    # Where an output pixel looks, worked out in pixels around the middle.
    y, x = torch.meshgrid(torch.arange(8) - 3.5, torch.arange(12) - 5.5, indexing="ij")
    turn = math.radians(15.0)
    look_x, look_y = {
        "rotate": (
            math.cos(turn) * x - math.sin(turn) * y,
            math.sin(turn) * x + math.cos(turn) * y,
        ),
        "shear_x": (x + 0.15 * y, y),
        "shear_y": (x, y + 0.15 * x),
    }[name]
    grid = torch.stack([look_x / 6.0, look_y / 4.0], -1)[None].float()
    wanted = grid_sample(image, grid, "bilinear", "zeros", align_corners=False)[0, 0]
    torch.testing.assert_close(made, wanted, atol=1e-4, rtol=0)


def test_every_learned_number_gets_a_gradient_and_the_configuration_knows():
    image = torch.rand(64, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    # 0.5 is where inverting changes nothing on average.
    augmentor = Tst(TstConfig(temperature=1.0, magnitude=0.3))
    assert learns(TstConfig()) and is_learned(augmentor)
    noise = augmentor.draw_noise(image.shape, torch.Generator().manual_seed(1))
    (augmentor(View(image, None), noise).image * torch.rand_like(image)).sum().backward()
    assert {name for name, _ in augmentor.named_parameters()} == {"choice", "magnitude"}
    for parameter in augmentor.parameters():
        assert parameter.grad.count_nonzero() == parameter.numel()


@pytest.mark.parametrize("name", _LEARNED)
def test_the_gradient_of_a_magnitude_is_its_finite_difference(name):
    generator = torch.Generator().manual_seed(4)
    image = torch.rand(8, 3, 10, 10, generator=generator)
    # Smooth pictures, since a warp's gradient jumps where it passes a pixel.
    ramp = torch.linspace(0.2, 0.6, 10)
    enhances = name in ("color", "contrast", "sharpness")
    image = (0.3 if enhances else 0.1) * image + ramp[:, None] * 0.5 + ramp * 0.5
    if name in ("posterize", "solarize"):
        image = torch.linspace(0, 1, 8 * 300).view(8, 3, 10, 10)
    weight = 20.0 * (image if enhances else torch.rand(image.shape, generator=generator))
    if name in ("posterize", "solarize"):
        # Straight-through is right on average over levels.
        weight = torch.full_like(weight, 20.0)
    found = []
    # Nearly the middle of the range; 0.6 keeps thresholds from a symmetric place.
    for magnitude in (0.6, 0.57, 0.63):
        augmentor, noise = picked(name, 8, magnitude)
        made = (augmentor(View(image, None), noise).image * weight).mean()
        found.append((made, augmentor))
    found[0][0].backward()
    place = _LEARNED.index(name)
    grad = found[0][1].magnitude.grad
    assert grad.count_nonzero() == 1
    logits = [augmentor.magnitude[place].item() for _, augmentor in found]
    slope = (found[2][0] - found[1][0]).item() / (logits[2] - logits[1])
    assert grad[place].item() == pytest.approx(slope, rel=0.06)
    assert abs(slope) > 4e-3


def test_bytes_are_posterised_exactly():
    level = torch.arange(256) / 255.0
    for lost in range(5):
        made = _threshold("posterize", level, torch.tensor(lost / 4.0))
        wanted = (torch.arange(256) >> lost << lost) / 255.0
        torch.testing.assert_close(made, wanted, atol=1e-3, rtol=0)
    made = _threshold("solarize", level, torch.tensor(0.25))
    torch.testing.assert_close(made, torch.where(level >= 0.75, 1 - level, level))


@pytest.mark.slow
def test_it_is_one_graph():
    image = pictures(num=4, size=8)
    augmentor = Tst(TstConfig())
    noise = augmentor.draw_noise(image.shape, torch.Generator())
    torch._dynamo.reset()
    found = []
    for run in (augmentor, torch.compile(augmentor, fullgraph=True, backend="aot_eager")):
        augmentor.zero_grad()
        made = run(View(image, None), noise).image
        made.square().mean().backward()
        found.append((made, augmentor.magnitude.grad.clone(), augmentor.choice.grad.clone()))
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-4)


def test_what_is_no_picture_or_has_two_channels_is_refused():
    with pytest.raises(ValueError, match="changes pictures"):
        build_augmentor(TstConfig(), torch.Size([1, 8, 8]), is_picture=False)
    with pytest.raises(ValueError, match="1 or 3 channels"):
        build_augmentor(TstConfig(), torch.Size([4, 8, 8]), is_picture=True)
