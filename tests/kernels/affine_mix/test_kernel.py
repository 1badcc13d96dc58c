"""The Triton kernels against the reference in float64: on a GPU, or interpreted without one."""

import itertools

import pytest
import torch
from hard_kernels import affine_mix
from hard_kernels.affine_mix import kernel, reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Half a unit in the last place; the interpreter does not round to bfloat16, it truncates.
BF16 = 2**-8 if DEVICE == "cuda" else 2**-7
PADDINGS = ("zeros", "border", "reflection")
LAYOUTS = (torch.contiguous_format, torch.channels_last)
IDENTITY = torch.eye(2, 3).reshape(1, 1, 2, 3)


def draw_image(shape, dtype=torch.float32, layout=torch.channels_last):
    image = torch.rand(shape)
    image = (image * 256).to(torch.uint8) if dtype == torch.uint8 else image.to(dtype)
    return image.to(DEVICE).contiguous(memory_format=layout)


def draw_theta(num_made, num_mixed):
    return (torch.eye(2, 3) * 0.9 + 0.2 * torch.randn(num_made, num_mixed, 2, 3)).to(DEVICE)


def draw_case(size=(3, 7, 5), num_mixed=2, patches=(2, 2), **how):
    """Image, theta, weight and index: three images given, two made of groups of them."""
    weight = torch.rand(2, num_mixed, *patches, device=DEVICE)
    index = torch.randint(0, 3, (2, num_mixed), device=DEVICE)
    return draw_image((3, *size), **how), draw_theta(2, num_mixed), weight, index


def to_double(tensor):
    if tensor is None or not (tensor.is_floating_point() or tensor.dtype == torch.uint8):
        return tensor if tensor is None else tensor.cpu()
    return tensor.cpu().double() / (255 if tensor.dtype == torch.uint8 else 1)


def check_values(case, padding="zeros", dtype=torch.float32, atol=2e-5, rtol=1e-5):
    """Holds the output to the reference's, in float64, and to its layout."""
    want = reference.forward(*map(to_double, case), padding, torch.float64)
    found = kernel.forward(*case, padding, dtype)
    assert found.dtype == dtype and found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found.cpu().double(), want, atol=atol, rtol=rtol)


def check_gradients(case, padding="zeros", grad=None, atol=2e-5, image_rtol=1e-5):
    """Holds the gradients to the reference's, in float64; `atol` is relative to the largest."""
    image, theta, weight, index = case
    made = image.shape[0] if index is None else index.shape[0]
    if grad is None:
        grad = torch.randn(made, *image.shape[1:], device=DEVICE)
    needs = [image.is_floating_point(), theta is not None, weight is not None]
    want = reference.backward(to_double(grad), *map(to_double, case), padding, needs)
    found = kernel.backward(grad, *case, padding, needs)
    for got, expected, is_needed, rtol in zip(found, want, needs, (image_rtol, 0, 0), strict=True):
        if is_needed:
            limit = atol * max(1.0, expected.abs().max().item())
            torch.testing.assert_close(got.cpu().double(), expected, atol=limit, rtol=rtol)
        else:
            assert got.numel() == 0


@pytest.fixture(autouse=True)
def _one_config(request, monkeypatch):
    torch.manual_seed(0)
    if "gpu" not in request.keywords:
        # Tuning for each tiny shape would take minutes.
        monkeypatch.setattr(kernel._forward, "configs", kernel.FORWARD_CONFIGS[-1:])
        monkeypatch.setattr(kernel._backward, "configs", kernel.BACKWARD_CONFIGS[-1:])


@pytest.mark.parametrize("size", [(3, 7, 5), (1, 1, 1), (2, 63, 1), (4, 1, 33), (5, 4, 3)])
def test_sizes_channels_and_paddings(size):
    for padding in PADDINGS if size[0] < 4 else PADDINGS[2:]:
        case = draw_case(size, num_mixed=1, patches=(1, 1))
        check_values(case, padding)
        check_gradients(case, padding)


@pytest.mark.parametrize(
    ("dtype", "out_dtype", "atol", "rtol"),
    [
        (torch.uint8, torch.float32, 1e-5, 1e-5),
        (torch.uint8, torch.bfloat16, 1e-5, BF16),
        (torch.float16, torch.float16, 1e-5, 2**-11),
        (torch.bfloat16, torch.bfloat16, 1e-5, BF16),
        (torch.float32, torch.bfloat16, 1e-5, BF16),
    ],
)
def test_dtypes_and_four_mixed(dtype, out_dtype, atol, rtol):
    case = draw_case((3, 9, 6), num_mixed=4, dtype=dtype)
    check_values(case, "zeros", out_dtype, atol, rtol)
    grad = torch.randn(2, 3, 9, 6, device=DEVICE).to(out_dtype)
    check_gradients(case, "zeros", grad, image_rtol=rtol)


@pytest.mark.parametrize("patches", [(3, 2), (7, 5), (1, 1), (9, 6)])
def test_patches_that_do_not_divide_or_are_pixels(patches):
    case = draw_case(patches=patches)
    check_values(case)
    check_gradients(case)


