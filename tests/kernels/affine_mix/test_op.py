import pytest
import torch
from hard_kernels import affine_mix
from torch import Tensor

IDENTITY = torch.eye(2, 3).expand(4, 1, 2, 3)
OP = torch.ops.hard_kernels.affine_mix.default


def mix_problem(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """image, theta (away from pixel centres, where the derivative jumps), weight and index."""
    image = torch.rand(3, 3, 4, 5, dtype=dtype, requires_grad=True)
    theta = torch.eye(2, 3, dtype=dtype) * 0.8 + 0.03 * torch.rand(2, 2, 2, 3, dtype=dtype)
    weight = torch.rand(2, 2, 2, 2, dtype=dtype, requires_grad=True)
    return image, theta.requires_grad_(), weight, torch.tensor([[0, 1], [2, 0]])


def test_uint8_is_scaled_and_the_layout_is_channels_last():
    image = torch.randint(0, 256, (4, 3, 5, 6), dtype=torch.uint8)
    copied = affine_mix(image)
    assert torch.equal(copied, image / 255.0)
    assert copied.is_contiguous(memory_format=torch.channels_last)
    warped = affine_mix(image, IDENTITY, out_dtype=torch.bfloat16)
    assert warped.dtype == torch.bfloat16
    assert torch.equal(affine_mix(image, IDENTITY), image / 255.0)


def test_a_copy_is_a_copy():
    image = torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    for dtype in (torch.float32, torch.float64):
        copied = affine_mix(image.to(dtype), out_dtype=dtype)
        assert torch.equal(copied, image.to(dtype)) and copied.data_ptr() != image.data_ptr()


def test_gradients_are_right_in_theta_weight_and_image():
    image, theta, weight, index = mix_problem(torch.float64)
    for padding in ("zeros", "border", "reflection"):

        def mix(image, theta, weight, padding=padding):
            return affine_mix(image, theta, weight, index, padding=padding, out_dtype=torch.float64)

        assert torch.autograd.gradcheck(mix, (image, theta, weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("has_theta", [True, False])
def test_registration_passes_opcheck(dtype, has_theta):
    image, theta, weight, index = mix_problem(dtype)
    theta = theta if has_theta else None
    torch.library.opcheck(OP, (image, theta, weight, index, "border", dtype))
    single = image.detach()[:, :1].requires_grad_()
    torch.library.opcheck(OP, (single, None, None, None, "zeros", torch.bfloat16))


def test_one_graph_serves_every_theta_and_agrees_with_eager():
    image, theta, weight, index = mix_problem(torch.float32)

    def loss(theta):
        return affine_mix(image.detach(), theta, weight.detach(), index).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    compiled(theta)
    with torch.compiler.set_stance("fail_on_recompile"):
        for shift in (0.1, 0.2):
            moved = (theta.detach() + shift).requires_grad_()
            got = torch.autograd.grad(compiled(moved), moved)[0]
            torch.testing.assert_close(got, torch.autograd.grad(loss(moved), moved)[0])


def test_autocast_changes_nothing():
    image, theta, weight, index = mix_problem(torch.float32)
    want = affine_mix(image, theta, weight, index)
    with torch.autocast("cpu", torch.bfloat16):
        got = affine_mix(image, theta, weight, index)
        gradients = torch.autograd.grad(got.sum(), (image, theta, weight))
    assert torch.equal(got, want)
    for a, b in zip(
        gradients, torch.autograd.grad(want.sum(), (image, theta, weight)), strict=True
    ):
        assert torch.equal(a, b)


def test_only_what_needs_a_gradient_gets_one():
    image, theta, weight, index = mix_problem(torch.float32)
    affine_mix(image.detach(), theta, weight.detach(), index).sum().backward()
    assert theta.grad is not None and image.grad is None and weight.grad is None


def test_a_second_derivative_is_refused_clearly():
    image, theta, weight, index = mix_problem(torch.float32)
    first = torch.autograd.grad(
        affine_mix(image, theta, weight, index).square().sum(), theta, create_graph=True
    )[0]
    with pytest.raises(RuntimeError, match="affine_mix: it is differentiable once"):
        first.sum().backward()


WRONG = [
    ({"image": torch.rand(3, 4, 4)}, "image"),
    ({"image": torch.rand(4, 1, 0, 4)}, "image"),
    ({"image": torch.zeros(4, 1, 4, 4, dtype=torch.int64)}, "image"),
    ({"theta": torch.rand(4, 2, 3)}, "theta"),
    ({"theta": torch.rand(3, 1, 2, 3)}, "theta"),
    ({"theta": IDENTITY.half()}, "theta"),
    ({"theta": IDENTITY.to("meta")}, "theta"),
    ({"padding": "mirror"}, "padding"),
    ({"out_dtype": torch.uint8}, "out_dtype"),
    ({"index": torch.zeros(4, 2, dtype=torch.int64)}, "weight"),
    ({"index": torch.zeros(4, 1)}, "index"),
    ({"index": torch.zeros(4, 0, dtype=torch.int64)}, "index"),
    ({"index": torch.tensor([[0], [4]])}, "index"),
    ({"index": torch.tensor([[-1]])}, "index"),
    ({"weight": torch.rand(4, 2, 1, 1)}, "weight"),
    ({"weight": torch.rand(4, 1, 1, 1).double()}, "weight"),
]


@pytest.mark.parametrize(("arguments", "name"), WRONG)
def test_a_wrong_argument_is_named(arguments, name):
    with pytest.raises(ValueError, match=f"^{name}:"):
        affine_mix(**{"image": torch.rand(4, 1, 4, 4)} | arguments)


def test_the_same_line_stands_in_the_error_under_compile():
    compiled = torch.compile(affine_mix, fullgraph=True, backend="eager")
    with pytest.raises(Exception, match="theta: needs shape"):
        compiled(torch.rand(4, 1, 4, 4), torch.rand(4, 2, 3))
