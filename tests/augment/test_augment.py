"""What holds for every kind of augmentor."""

import pytest
import torch

from hard_fast.augment import build_augmentor, is_learned, learns
from hard_fast.augment.affine import AffineConfig
from hard_fast.augment.autoaugment import AutoConfig
from hard_fast.augment.autoencoder import AutoencoderConfig
from hard_fast.augment.compose import ComposeConfig
from hard_fast.augment.copies import CopiesConfig
from hard_fast.augment.cutout import CutoutConfig
from hard_fast.augment.erasing import ErasingConfig
from hard_fast.augment.fixed import (
    CutmixConfig,
    IdentityConfig,
    MixupConfig,
    RandomAffineConfig,
    ShiftsConfig,
    StandardConfig,
)
from hard_fast.augment.mix import PatchMixConfig
from hard_fast.augment.noise import NoiseConfig
from hard_fast.augment.randomized import AugmixConfig, RandConfig, TrivialConfig
from hard_fast.augment.tst import TstConfig
from hard_fast.types import View

CONFIGS = [
    IdentityConfig(),
    StandardConfig(),
    RandomAffineConfig(),
    ShiftsConfig(),
    MixupConfig(),
    CutmixConfig(),
    NoiseConfig(std=0.3),
    NoiseConfig(std=0.3, learned=False),
    AffineConfig(std=0.2),
    AffineConfig(std=0.2, covariance="full", padding="reflection"),
]


def make(config, image, target=None, seed=0):
    augmentor = build_augmentor(config, image.shape[1:], is_picture=True)
    noise = augmentor.draw_noise(image.shape, torch.Generator().manual_seed(seed))
    return augmentor, noise, augmentor(View(image, target), noise)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_output_is_float_in_range_channels_last_and_a_function_of_the_noise(config):
    image = torch.randint(0, 256, (6, 3, 10, 8), dtype=torch.uint8)
    image = image.contiguous(memory_format=torch.channels_last)
    target = torch.eye(3).repeat(2, 1)
    _, noise, view = make(config, image, target)
    assert view.image.shape == image.shape and view.image.dtype == torch.float32
    assert view.image.is_contiguous(memory_format=torch.channels_last)
    assert view.image.min() >= 0.0 and view.image.max() <= 1.0 + 1e-6
    torch.testing.assert_close(view.target_BK.sum(1), torch.ones(6))
    assert all(value.ndim == 0 or len(value) == 6 for value in noise.values())
    _, _, again = make(config, image, target)
    assert torch.equal(again.image, view.image)
    if noise:
        _, _, other = make(config, image, target, seed=1)
        assert not torch.equal(other.image, view.image)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_what_learns_gets_a_gradient_everywhere_and_the_config_knows(config):
    image = torch.rand(6, 3, 10, 8)
    augmentor, _, view = make(config, image)
    assert learns(config) == is_learned(augmentor)
    if not learns(config):
        return
    (view.image * torch.rand_like(view.image)).sum().backward()
    for parameter in augmentor.parameters():
        used = parameter.grad.tril() if parameter.grad.ndim == 2 else parameter.grad
        assert used.count_nonzero() == (21 if parameter.grad.ndim == 2 else parameter.numel())


GROWING = [
    *CONFIGS,
    *(AutoConfig(), TrivialConfig(), RandConfig(), AugmixConfig(), ErasingConfig(fill="pixel")),
    *(CutoutConfig(), TstConfig(), PatchMixConfig(), CopiesConfig(part=CutmixConfig())),
    AutoencoderConfig(options={"width": 4, "latent": 4, "num_levels": 2, "num_blocks": 1}),
    ComposeConfig(parts=[StandardConfig(), AffineConfig(), NoiseConfig()]),
]


@pytest.mark.parametrize("config", GROWING, ids=lambda config: config.kind)
def test_each_kind_takes_smaller_pictures_than_it_was_built_for(config):
    augmentor = build_augmentor(config, torch.Size((3, 32, 32)), is_picture=True)
    for side in (16, 24, 32):
        image = torch.randint(0, 256, (8, 3, side, side), dtype=torch.uint8)
        image = image.contiguous(memory_format=torch.channels_last)
        noise = augmentor.draw_noise(image.shape, torch.Generator().manual_seed(0))
        made = augmentor(View(image, torch.eye(8)), noise).image
        assert made.shape[1:] == image.shape[1:] and made.isfinite().all()


@pytest.mark.parametrize("config", [StandardConfig(rotation_deg=0.0, flip=False), ShiftsConfig()])
def test_shifts_in_pixels_are_of_the_full_size(config):
    augmentor = build_augmentor(config, torch.Size((1, 32, 32)), is_picture=True)
    # The largest shift along x, none along y.
    noise = {"uniform": torch.tensor([[0.5, 0.5, 0.5, 0.5, 0.999, 0.5]])}
    for side, wanted in ((32, augmentor.shift.item()), (16, augmentor.shift.item() / 2)):
        image = torch.zeros(1, 1, side, side)
        image[..., side // 2] = 1.0
        made = augmentor(View(image, None), noise).image
        moved = side // 2 - made[0, 0, 5].argmax().item()
        # Half of an odd number of pixels is rounded to the even one.
        assert moved == round(wanted) and made.max() == 1.0


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_each_kind_is_one_graph(config):
    image = torch.randint(0, 256, (4, 1, 6, 6), dtype=torch.uint8)
    augmentor, noise, view = make(config, image, torch.eye(4))
    whole = torch.compile(augmentor, fullgraph=True, backend="eager")
    torch.testing.assert_close(whole(View(image, torch.eye(4)), noise).image, view.image)
