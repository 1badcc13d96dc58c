import torch

from hard_fast.augment.affine import Affine, AffineConfig
from hard_fast.types import View


def test_starts_around_the_identity():
    image = torch.randint(0, 256, (4, 1, 9, 9), dtype=torch.uint8)
    noise = Affine(AffineConfig()).draw_noise(image.shape, torch.Generator())
    still = Affine(AffineConfig(std=0.0))(View(image, None), noise)
    torch.testing.assert_close(still.image, image / 255.0, atol=1e-5, rtol=0)
    moved = Affine(AffineConfig(std=0.02))(View(image, None), noise)
    assert 0.0 < (moved.image - image / 255.0).abs().mean() < 0.1


def test_each_image_has_its_own_draw_with_the_learned_mean_and_spread():
    for covariance in ("diagonal", "full"):
        augmentor = Affine(AffineConfig(covariance=covariance, std=0.1))
        draws = augmentor.draw_noise(torch.Size([20000, 1, 1, 1]), torch.Generator().manual_seed(1))
        draw = draws["theta"]
        spread = draw * augmentor.scale if covariance == "diagonal" else draw @ augmentor.scale.T
        seen = augmentor.mean + spread
        torch.testing.assert_close(seen.mean(0), augmentor.mean, atol=5e-3, rtol=0)
        torch.testing.assert_close(seen.std(0), torch.full((6,), 0.1), atol=5e-3, rtol=0)


def test_a_shift_of_the_mean_moves_the_picture_by_that_much():
    augmentor = Affine(AffineConfig(std=0.0))
    image = torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        augmentor.mean[2] = 2 * 2.0 / 8
    made = augmentor(View(image, None), {"theta": torch.zeros(2, 6)}).image
    torch.testing.assert_close(made[..., :6], image[..., 2:], atol=1e-5, rtol=0)
    assert made[..., 6:].abs().max() == 0.0


def test_only_the_lower_triangle_of_a_full_scale_counts():
    augmentor = Affine(AffineConfig(covariance="full", std=0.1))
    image, noise = torch.rand(2, 1, 8, 8), {"theta": torch.randn(2, 6)}
    before = augmentor(View(image, None), noise).image
    with torch.no_grad():
        augmentor.scale += torch.ones(6, 6).triu(1)
    assert torch.equal(augmentor(View(image, None), noise).image, before)
