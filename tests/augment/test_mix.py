import pytest
import torch

from hard_fast.augment.base import take_rows
from hard_fast.augment.mix import PatchMix, PatchMixConfig
from hard_fast.types import View


def build(shape, **options):
    torch.manual_seed(0)
    return PatchMix(PatchMixConfig(**options), torch.Size(shape))


def draw(augmentor, image, seed=0):
    return augmentor.draw_noise(image.shape, torch.Generator().manual_seed(seed))


def test_every_patch_is_the_weighted_sum_of_its_group():
    augmentor, image = build((3, 8, 12), group=4, patch_px=4), torch.rand(8, 3, 8, 12)
    noise = draw(augmentor, image)
    weight = augmentor.weigh(image, noise["query"])
    assert weight.shape == (2, 4, 2, 3) and weight.std() > 0.05
    torch.testing.assert_close(weight.sum(1), torch.ones(2, 2, 3))
    made = augmentor(View(image, None), noise).image
    assert made.shape == (2, 3, 8, 12) and made.is_contiguous(memory_format=torch.channels_last)
    corner = (weight[1, :, 1, 2, None, None, None] * image[4:, :, 4:, 8:]).sum(0)
    torch.testing.assert_close(made[1, :, 4:, 8:], corner)


def test_likeness_follows_the_query_by_hand():
    augmentor = build((1, 2, 2), group=2, patch_px=2, width=2, temperature=0.5)
    with torch.no_grad():
        augmentor.position.zero_()
        augmentor.projection.weight[0] = 1.0
        augmentor.projection.weight[1] = torch.tensor([1.0, -1.0]).expand(2, 2)
        augmentor.mean.copy_(torch.tensor([1.0, 0.0]))
        augmentor.log_scale.fill_(-20.0)
    # Around grey: the white picture points along +x, the black one along -x.
    image = torch.stack([torch.ones(1, 2, 2), torch.zeros(1, 2, 2)])
    weight = augmentor.weigh(image, torch.ones(1, 2))
    torch.testing.assert_close(weight.flatten(), torch.softmax(torch.tensor([2.0, -2.0]), 0))


def test_a_smaller_picture_has_as_many_patches_weighed_alike():
    augmentor, colour = build((3, 16, 16), group=2, patch_px=4), torch.rand(4, 3, 4, 4)
    image, small = (colour.repeat_interleave(n, 2).repeat_interleave(n, 3) for n in (4, 2))
    noise = draw(augmentor, image)
    whole, weight = (augmentor.weigh(x, noise["query"]) for x in (image, small))
    assert weight.shape == whole.shape == (2, 2, 4, 4)
    # Between patches of one colour each, the enlarged picture is blurred.
    assert (weight - whole).abs().mean() < 0.2 * (whole - 0.5).abs().mean()
    made = augmentor(View(small, None), noise).image
    one = (weight[0, :, 1, 2, None, None, None] * small[:2, :, 2:4, 4:6]).sum(0)
    torch.testing.assert_close(made[0, :, 2:4, 4:6], one)


def test_labels_are_mixed_with_the_mean_weights_and_carry_no_gradient():
    augmentor, image = build((3, 8, 8), group=2, patch_px=4), torch.rand(4, 3, 8, 8)
    noise = draw(augmentor, image)
    view = augmentor(View(image, torch.eye(4)), noise)
    share = augmentor.weigh(image, noise["query"]).mean((2, 3))
    torch.testing.assert_close(view.target_BK, torch.block_diag(*share[:, None]))
    assert view.image.requires_grad and not view.target_BK.requires_grad


def test_it_starts_unbiased_sharp_and_alive():
    image = torch.rand(512, 3, 2, 2).repeat_interleave(16, 2).repeat_interleave(16, 3)
    augmentor = build((3, 32, 32))
    weight = augmentor.weigh(image, draw(augmentor, image)["query"])
    assert weight.mean((0, 2, 3))[0].item() == pytest.approx(0.5, abs=0.03)
    assert 0.7 < weight.amax(1).mean() < 0.95
    slope = 4.0 * weight[:, 0] * weight[:, 1]
    assert (slope > 0.01).float().mean() > 0.6


@pytest.mark.parametrize("size", [(28, 28, 4), (32, 32, 4), (224, 224, 28), (96, 64, 8)])
def test_the_default_patch_divides_the_picture(size):
    assert build((1, *size[:2])).patch_px == size[2]


def test_the_position_counts_although_all_images_of_a_group_share_it():
    augmentor, image = build((3, 8, 8), patch_px=4), torch.rand(2, 3, 8, 8)
    noise = draw(augmentor, image)
    augmentor(View(image, None), noise).image.square().sum().backward()
    assert augmentor.position.grad.count_nonzero() == augmentor.position.numel()


def test_a_rank_with_its_rows_mixes_what_one_process_would():
    augmentor, image = build((3, 8, 8), group=2, patch_px=4), torch.rand(8, 3, 8, 8)
    noise = draw(augmentor, image)
    whole = augmentor(View(image, torch.eye(8)), noise)
    part = augmentor(
        View(image[4:], torch.eye(8)[4:]), take_rows(noise, 4, 8, num_images=len(image))
    )
    torch.testing.assert_close(part.image, whole.image[2:])
    torch.testing.assert_close(part.target_BK, whole.target_BK[2:])


def test_a_patch_that_does_not_divide_the_picture_is_named():
    with pytest.raises(ValueError, match="patch_px = 5.*divide.*32"):
        build((3, 32, 32), patch_px=5)
