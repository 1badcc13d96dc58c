import importlib.util
import itertools
import subprocess
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
from hard_kernels import affine_mix
from hard_kernels.affine_mix import cpu, reference

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec(cpu.LIBRARY) is None, reason="the native kernel was not built"
)
DTYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32)
SIZES = ((1, 1), (7, 5), (63, 1), (1, 1000), (33, 40))
PADDINGS = ("zeros", "border", "reflection")


def smooth(num: int, channels: int, size: tuple[int, int]) -> torch.Tensor:
    """Pictures without edges: theta's gradient jumps little where a sample crosses a pixel."""
    row = torch.linspace(0, 2.5, size[0])[:, None]
    column = torch.linspace(0, 3.1, size[1])[None]
    phase = 0.7 * torch.arange(num * channels).view(num, channels, 1, 1)
    return torch.sin(row + phase) * torch.cos(0.8 * column - phase) / 2 + 0.5


def problem(size, channels, num_mixed, dtype, has_theta, patches):
    """image, theta, weight and index; `patches` is none, few or pixels."""
    generator = torch.Generator().manual_seed(size[0] + 10 * channels + num_mixed)
    image = smooth(5, channels, size)
    image = (255 * image).to(dtype) if dtype == torch.uint8 else image.to(dtype)
    if patches == "none":
        index, num_made, num_mixed = None, 5, 1
    else:
        index, num_made = torch.randint(5, (3, num_mixed), generator=generator), 3
    theta, weight = None, None
    if has_theta:
        theta = 0.25 * torch.randn(num_made, num_mixed, 2, 3, generator=generator)
        theta += torch.eye(2, 3)
    if patches != "none":
        grid = (min(size[0], 3), min(size[1], 2)) if patches == "few" else size
        weight = torch.rand(num_made, num_mixed, *grid, generator=generator)
    return image, theta, weight, index


def in_double(image, theta, weight, index):
    def double(value):
        return None if value is None else value.double()

    image = image.double() / 255 if image.dtype == torch.uint8 else image.double()
    return image, double(theta), double(weight), index


