import torch
import torch.nn.functional as F
from hard_kernels.affine_mix import reference


def test_warp_is_affine_grid_and_grid_sample():
    image, theta = torch.rand(3, 2, 7, 9), torch.randn(3, 1, 2, 3)
    for padding in ("zeros", "border", "reflection"):
        grid = F.affine_grid(theta[:, 0], [3, 2, 7, 9], align_corners=False)
        want = F.grid_sample(image, grid, "bilinear", padding, align_corners=False)
        got = reference.affine_mix(image, theta, None, None, padding, torch.float32)
        torch.testing.assert_close(got, want)


def test_mix_worked_out_by_hand_with_patches_that_do_not_divide():
    image = torch.stack([torch.full((1, 1, 3), 10.0), torch.full((1, 1, 3), 20.0)])
    # Two patches over three pixels: pixels 0 and 1 lie in patch 0, pixel 2 in patch 1.
    weight = torch.tensor([[[[1.0, 0.5]], [[0.0, 0.5]]]])
    index = torch.tensor([[0, 1]])
    got = reference.affine_mix(image, None, weight, index, "zeros", torch.float32)
    assert got.flatten().tolist() == [10.0, 10.0, 15.0]


def test_coordinates_stay_in_fp32_under_autocast():
    image = torch.rand(1, 1, 224, 224)
    theta = torch.eye(2, 3)[None, None]
    want = reference.affine_mix(image, theta, None, None, "zeros", torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got = reference.affine_mix(image, theta, None, None, "zeros", torch.float32)
    assert torch.equal(got, want)
