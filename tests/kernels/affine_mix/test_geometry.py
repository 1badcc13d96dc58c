"""The kernels' coordinates against brute force and against PyTorch's grid sampler."""

import pytest
import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from hard_kernels.affine_mix import geometry, reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@triton.jit
def _place(out, SIZE: tl.constexpr, COUNT: tl.constexpr, LENGTH: tl.constexpr, BLOCK: tl.constexpr):
    slot = tl.program_id(0) * 16 + tl.arange(0, 16)
    at, is_live = geometry.place(slot, SIZE, COUNT, LENGTH, BLOCK)
    tl.store(out + slot * 2, at)
    tl.store(out + slot * 2 + 1, is_live.to(tl.int32))


@triton.jit
def _clip(out, x, SIZE: tl.constexpr, PADDING: tl.constexpr):
    lane = tl.arange(0, 64)
    clipped, slope = geometry.clip(tl.load(x + lane), SIZE, PADDING)
    tl.store(out + lane, clipped)
    tl.store(out + 64 + lane, slope + tl.zeros_like(clipped))


@triton.jit
def _compare(out, theta, H: tl.constexpr, W: tl.constexpr):
    # The outermost and the innermost that any pixel reaches, beside what the corners say.
    theta += tl.program_id(0) * 6
    to_x, to_y = geometry.matrix(theta, tl.load(theta) < 1e9, H, W)
    pixel = tl.arange(0, H * W)
    h, w = geometry.centred(pixel // W, H), geometry.centred(pixel % W, W)
    x, y = geometry.along(to_x, w, h), geometry.along(to_y, w, h)
    outside = (x <= 0) | (x >= W - 1) | (y <= 0) | (y >= H - 1)
    start = tl.program_id(0) * 0
    left, right = geometry.span(start, start + W, W, 1, W, W)
    top, bottom = geometry.span(start, start + H, H, 1, H, H)
    inside = geometry.is_inside(to_x, to_y, left, right, top, bottom, H, W)
    tl.store(out + tl.program_id(0) * 2, tl.where(inside, 1, 0))
    tl.store(out + tl.program_id(0) * 2 + 1, tl.sum(outside.to(tl.int32)))


@pytest.mark.parametrize(
    ("size", "count", "length", "block"),
    [(64, 4, 16, 32), (40, 5, 8, 48), (28, 2, 16, 32), (5, 9, 1, 16), (33, 7, 8, 16)],
)
def test_every_row_has_one_slot_and_no_slot_is_outside(size, count, length, block):
    num_slots = triton.cdiv(count * length, block) * block
    out = torch.zeros(num_slots, 2, dtype=torch.int32, device=DEVICE)
    _place[(num_slots // 16,)](out, size, count, length, block)
    at, is_live = out.cpu().unbind(1)
    assert at[is_live == 1].tolist() == list(range(size))
    assert at.min() >= 0 and at.max() < size and (at.diff() >= 0).all()
    # A cell is ceil(size * number / count) onwards, as a patch is.
    cells = torch.arange(num_slots)[is_live == 1] // length
    assert cells.tolist() == [row * count // size for row in range(size)]


@pytest.mark.parametrize("padding", ["border", "reflection"])
@pytest.mark.parametrize("size", [1, 2, 7])
def test_padding_moves_coordinates_as_the_grid_sampler_does(padding, size):
    x = torch.linspace(-2.3 * size - 1, 3.1 * size + 1, 64)
    out = torch.zeros(2, 64, device=DEVICE)
    _clip[(1,)](out, x.to(DEVICE), size, reference.PADDING_CODES[padding])
    # On a ramp the sampler returns the coordinate itself.
    ramp = torch.arange(size, dtype=torch.float64).expand(1, 1, 3, size)
    grid = torch.zeros(1, 1, 64, 2, dtype=torch.float64)
    grid[..., 0] = (2 * x + 1) / size - 1
    grid.requires_grad_()
    want = F.grid_sample(ramp, grid, "bilinear", padding, align_corners=False)
    (slope,) = torch.autograd.grad(want.sum(), grid)
    torch.testing.assert_close(out[0].cpu(), want.flatten().float(), atol=1e-5, rtol=0)
    torch.testing.assert_close(out[1].cpu(), slope[0, 0, :, 0].float() * 2 / size)


def test_what_the_corners_call_inside_is_inside():
    torch.manual_seed(0)
    theta = torch.eye(2, 3) * torch.rand(80, 1, 1) + 0.3 * torch.randn(80, 2, 3)
    theta[:3] = torch.tensor([[1e30, 0, 0], [0, 1, 0]])
    theta[3:6, 1, 2] = torch.nan
    out = torch.zeros(80, 2, dtype=torch.int32, device=DEVICE)
    _compare[(80,)](out, theta.to(DEVICE), 8, 16)
    is_inside, num_outside = out.cpu().unbind(1)
    # With so few pixels the corners are pixels, so that both must agree.
    assert torch.equal(is_inside[6:] == 1, num_outside[6:] == 0)
    assert not is_inside[:6].any() and 10 < is_inside.sum() < 60