@pytest.mark.parametrize("is_plain", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients_are_those_of_the_reference(dtype, layout, is_plain, monkeypatch):
    monkeypatch.setattr(cpu, "IS_PLAIN", is_plain)
    cases = itertools.product(SIZES, (1, 2, 3, 4), (1, 2, 4), PADDINGS, (False, True))
    for number, (size, channels, num_mixed, padding, has_theta) in enumerate(cases):
        patches = ("none", "few", "pixels")[(number + number // 6) % 3]
        image, *rest = problem(size, channels, num_mixed, dtype, has_theta, patches)
        image = image.contiguous(memory_format=layout)
        exact = in_double(image, *rest)
        out = cpu.forward(image, *rest, padding, torch.float32)
        want = reference.forward(*exact, padding, torch.float64)
        # A coordinate in fp32 is the less exact the wider the image is.
        blur = max(1.0, max(size) / 100)
        torch.testing.assert_close(out.double(), want, atol=2e-5 * blur, rtol=1e-4)

        grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(number))
        grad = grad.contiguous(memory_format=layout)
        needs = [dtype != torch.uint8, has_theta, patches != "none"]
        found = cpu.backward(grad, image, *rest, padding, needs)
        wanted = reference.backward(grad.double(), *exact, padding, needs)
        # theta's derivative jumps at pixel centres: a rounded coordinate may take the other side.
        tolerances = (1e-4 if dtype == torch.float32 else 1e-2, 0.03 * blur**0.5, 1e-4)
        for got, truth, tolerance, is_needed in zip(found, wanted, tolerances, needs, strict=True):
            assert got.numel() == (truth.numel() if is_needed else 0)
            if is_needed:
                error = (got.double() - truth).abs().max() / truth.abs().max().clamp(min=1e-3)
                assert error < tolerance, (size, channels, num_mixed, padding, has_theta, patches)


@pytest.mark.parametrize("padding", PADDINGS)
def test_theta_gradient_is_tight_away_from_pixel_centres(padding):
    image = smooth(4, 3, (16, 20))
    theta = torch.tensor([[0.83, 0.0, 0.0], [0.0, 0.87, 0.0]]).repeat(4, 1, 1, 1)
    grid = F.affine_grid(theta[:, 0].double(), [4, 3, 16, 20], align_corners=False)
    place = ((grid + 1) * torch.tensor([20, 16]) - 1) / 2
    assert (place - place.round()).abs().min() > 1e-3
    grad = torch.randn(4, 3, 16, 20, generator=torch.Generator().manual_seed(0))
    got = cpu.backward(grad, image, theta, None, None, padding, [False, True, False])[1]
    exact = in_double(image, theta, None, None)
    want = reference.backward(grad.double(), *exact, padding, [False, True, False])[1]
    torch.testing.assert_close(got.double(), want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(1, 1), (7, 63), (224, 160)])
def test_identity_gives_the_image_back_exactly(dtype, size):
    image = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    image = image if dtype == torch.uint8 else (image / 255).to(dtype)
    theta = torch.eye(2, 3).repeat(2, 1, 1, 1)
    want = image / 255 if dtype == torch.uint8 else image.float()
    for padding in PADDINGS:
        assert torch.equal(cpu.forward(image, theta, None, None, padding, torch.float32), want)


def test_no_pixel_is_read_outside_whatever_theta_is():
    image = torch.rand(1, 3, 6, 6) + 1.0
    outside = torch.tensor([[1.0, 0.0, 5.0], [0.0, 1.0, 0.0]])[None, None]
    huge = torch.tensor([[1e30, 0.0, 0.0], [0.0, -1e30, 1e30]])[None, None]
    infinite = torch.full((1, 1, 2, 3), torch.inf)
    nan = torch.eye(2, 3)[None, None].clone()
    nan[..., 1, 2] = torch.nan
    for theta in (outside, huge):
        assert cpu.forward(image, theta, None, None, "zeros", torch.float32).eq(0).all()
        edge = cpu.forward(image, theta, None, None, "border", torch.float32)
        assert edge.isfinite().all() and edge.min() >= 1.0
    for padding in PADDINGS:
        assert cpu.forward(image, nan, None, None, padding, torch.float32).isnan().all()
        grad = torch.ones(1, 3, 6, 6)
        needs = [True, True, False]
        for theta in (outside, huge, infinite, nan):
            cpu.forward(image, theta, None, None, padding, torch.float32)
            found = cpu.backward(grad, image, theta, None, None, padding, needs)
            if theta is nan:
                assert found[1].isnan().any()


@pytest.mark.parametrize("module", [cpu, reference])
@pytest.mark.parametrize("padding", PADDINGS)
def test_a_nan_anywhere_in_theta_gives_nan_pixels_and_gradients(module, padding):
    image, grad = torch.rand(1, 3, 5, 6), torch.ones(1, 3, 5, 6)
    for entry in range(6):
        theta = torch.eye(2, 3).flatten()
        theta[entry] = torch.nan
        theta = theta.view(1, 1, 2, 3)
        assert module.forward(image, theta, None, None, padding, torch.float32).isnan().all()
        found = module.backward(grad, image, theta, None, None, padding, [True, True, False])
        assert found[1].isnan().any()
    for value in (torch.inf, -torch.inf, 1e30, -3e38):
        theta = torch.full((1, 1, 2, 3), value)
        module.backward(grad, image, theta, None, None, padding, [True, True, False])


def test_a_pixel_that_is_not_finite_stays_where_it_is():
    image = torch.rand(2, 3, 5, 5)
    image[0, :, 2, 2] = torch.nan
    theta, weight = torch.eye(2, 3).repeat(1, 2, 1, 1), torch.ones(1, 2, 1, 1)
    index = torch.tensor([[1, 0]])
    out = cpu.forward(image, theta, weight, index, "zeros", torch.float32)
    want = reference.forward(image, theta, weight, index, "zeros", torch.float32)
    assert torch.equal(out.isnan()[..., 3:, :], want.isnan()[..., 3:, :])


def test_bf16_is_rounded_to_the_nearest_and_to_even():
    bits = torch.arange(-(2**31), 2**31, 65537 * 3).to(torch.int32)
    special = torch.tensor([torch.nan, torch.inf, -torch.inf, 3.4e38, 1.00390625, 1.01171875])
    values = torch.cat([bits.view(torch.float32), special]).view(1, 1, 1, -1)
    got = cpu.forward(values, None, None, None, "zeros", torch.bfloat16)
    want = values.to(torch.bfloat16)
    assert torch.equal(got.isnan(), want.isnan())
    assert torch.equal(got[~want.isnan()], want[~want.isnan()])


def test_patches_smaller_than_a_pixel_have_no_gradient():
    image, index = torch.rand(1, 2, 3, 2), torch.tensor([[0]])
    weight = torch.rand(1, 1, 7, 5)
    case = (image, None, weight, index, "zeros")
    needs = [False, False, True]
    grad = torch.ones(1, 2, 3, 2)
    found = cpu.backward(grad, *case, needs)[2]
    torch.testing.assert_close(found, reference.backward(grad, *case, needs)[2])


def test_a_library_of_another_version_is_not_called(monkeypatch):
    cpu._library.cache_clear()
    monkeypatch.setattr(cpu, "LAYOUT", cpu.LAYOUT + 1)
    try:
        with pytest.warns(UserWarning, match="another version"):
            assert not cpu.has_kernel(torch.rand(1, 3, 4, 4))
    finally:
        cpu._library.cache_clear()


def test_every_element_is_written(monkeypatch):
    plain = torch.empty

    def poisoned(*shape, **options):
        made = plain(*shape, **options)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    image, theta, weight, index = problem((9, 7), 3, 2, torch.float32, True, "few")
    index = torch.zeros_like(index)
    grad = torch.ones(3, 3, 9, 7)
    monkeypatch.setattr(torch, "empty", poisoned)
    out = cpu.forward(image, theta, weight, index, "zeros", torch.bfloat16)
    found = cpu.backward(grad, image, theta, weight, index, "zeros", [True, True, True])
    assert out.isfinite().all() and all(value.isfinite().all() for value in found)
    assert found[0][1:].eq(0).all(), "images that nobody used have a gradient of zero"


def test_threads_do_not_change_a_bit():
    image, theta, weight, index = problem((33, 40), 3, 4, torch.float32, True, "few")
    grad = torch.rand(3, 3, 33, 40)

    def run():
        found = cpu.backward(grad, image, theta, weight, index, "zeros", [True, True, True])
        return (cpu.forward(image, theta, weight, index, "zeros", torch.float32), *found)

    alone = run()
    try:
        torch.set_num_threads(3)
        together = run()
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


def test_other_layouts_and_empty_batches_are_taken():
    image = torch.rand(6, 4, 9, 8)
    theta = torch.eye(2, 3).repeat(3, 1, 1, 1)
    sliced = image[::2, 1:, :, ::2]
    assert torch.equal(cpu.forward(sliced, theta, None, None, "zeros", torch.float32), sliced)
    expanded = torch.ones(()).expand(3, 3, 9, 4)
    found = cpu.backward(expanded, sliced, theta, None, None, "zeros", [True, False, False])
    torch.testing.assert_close(found[0], torch.ones(3, 3, 9, 4))
    empty = cpu.forward(image[:0], theta[:0], None, None, "zeros", torch.float32)
    assert empty.shape == (0, 4, 9, 8)


def test_what_the_library_does_not_take_goes_to_the_reference():
    assert cpu.has_kernel(torch.rand(1, 4, 2, 2))
    assert not cpu.has_kernel(torch.rand(1, 5, 2, 2))
    assert not cpu.has_kernel(torch.rand(1, 1, 2, 2).double())
    assert torch.equal(affine_mix(torch.ones(1, 5, 2, 2)), torch.ones(1, 5, 2, 2))


def test_without_the_library_the_reference_runs_with_one_warning(monkeypatch):
    cpu._library.cache_clear()
    monkeypatch.setattr(cpu, "LIBRARY", "hard_kernels.affine_mix._not_built")
    try:
        with pytest.warns(UserWarning, match="reinstall with GCC 12"):
            out = affine_mix(torch.ones(1, 3, 4, 4))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert torch.equal(affine_mix(torch.ones(1, 3, 4, 4)), out)
    finally:
        cpu._library.cache_clear()


def test_threads_are_those_of_torch():
    # A second OpenMP would make a second pool of threads that spins beside PyTorch's.
    code = """
from pathlib import Path
from hard_kernels.affine_mix import cpu
assert cpu._library() is not None
lines = Path("/proc/self/maps").read_text().splitlines()
print(len({line.split()[-1] for line in lines if "libgomp" in line}))
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