def test_what_is_left_out():
    image, theta, weight, index = draw_case()
    own = draw_theta(3, 1)
    one = torch.rand(3, 1, 2, 3, device=DEVICE)
    for case in (
        (image, own, None, None),
        (image, None, one, None),
        (image, None, None, None),
        (image, None, weight, index),
        (image, theta[:, :1], None, index[:, 1:]),
    ):
        check_values(case)
        check_gradients(case)


@pytest.mark.parametrize("config", range(len(kernel.BACKWARD_CONFIGS)))
def test_every_config_sums_the_same(config, monkeypatch):
    monkeypatch.setattr(kernel._forward, "configs", [kernel.FORWARD_CONFIGS[config]])
    monkeypatch.setattr(kernel._backward, "configs", [kernel.BACKWARD_CONFIGS[config]])
    # Cells lower and higher than a tile; the tiles end with the image, or go on below it.
    for size in ((1, 40, 9), (1, 32, 16)):
        image, theta, weight, _ = draw_case(size, num_mixed=1, patches=(1, 1))
        case = (image[:1], theta[:1], weight[:1], None)
        check_values(case)
        check_gradients(case)


@pytest.mark.parametrize("size", [(20, 40), (48, 32)])
def test_patches_of_several_cells(size):
    image, theta, weight, _ = draw_case((1, *size), num_mixed=1, patches=(2, 1))
    case = (image[:1], theta[:1], weight[:1], None)
    check_values(case, "border")
    check_gradients(case, "border")


def test_layouts_agree_to_the_bit():
    image, theta, weight, index = draw_case((3, 6, 7), layout=torch.channels_last)
    wide = torch.zeros(3, 3, 6, 14, device=DEVICE)
    wide[..., ::2] = image
    grad = torch.randn(2, 3, 6, 7, device=DEVICE)
    want = kernel.forward(image, theta, weight, index, "zeros", torch.float32)
    wanted = kernel.backward(grad, image, theta, weight, index, "zeros", [False, True, True])
    for same in (image.contiguous(), wide[..., ::2]):
        case = (same, theta.transpose(2, 3).contiguous().transpose(2, 3), weight, index, "zeros")
        assert torch.equal(kernel.forward(*case, torch.float32), want)
        for layout in LAYOUTS:
            laid = grad.contiguous(memory_format=layout)
            found = kernel.backward(laid, *case, [False, True, True])
            assert torch.equal(found[1], wanted[1]) and torch.equal(found[2], wanted[2])


@pytest.mark.parametrize("padding", PADDINGS)
def test_the_identity_gives_the_image_back_exactly(padding):
    theta = IDENTITY.to(DEVICE)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        image = draw_image((1, 3, 13, 10), dtype)
        assert torch.equal(kernel.forward(image, theta, None, None, padding, dtype), image)
    image = torch.arange(256, dtype=torch.uint8, device=DEVICE).reshape(1, 1, 16, 16)
    for matrix in (theta, None):
        found = kernel.forward(image, matrix, None, None, padding, torch.float32)
        assert torch.equal(found, image / 255.0)
        found = kernel.forward(image, matrix, None, None, padding, torch.float16)
        assert torch.equal(found, (image / 255.0).half())


def test_nothing_is_read_outside_the_image():
    # NaN all around the three images: one stray read shows.
    around = torch.full((5, 2, 6, 5), torch.nan, device=DEVICE)
    theta = torch.randn(8, 1, 2, 3, device=DEVICE) * 3
    theta[3:] = IDENTITY.to(DEVICE)
    theta[3:, :, :, 2] = torch.tensor([4.0, -4.0, 1e30, -1e30, 1e38], device=DEVICE)[:, None, None]
    theta[6, 0, 0, 0], theta[7, 0, 1, 0] = 1e30, -1e30
    index = torch.arange(8, device=DEVICE)[:, None] % 3
    for layout, padding in itertools.product(LAYOUTS, PADDINGS):
        inside = around.contiguous(memory_format=layout)[1:4]
        inside.copy_(torch.rand(3, 2, 6, 5))
        found = kernel.forward(inside, theta, None, index, padding, torch.float32)
        assert found.isfinite().all()
        if padding == "zeros":
            assert not found[3:].any()
        if padding == "border":
            assert torch.equal(found[3], inside[0, :, -1:, -1:].expand(2, 6, 5))
            assert torch.equal(found[4], inside[1, :, :1, :1].expand(2, 6, 5))


@pytest.mark.parametrize("padding", PADDINGS)
def test_nan_in_theta_is_nan_in_that_image_alone(padding):
    image, theta, weight, index = draw_case()
    theta[0, 1, 1, 0] = torch.nan
    found = kernel.forward(image, theta, weight, index, padding, torch.float32)
    assert found[0].isnan().all() and found[1].isfinite().all()
    grad = torch.randn(2, 3, 7, 5, device=DEVICE)
    by_image, by_theta, _ = kernel.backward(
        grad, image, theta, weight, index, padding, [True, True, True]
    )
    assert by_theta[0, 1].isnan().any() and by_theta[0, 0].isfinite().all()
    assert by_theta[1].isfinite().all() and by_image.isfinite().all()


