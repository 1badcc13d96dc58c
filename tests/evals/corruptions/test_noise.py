import numpy as np
import pytest
import torch
from scipy import stats

from bench.evaluate import differences, draw_images
from hard_fast.evals.corruptions import corrupt, noise
from hard_fast.evals.corruptions.strengths import CIFAR, IMAGENET

NAMES = ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise")


@pytest.mark.parametrize("size_px", [32, 64])
@pytest.mark.parametrize("name", NAMES)
def test_values_are_those_of_numpy_from_the_same_noise(name, size_px):
    image_BCHW = draw_images(2, size_px, torch.device("cpu"))
    for severity in (1, 3, 5):
        assert differences(name, severity, image_BCHW).max() <= 1


@pytest.mark.parametrize("photons", CIFAR["shot_noise"] + IMAGENET["shot_noise"])
def test_quantiles_of_counts_have_the_moments_of_poisson(photons):
    table = noise._shot_table(photons, torch.device("cpu")).view(256, -1).double()
    count = np.arange(photons + 200)
    cut = np.minimum(np.floor(count / photons * 255), 255)
    for level in (1, 20, 128, 255):
        chance = stats.poisson.pmf(count, level / 255 * photons)
        mean = (chance * cut).sum()
        var = (chance * (cut - mean) ** 2).sum()
        assert float(table[level].mean()) == pytest.approx(mean, rel=2e-3)
        assert float(table[level].var()) == pytest.approx(var, rel=5e-3)
    assert (table[0] == 0).all()


def grey(level: int) -> torch.Tensor:
    return torch.full((64, 3, 32, 32), level, dtype=torch.uint8)


def test_gaussian_and_speckle_noise_have_their_std():
    index_B = torch.arange(64)
    for name, std in (("gaussian_noise", 255 * 0.08), ("speckle_noise", 128 * 0.12)):
        change = corrupt(grey(128), name, 3, index_B).float() - 128
        # 64 windows of 3072 numbers, some of which overlap; half a level lost to rounding down.
        assert abs(float(change.mean()) + 0.5) < 5 * std / 400
        assert float(change.std()) == pytest.approx(std, rel=0.01)


def test_impulses_are_as_many_and_as_often_black_as_white():
    found = corrupt(grey(100), "impulse_noise", 5, torch.arange(64))
    black, white = (float((found == level).float().mean()) for level in (0, 255))
    assert black == pytest.approx(0.035, rel=0.05) and white == pytest.approx(0.035, rel=0.05)
    assert black + white + float((found == 100).float().mean()) == pytest.approx(1)
