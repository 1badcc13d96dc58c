"""The kernels' tricks with numbers, each against plain arithmetic."""

import pytest
import torch
import triton
import triton.language as tl
from hard_kernels.affine_mix import sampling

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@triton.jit
def _scale(out, image, factor, IS_LIFTED: tl.constexpr):
    lane = tl.arange(0, 256)
    exist = (lane >= 0,)
    (value,) = sampling.read(image + lane, exist, 1, 0, 0, 1, True)
    lifted = tl.load(factor) * sampling.LIFT if IS_LIFTED else tl.load(factor)
    sampling.store(
        out + lane, sampling.mix((tl.zeros_like(value),), (lifted,), (value,)), exist[0], image
    )


@triton.jit
def _weigh(out, weight, H: tl.constexpr, W: tl.constexpr, HP: tl.constexpr, WP: tl.constexpr):
    pixel = tl.arange(0, 128)
    h, w = pixel // W % H, pixel % W
    tl.store(out + pixel, sampling.weigh(weight, 1, h, w, H, W, HP, WP), pixel < H * W)


@pytest.mark.parametrize("factor", [1.0, 0.37, 1e-9, 1e9])
def test_bytes_are_scaled_without_being_converted(factor):
    image = torch.arange(256, dtype=torch.uint8, device=DEVICE)
    out = torch.zeros(256, device=DEVICE)
    _scale[(1,)](out, image, torch.tensor([factor], device=DEVICE), True)
    if factor == 1.0:
        assert torch.equal(out, image / 255.0)
    want = image.double() / 255 * torch.tensor(factor).item()
    torch.testing.assert_close(out.double(), want, atol=0, rtol=3e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_floats_are_taken_as_they_are(dtype):
    image = torch.randn(256, device=DEVICE).to(dtype)
    out = torch.zeros(256, device=DEVICE)
    _scale[(1,)](out, image, torch.ones(1, device=DEVICE), False)
    assert torch.equal(out, image.float())


@pytest.mark.parametrize("patches", [(1, 1), (3, 2), (9, 13), (11, 20)])
def test_weights_are_those_of_the_pixels_patch(patches):
    weight = torch.rand(2, *patches, device=DEVICE)
    out = torch.zeros(128, device=DEVICE)
    _weigh[(1,)](out, weight, 9, 13, *patches)
    row = torch.arange(9) * patches[0] // 9
    column = torch.arange(13) * patches[1] // 13
    want = weight[1][row][:, column]
    assert torch.equal(out[: 9 * 13].reshape(9, 13), want)