@pytest.mark.parametrize("wrong", [-1, 3, 2**40])
@pytest.mark.parametrize("is_warped", [True, False])
def test_an_index_without_an_image_is_nan_and_adds_to_none(wrong, is_warped):
    image, theta, weight, index = draw_case(num_mixed=1)
    if not is_warped:
        theta = None
    index[0] = wrong
    found = kernel.forward(image, theta, weight, index, "zeros", torch.float32)
    assert found[0].isnan().all() and found[1].isfinite().all()
    grad = torch.randn(2, 3, 7, 5, device=DEVICE)
    needs = [True, is_warped, True]
    by_image, by_theta, by_weight = kernel.backward(
        grad, image, theta, weight, index, "zeros", needs
    )
    rest = (None if theta is None else theta[1:], weight[1:], index[1:])
    want = kernel.backward(grad[1:], image, *rest, "zeros", needs)
    torch.testing.assert_close(by_image, want[0])
    assert by_weight[0].isnan().all() and torch.equal(by_weight[1:], want[2])
    assert not is_warped or (by_theta[0].isnan().any() and torch.equal(by_theta[1:], want[1]))


def test_what_memory_held_before_does_not_matter(monkeypatch):
    new_output, new_gradients = reference.new_output, reference.new_gradients
    monkeypatch.setattr(
        reference, "new_output", lambda *arguments: new_output(*arguments).fill_(torch.nan)
    )
    monkeypatch.setattr(
        reference,
        "new_gradients",
        lambda *arguments: tuple(found.fill_(torch.nan) for found in new_gradients(*arguments)),
    )
    case = draw_case(dtype=torch.float16)
    found = kernel.forward(*case, "zeros", torch.float32)
    gradients = kernel.backward(found, *case, "zeros", [True, True, True])
    assert all(tensor.isfinite().all() for tensor in (found, *gradients))


def test_sums_are_the_same_twice_and_the_images_is_refused_where_it_may_not_be(recwarn):
    case = (*draw_case(), "zeros")
    grad = torch.randn(2, 3, 7, 5, device=DEVICE)
    torch.use_deterministic_algorithms(True)
    try:
        _, theta, weight = kernel.backward(grad, *case, [False, True, True])
        for _ in range(2):
            again = kernel.backward(grad, *case, [False, True, True])
            assert torch.equal(again[1], theta) and torch.equal(again[2], weight)
        with pytest.raises(RuntimeError, match="affine_mix"):
            kernel.backward(grad, *case, [True, False, False])
        torch.use_deterministic_algorithms(True, warn_only=True)
        kernel.backward(grad, *case, [True, False, False])
        assert any("affine_mix" in str(warning.message) for warning in recwarn)
    finally:
        torch.use_deterministic_algorithms(False)


def test_no_image_made():
    image, theta, weight, index = draw_case()
    none = (image, theta[:0], weight[:0], index[:0])
    assert kernel.forward(*none, "zeros", torch.float32).shape == (0, 3, 7, 5)
    grad = torch.zeros(0, 3, 7, 5, device=DEVICE)
    by_image, by_theta, by_weight = kernel.backward(grad, *none, "zeros", [True, True, True])
    assert not by_image.any() and by_theta.shape == (0, 2, 2, 3) and by_weight.shape[0] == 0


def test_an_image_too_large_for_its_positions_is_refused():
    huge = torch.empty(1, device="meta").expand(1, 1, 2**16, 2**16)
    with pytest.raises(ValueError, match="^image:"):
        kernel._describe(huge, None, None, "zeros")


@pytest.mark.gpu
def test_at_full_size_through_the_op_compiled_and_without_recompiling():
    image = draw_image((512, 3, 224, 224), torch.uint8)
    weight = torch.softmax(torch.randn(128, 4, 14, 14, device=DEVICE), 1).requires_grad_()
    index = torch.randperm(512, device=DEVICE).reshape(128, 4)

    def mix(theta, weight):
        return affine_mix(image, theta, weight, index, out_dtype=torch.bfloat16)

    compiled = torch.compile(mix, fullgraph=True)
    for turn in range(3):
        theta = (torch.eye(2, 3) + 0.1 * torch.randn(128, 4, 2, 3)).to(DEVICE).requires_grad_()
        with torch.compiler.set_stance("default" if turn == 0 else "fail_on_recompile"):
            made = compiled(theta, weight)
        grad = torch.randn_like(made)
        by_theta, by_weight = torch.autograd.grad(made, (theta, weight), grad)
        with torch.no_grad():
            want = reference.forward(image, theta, weight, index, "zeros", torch.float32)
            wanted = reference.backward(
                grad, image, theta, weight, index, "zeros", [False, True, True]
            )
        torch.testing.assert_close(made.float(), want, atol=2e-4, rtol=2**-8)
        # The derivative jumps where a sample meets a grid line, and fp32 disagrees on some.
        for found, expected in ((by_theta, wanted[1]), (by_weight, wanted[2])):
            assert (found - expected).norm() < 1e-2 * expected.norm()
