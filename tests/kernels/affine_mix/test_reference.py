import pytest
import torch
import torch.nn.functional as F
from hard_kernels.affine_mix import reference

PADDINGS = ("zeros", "border", "reflection")


def test_warp_is_affine_grid_and_grid_sample():
    image, theta = torch.rand(3, 2, 7, 9), torch.randn(3, 1, 2, 3)
    for padding in PADDINGS:
        grid = F.affine_grid(theta[:, 0], [3, 2, 7, 9], align_corners=False)
        want = F.grid_sample(image, grid, "bilinear", padding, align_corners=False)
        got = reference.forward(image, theta, None, None, padding, torch.float32)
        torch.testing.assert_close(got, want)


def test_mix_worked_out_by_hand_with_patches_that_do_not_divide():
    image = torch.stack([torch.full((1, 1, 3), 10.0), torch.full((1, 1, 3), 20.0)])
    # Two patches over three pixels: pixels 0 and 1 lie in patch 0, pixel 2 in patch 1.
    weight = torch.tensor([[[[1.0, 0.5]], [[0.0, 0.5]]]])
    index = torch.tensor([[0, 1]])
    got = reference.forward(image, None, weight, index, "zeros", torch.float32)
    assert got.flatten().tolist() == [10.0, 10.0, 15.0]


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("has_theta", [True, False])
@pytest.mark.parametrize("has_weight", [True, False])
def test_backward_is_what_autograd_finds_in_forward(padding, has_theta, has_weight):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.rand(shape, generator=generator, dtype=torch.float64).requires_grad_()

    num_mixed = 2 if has_weight else 1
    index = torch.tensor([[0, 2, 2], [2, 0, 0]]).T[:, :num_mixed]
    image = draw(3, 2, 5, 7)
    theta = draw(3, num_mixed, 2, 3) if has_theta else None
    weight = draw(3, num_mixed, 2, 3) if has_weight else None
    out = reference.forward(image, theta, weight, index, padding, torch.float64)
    grad = torch.rand(out.shape, generator=generator, dtype=torch.float64)
    values = [value for value in (image, theta, weight) if value is not None]
    wanted = torch.autograd.grad(out, values, grad)
    needs = [True, has_theta, has_weight]
    with torch.no_grad():
        found = reference.backward(grad, image, theta, weight, index, padding, needs)
    kept = [value for value, is_needed in zip(found, needs, strict=True) if is_needed]
    for got, want in zip(kept, wanted, strict=True):
        torch.testing.assert_close(got, want)


def test_coordinates_stay_in_fp32_under_autocast():
    image = torch.rand(1, 1, 224, 224)
    theta = torch.eye(2, 3)[None, None]
    want = reference.forward(image, theta, None, None, "zeros", torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got = reference.forward(image, theta, None, None, "zeros", torch.float32)
    assert torch.equal(got, want)


def test_output_has_the_strides_of_channels_last_for_one_channel_too():
    out = reference.forward(torch.rand(2, 1, 4, 5), None, None, None, "zeros", torch.float32)
    assert out.stride() == (20, 1, 5, 1)
