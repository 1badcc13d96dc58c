import pytest
import torch

from hard_fast.augment import build_augmentor
from hard_fast.augment.fixed import (
    Cutmix,
    CutmixConfig,
    Mixup,
    MixupConfig,
    MixupCutmix,
    MixupCutmixConfig,
    RandomAffineConfig,
    RandomWarp,
    ShiftsConfig,
    StandardConfig,
)
from hard_fast.types import View


def build(config, image):
    return build_augmentor(config, image.shape[1:], is_picture=True)


def test_shifts_move_by_whole_pixels_each_place_equally_often():
    image = torch.zeros(4000, 1, 9, 9)
    image[:, 0, 4, 4] = 1.0
    augmentor = build(ShiftsConfig(max_px=3), image)
    noise = augmentor.draw_noise(image.shape, torch.Generator().manual_seed(0))
    made = augmentor(View(image, None), noise).image
    place = made.flatten(1).argmax(1)
    torch.testing.assert_close(made.flatten(1).amax(1), torch.ones(4000), atol=1e-4, rtol=0)
    row, column = place // 9 - 4, place % 9 - 4
    for axis in (row, column):
        counts = torch.bincount(axis + 3, minlength=7)
        assert len(counts) == 7 and counts.min() > 4000 / 7 * 0.8


def test_flip_mirrors_half_of_the_images_and_nothing_else():
    image = torch.rand(200, 1, 5, 5)
    augmentor = build(StandardConfig(rotation_deg=0.0, crop_px=0), image)
    noise = augmentor.draw_noise(image.shape, torch.Generator().manual_seed(0))
    made = augmentor(View(image, None), noise).image
    is_same = (made - image).abs().flatten(1).amax(1) < 1e-4
    is_mirrored = (made - image.flip(3)).abs().flatten(1).amax(1) < 1e-4
    assert (is_same ^ is_mirrored).all() and 60 < is_same.sum() < 140


def test_a_quarter_turn_turns_the_picture_also_when_it_is_oblong():
    for size in ((6, 6), (4, 8)):
        image = torch.rand(1, 1, *size)
        warp = RandomWarp(rotation_deg=180.0)
        half_turn = torch.tensor([[1.0, 0.5, 0.5, 0.9, 0.5, 0.5]])
        made = warp(View(image, None), {"uniform": half_turn}).image
        torch.testing.assert_close(made, image.flip(2, 3), atol=1e-4, rtol=0)
    square = torch.rand(1, 1, 6, 6)
    made = RandomWarp(rotation_deg=90.0)(View(square, None), {"uniform": half_turn}).image
    torch.testing.assert_close(made, square.rot90(1, (2, 3)), atol=1e-4, rtol=0)


def test_random_affine_keeps_a_digit_visible_at_its_extremes():
    image = torch.zeros(64, 1, 28, 28)
    image[:, :, 4:24, 8:20] = 1.0
    augmentor = build(RandomAffineConfig(shear_deg=0.0, scale=(1.0, 1.0)), image)
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0 - 1e-6])] * 6)
    made = augmentor(View(image, None), {"uniform": corners}).image
    kept = made.sum((1, 2, 3)) / image.sum((1, 2, 3))
    assert kept.min() > 0.95


def test_mixup_blends_neighbours_and_their_labels_by_hand():
    image = torch.stack([torch.zeros(1, 2, 2), torch.ones(1, 2, 2)])
    view = build(MixupConfig(), image)(
        View(image, torch.eye(2)), {"share": torch.tensor([0.3, 0.9])}
    )
    torch.testing.assert_close(view.image[:, 0, 0, 0], torch.tensor([0.7, 0.9]))
    torch.testing.assert_close(view.target_BK, torch.tensor([[0.3, 0.7], [0.1, 0.9]]))


def test_cutmix_pastes_a_box_and_labels_follow_its_visible_area():
    image = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)])
    share, centre = torch.tensor([0.75, 0.75]), torch.tensor([[0.5, 0.5], [0.0, 0.5]])
    view = build(CutmixConfig(), image)(
        View(image, torch.eye(2)), {"share": share, "centre": centre}
    )
    middle = torch.zeros(4, 4)
    middle[1:3, 1:3] = 1.0
    assert torch.equal(view.image[0, 0], middle)
    # Half of the second box hangs over the edge: 2 of 16 pixels are the neighbour's.
    assert view.image[1].sum() == 14.0
    torch.testing.assert_close(view.target_BK, torch.tensor([[0.75, 0.25], [0.125, 0.875]]))


@pytest.mark.parametrize(("alpha", "variance"), [(1.0, 1 / 12), (0.2, 0.25 / 1.4)])
def test_shares_follow_the_beta_distribution(alpha, variance):
    image = torch.zeros(20000, 1, 1, 1)
    augmentor = build(MixupConfig(alpha=alpha), image)
    share = augmentor.draw_noise(image.shape, torch.Generator().manual_seed(0))["share"]
    assert share.mean().item() == pytest.approx(0.5, abs=0.01)
    assert share.var().item() == pytest.approx(variance, rel=0.05)


def test_a_batch_is_mixed_by_mixup_or_cutmix_as_one():
    image, target = torch.rand(6, 3, 8, 8), torch.eye(6)
    both = MixupCutmix(MixupCutmixConfig(mixup_alpha=0.3, cutmix_share=0.25))
    noise = both.draw_noise(image.shape, torch.Generator().manual_seed(0))
    parts = {
        0.2: (Cutmix(1.0), {"share": noise["cutmix_share"], "centre": noise["centre"]}),
        0.3: (Mixup(0.3), {"share": noise["mixup_share"]}),
    }
    for switch, (one, its_noise) in parts.items():
        made = both(View(image, target), noise | {"switch": torch.tensor(switch)})
        wanted = one(View(image, target), its_noise)
        torch.testing.assert_close(made.image, wanted.image)
        torch.testing.assert_close(made.target_BK, wanted.target_BK)
    assert noise["switch"].ndim == 0
