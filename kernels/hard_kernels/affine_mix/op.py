"""The contract of `affine_mix`: registration with PyTorch, checks, and its gradient.

Letters: N images given, M images made, G images mixed into one, C channels, H rows, W columns,
Hp x Wp patches.
"""

from types import ModuleType

import torch
from torch import Tensor

from hard_kernels import _backend
from hard_kernels.affine_mix import cpu, reference

IMAGE_DTYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)


def affine_mix(
    image: Tensor,
    theta: Tensor | None = None,
    weight: Tensor | None = None,
    index: Tensor | None = None,
    *,
    padding: str = "zeros",
    out_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Warp each image, mix groups of them patch by patch, scale to [0,1] and lay out, in one call.

    out[m] = sum over g of weight[m, g, patch(h, w)] * bilinear(image[index[m, g]], theta[m, g]),
    where patch(h, w) = (h * Hp // H, w * Wp // W).

    Args:    image: [N,C,H,W] uint8 (scaled by 1/255) or float, contiguous or channels_last;
                    other layouts are copied first. 1, 3 and 4 channels are the fast cases.
             theta: [M,G,2,3] float32, output to input in normalised coordinates as
                    `F.affine_grid(align_corners=False)` has them; None copies pixels exactly.
                    NaN entries give NaN pixels.
             weight: [M,G,Hp,Wp] float32; None needs G = 1 and means 1.
             index: [M,G] int64 into N; None means image m itself, and needs M = N and G = 1.
                    An entry outside N raises on CPU, and on a GPU where HARD_KERNELS_DEBUG=1;
                    without it such an image is NaN there.
             padding: what lies outside the image: zeros, border or reflection.
             A float64 image takes float64 theta and weight, and is computed in float64.
    Returns: [M,C,H,W] `out_dtype`, channels_last; computed in fp32 whatever autocast says.
             Differentiable once in theta, weight and a float image. Their sums over pixels run in
             a fixed order; on a GPU that of the image does not (atomics), and
             `torch.use_deterministic_algorithms` refuses it.
    Raises:  ValueError that names the argument.
    """
    return _affine_mix(image, theta, weight, index, padding, out_dtype)


@torch.library.custom_op("hard_kernels::affine_mix", mutates_args=())
def _affine_mix(
    image: Tensor,
    theta: Tensor | None,
    weight: Tensor | None,
    index: Tensor | None,
    padding: str,
    out_dtype: torch.dtype,
) -> Tensor:
    check(image, theta, weight, index, padding, out_dtype)
    _check_range(index, image.shape[0])
    path = _fastest_path(image)
    return path.forward(image, theta, weight, index, padding, out_dtype)


@torch.library.custom_op("hard_kernels::affine_mix_backward", mutates_args=())
def _backward(
    grad: Tensor,
    image: Tensor,
    theta: Tensor | None,
    weight: Tensor | None,
    index: Tensor | None,
    padding: str,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    path = _fastest_path(image)
    return path.backward(grad, image, theta, weight, index, padding, needs)


def _fastest_path(image: Tensor) -> ModuleType:
    """The module whose `forward` and `backward` run; its name says what it needs."""
    if image.device.type == "cpu" and cpu.has_kernel(image):
        return cpu
    if image.device.type == "cuda" and image.dtype != torch.float64 and _backend.has_triton():
        # Imported at the first call on a GPU: a CPU run never pays for Triton.
        from hard_kernels.affine_mix import kernel

        return kernel
    return reference


@_affine_mix.register_fake
def _(image, theta, weight, index, padding, out_dtype):
    check(image, theta, weight, index, padding, out_dtype)
    return reference.new_output(image, index, out_dtype)


@_backward.register_fake
def _(grad, image, theta, weight, index, padding, needs):
    return reference.new_gradients(image, theta, weight, needs)


def _save_for_backward(ctx, inputs, output):
    image, theta, weight, index, ctx.padding, _ = inputs
    ctx.save_for_backward(image, theta, weight, index)


def _differentiate(ctx, grad):
    needs = ctx.needs_input_grad[:3]
    found = _backward(grad, *ctx.saved_tensors, ctx.padding, list(needs))
    kept = (value if is_needed else None for value, is_needed in zip(found, needs, strict=True))
    return *kept, None, None, None


def _refuse_second_order(ctx, *grads):
    raise RuntimeError("affine_mix: it is differentiable once; its gradient has no gradient")


_affine_mix.register_autograd(_differentiate, setup_context=_save_for_backward)
_backward.register_autograd(_refuse_second_order)


def check(
    image: Tensor,
    theta: Tensor | None,
    weight: Tensor | None,
    index: Tensor | None,
    padding: str,
    out_dtype: torch.dtype,
) -> None:
    """ValueError that names the first argument with a wrong shape, dtype or device."""
    if image.ndim != 4 or 0 in image.shape[1:]:
        raise ValueError(f"image: needs shape [N,C,H,W] with pixels, got {list(image.shape)}")
    if image.dtype not in IMAGE_DTYPES:
        raise ValueError(f"image: needs dtype uint8 or float, got {image.dtype}")
    if padding not in reference.PADDING_CODES:
        choices = ", ".join(reference.PADDING_CODES)
        raise ValueError(f"padding: {padding!r} is none of {choices}")
    if not out_dtype.is_floating_point:
        raise ValueError(f"out_dtype: needs a float dtype, got {out_dtype}")
    is_pairs = index is None or (index.ndim == 2 and index.dtype == torch.int64)
    if not is_pairs or (index is not None and index.shape[1] == 0):
        raise ValueError(f"index: needs [M,G] int64, G >= 1, got {list(index.shape)} {index.dtype}")
    num_made, num_mixed = (image.shape[0], 1) if index is None else index.shape
    if theta is not None and tuple(theta.shape) != (num_made, num_mixed, 2, 3):
        raise ValueError(
            f"theta: needs shape {[num_made, num_mixed, 2, 3]}, got {list(theta.shape)}"
        )
    if weight is None and num_mixed != 1:
        raise ValueError(f"weight: needed to mix groups of {num_mixed}")
    if weight is not None and (
        weight.ndim != 4 or weight.shape[:2] != (num_made, num_mixed) or 0 in weight.shape[2:]
    ):
        raise ValueError(
            f"weight: needs shape [{num_made},{num_mixed},Hp,Wp], got {list(weight.shape)}"
        )
    for name, value in (("theta", theta), ("weight", weight), ("index", index)):
        if value is not None and value.device != image.device:
            raise ValueError(f"{name}: needs the image's device {image.device}, got {value.device}")
    wanted = torch.float64 if image.dtype == torch.float64 else torch.float32
    for name, value in (("theta", theta), ("weight", weight)):
        if value is not None and value.dtype != wanted:
            raise ValueError(f"{name}: needs {wanted} with {image.dtype} images, got {value.dtype}")


def _check_range(index: Tensor | None, num_images: int) -> None:
    if index is None or index.numel() == 0:
        return
    if index.device.type == "cpu" or _backend.is_debugged():
        low, high = torch.aminmax(index)
        if low < 0 or high >= num_images:
            raise ValueError(
                f"index: entries must be in 0..{num_images - 1}, got {int(low)}..{int(high)}"
            )
