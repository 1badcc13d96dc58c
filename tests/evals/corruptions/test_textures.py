import torch

from hard_fast.evals.corruptions.filters import gaussian_blur
from hard_fast.evals.corruptions.textures import _TONES, frost_textures

CPU = torch.device("cpu")


def test_textures_are_larger_than_images_and_always_the_same():
    small, large = frost_textures(32, 32, CPU), frost_textures(224, 224, CPU)
    assert small.shape == (5, 128, 128, 3) and large.shape == (5, 640, 640, 3)
    assert torch.equal(small, large[:, 2::5, 2::5])
    assert frost_textures(330, 90, CPU).shape == (5, 660, 660, 3)


def test_their_tones_are_as_listed():
    for texture, (mean, std) in zip(frost_textures(224, 224, CPU).float(), _TONES, strict=True):
        assert (texture.mean((0, 1)) - torch.tensor(mean)).abs().max() < 3
        assert abs(float(texture.mean(2).std()) - std) < 0.12 * std


def test_their_detail_is_that_of_photos_of_frost():
    field = frost_textures(224, 224, CPU).float().mean(3)
    field = field - field.mean((1, 2), keepdim=True)
    std = field.std((1, 2))
    # Measured on six such photos: 0.82 to 0.88, 0.66 to 0.79 and 0.43 to 0.56 of the std.
    for sigma, low, high in ((1, 0.82, 0.9), (8, 0.66, 0.8), (64, 0.4, 0.6)):
        kept = gaussian_blur(field, sigma).std((1, 2)) / std
        assert low < kept.min() and kept.max() < high, (sigma, kept)
