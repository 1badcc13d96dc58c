import pytest
import torch
from hard_kernels import affine_mix

IDENTITY = torch.eye(2, 3).expand(4, 1, 2, 3)


def test_uint8_is_scaled_and_the_layout_is_channels_last():
    image = torch.randint(0, 256, (4, 3, 5, 6), dtype=torch.uint8)
    copied = affine_mix(image)
    assert torch.equal(copied, image / 255.0)
    assert copied.is_contiguous(memory_format=torch.channels_last)
    warped = affine_mix(image, IDENTITY, out_dtype=torch.bfloat16)
    assert warped.dtype == torch.bfloat16
    torch.testing.assert_close(affine_mix(image, IDENTITY), image / 255.0, atol=1e-5, rtol=0)


def test_gradients_are_right_in_theta_weight_and_image():
    image = torch.rand(3, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    # Away from pixel centres, where the bilinear derivative jumps.
    theta = torch.eye(2, 3, dtype=torch.float64) * 0.8 + 0.03 * torch.rand(2, 2, 2, 3)
    weight = torch.rand(2, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([[0, 1], [2, 0]])

    def mix(image, theta, weight):
        return affine_mix(image, theta, weight, index, out_dtype=torch.float64)

    assert torch.autograd.gradcheck(mix, (image, theta.double().requires_grad_(), weight))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"image": torch.rand(3, 4, 4)}, "image"),
        ({"image": torch.zeros(4, 1, 4, 4, dtype=torch.int64)}, "image"),
        ({"theta": torch.rand(4, 2, 3)}, "theta"),
        ({"theta": torch.rand(3, 1, 2, 3)}, "theta"),
        ({"padding": "mirror"}, "padding"),
        ({"index": torch.zeros(4, 2, dtype=torch.int64)}, "weight"),
        ({"index": torch.zeros(4, 1)}, "index"),
        ({"weight": torch.rand(4, 2, 1, 1)}, "weight"),
    ],
)
def test_a_wrong_argument_is_named(arguments, name):
    with pytest.raises(ValueError, match=f"^{name}:"):
        affine_mix(**{"image": torch.rand(4, 1, 4, 4)} | arguments)
