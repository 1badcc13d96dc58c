import pytest
import torch

from hard_fast.augment.erasing import ErasingConfig, RandomErasing
from hard_fast.types import View

SHAPE = torch.Size([3, 32, 24])


def draw(augmentor, num, seed=0):
    return augmentor.draw_noise(torch.Size((num, *SHAPE)), torch.Generator().manual_seed(seed))


def test_a_box_of_the_drawn_area_and_aspect_at_the_drawn_place():
    augmentor = RandomErasing(ErasingConfig(area=(0.125, 0.125), aspect=0.5), SHAPE)
    # 96 pixels; height by width 1.5: 12 by 8; first too high to fit, then at half of the way.
    middle = torch.tensor([0.5, (1.0 + torch.log(torch.tensor(1.5)).item() / 0.6931472) / 2])
    attempts = torch.stack([torch.tensor([*middle, 0.5, 0.999]), torch.full((4,), 0.1)])[None]
    box = augmentor.place(attempts, SHAPE[1:])[0]
    assert box.sum() == 96
    assert box.any(1).nonzero().flatten().tolist() == list(range(10, 22))
    assert box.any(0).nonzero().flatten().tolist() == list(range(16, 24))


def test_an_attempt_that_does_not_fit_is_followed_by_the_next():
    augmentor = RandomErasing(ErasingConfig(area=(0.5, 0.5), aspect=0.25), SHAPE)
    too_high, square = torch.tensor([0.0, 1.0, 0.0, 0.0]), torch.tensor([0.0, 0.5, 0.0, 0.0])
    # 384 pixels: 39 by 10 is too high for 32, 20 by 20 fits.
    box = augmentor.place(torch.stack([too_high, square, too_high])[None], SHAPE[1:])
    assert box[0, :20, :20].all() and box.sum() == 400
    assert not augmentor.place(too_high.expand(1, 10, 4), SHAPE[1:]).any()


def test_so_many_images_lose_so_much_and_the_rest_stays():
    image = torch.rand(2000, *SHAPE)
    augmentor = RandomErasing(ErasingConfig(), SHAPE)
    made = augmentor(View(image, None), draw(augmentor, 2000)).image
    is_erased = (made != image).any(1)
    share = is_erased.flatten(1).float().mean(1)
    assert (share > 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert share[share > 0].mean().item() == pytest.approx((0.02 + 1 / 3) / 2, abs=0.02)
    filled = made.movedim(1, 3)[is_erased]
    torch.testing.assert_close(filled, torch.tensor([0.485, 0.456, 0.406]).expand_as(filled))


@pytest.mark.parametrize("fill", ["const", "pixel"])
@pytest.mark.parametrize("channels", [1, 3])
def test_range_layout_gradient_and_one_graph(fill, channels):
    shape = torch.Size([channels, 8, 8])
    augmentor = RandomErasing(ErasingConfig(probability=1.0, fill=fill), shape)
    image = torch.randint(0, 256, (4, *shape), dtype=torch.uint8)
    noise = augmentor.draw_noise(image.shape, torch.Generator().manual_seed(0))
    view = augmentor(View(image, torch.eye(4)), noise)
    assert view.image.is_contiguous(memory_format=torch.channels_last)
    assert view.image.min() >= 0.0 and view.image.max() <= 1.0
    whole = torch.compile(augmentor, fullgraph=True, backend="eager")
    assert torch.equal(whole(View(image, torch.eye(4)), noise).image, view.image)
    earlier = (image / 255.0).requires_grad_()
    augmentor(View(earlier, None), noise).image.sum().backward()
    stays = view.image.detach() == earlier.detach()
    assert torch.equal(earlier.grad == 1.0, stays) and not stays.all()


def test_areas_must_be_a_range():
    with pytest.raises(ValueError, match="area = .*smallest, largest"):
        ErasingConfig(area=(0.4, 0.1))
