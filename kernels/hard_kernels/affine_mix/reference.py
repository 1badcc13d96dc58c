"""The operation in plain PyTorch: the truth that every faster version is held to.

Letters: N images given, M images made, G images mixed into one, C channels, H rows, W columns,
P x Q patches.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

PADDING_CODES = {"zeros": 0, "border": 1, "reflection": 2}


def forward(
    image: Tensor,
    theta: Tensor | None,
    weight: Tensor | None,
    index: Tensor | None,
    padding: str,
    out_dtype: torch.dtype,
) -> Tensor:
    """See `op.affine_mix`; arguments are taken as checked."""
    # Half-precision coordinates are wrong by up to 0.84 px at 224 px, so autocast stays out.
    with torch.autocast(image.device.type, enabled=False):
        source, mixed = _to_float(image), None
        for g in range(1 if index is None else index.shape[1]):
            layer = source if index is None else source[index[:, g]]
            if theta is not None:
                grid, is_nan = _grid(theta[:, g], layer)
                layer = F.grid_sample(layer, grid, "bilinear", padding, align_corners=False)
                layer = layer.masked_fill(is_nan[:, None], torch.nan)
            if weight is not None:
                layer = layer * _per_pixel(weight[:, g], layer.shape[2:])[:, None]
            mixed = layer if mixed is None else mixed + layer
        return new_output(image, index, out_dtype).copy_(mixed)


def backward(
    grad: Tensor,
    image: Tensor,
    theta: Tensor | None,
    weight: Tensor | None,
    index: Tensor | None,
    padding: str,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of image, theta and weight; one that is not needed comes back empty.

    Args:    grad: [M,C,H,W] of the output, any float dtype.
             needs: whether the image's, theta's and weight's are wanted.
    """
    with torch.autocast(image.device.type, enabled=False):
        source = _to_float(image)
        grad = grad.to(source.dtype)
        grad_image = torch.zeros_like(source) if needs[0] else None
        _, grad_theta, grad_weight = new_gradients(image, theta, weight, [False, *needs[1:]])
        for g in range(1 if index is None else index.shape[1]):
            layer = source if index is None else source[index[:, g]]
            warped, scaled, grad_layer, grid = layer, grad, grad, None
            if theta is not None:
                grid, is_nan = _grid(theta[:, g], layer)
            if needs[2]:
                if grid is not None:
                    warped = F.grid_sample(layer, grid, "bilinear", padding, align_corners=False)
                    warped = warped.masked_fill(is_nan[:, None], torch.nan)
                grad_weight[:, g] = _per_patch((grad * warped).sum(1), weight.shape[2:])
            if weight is not None:
                scaled = grad_layer = grad * _per_pixel(weight[:, g], grad.shape[2:])[:, None]
            if grid is not None and (needs[0] or needs[1]):
                grad_layer, grad_grid = torch.ops.aten.grid_sampler_2d_backward(
                    scaled, layer, grid, 0, PADDING_CODES[padding], False, [needs[0], True]
                )
                grad_grid = grad_grid.masked_fill(is_nan[..., None], torch.nan)
                grad_theta_g = torch.ops.aten.affine_grid_generator_backward(
                    grad_grid, list(layer.shape), False
                )
                if needs[1]:
                    grad_theta[:, g] = grad_theta_g
            if needs[0] and index is None:
                grad_image = grad_layer
            elif needs[0]:
                grad_image.index_add_(0, index[:, g], grad_layer)
        found = new_gradients(image, theta, weight, [needs[0], False, False])[0]
        return (found.copy_(grad_image) if needs[0] else found), grad_theta, grad_weight


def new_output(image: Tensor, index: Tensor | None, dtype: torch.dtype) -> Tensor:
    """[M,C,H,W], not filled, channels_last in its strides even where C = 1."""
    shape = (image.shape[0] if index is None else index.shape[0], *image.shape[1:])
    layout = torch.channels_last
    return torch.empty(shape, dtype=dtype, device=image.device, memory_format=layout)


def new_gradients(
    image: Tensor, theta: Tensor | None, weight: Tensor | None, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Not filled: the image's, channels_last, theta's and weight's; empty where not needed."""
    return (
        new_output(image, None, image.dtype) if needs[0] else image.new_empty(0),
        theta.new_empty(theta.shape) if needs[1] else image.new_empty(0),
        weight.new_empty(weight.shape) if needs[2] else image.new_empty(0),
    )


def _grid(theta_M23: Tensor, layer: Tensor) -> tuple[Tensor, Tensor]:
    """[M,H,W,2] where each pixel comes from, always finite, and [M,H,W] where that is NaN.

    PyTorch's backward reads outside the image where a coordinate is NaN or beyond an integer.
    """
    grid = F.affine_grid(theta_M23, list(layer.shape), align_corners=False)
    is_nan = grid.isnan().any(-1)
    return grid.masked_fill(is_nan[..., None], 0.0).clamp(-1e6, 1e6), is_nan


def _to_float(image: Tensor) -> Tensor:
    if image.dtype == torch.uint8:
        return image / 255.0
    return image.to(torch.promote_types(image.dtype, torch.float32))


def _patch_of(size: int, num_patches: int, device: torch.device) -> Tensor:
    """[size] int64: the patch that each row or column lies in."""
    return torch.arange(size, device=device) * num_patches // size


def _per_pixel(weight_MPQ: Tensor, size: torch.Size) -> Tensor:
    """[M,H,W]: the weight of the patch that each pixel lies in."""
    row = _patch_of(size[0], weight_MPQ.shape[1], weight_MPQ.device)
    column = _patch_of(size[1], weight_MPQ.shape[2], weight_MPQ.device)
    return weight_MPQ[:, row][:, :, column]


def _per_patch(value_MHW: Tensor, size: torch.Size) -> Tensor:
    """[M,P,Q]: the sum over the pixels of each patch."""
    num_made, height, width = value_MHW.shape
    row = _patch_of(height, size[0], value_MHW.device)
    column = _patch_of(width, size[1], value_MHW.device)
    rows = value_MHW.new_zeros(num_made, size[0], width).index_add_(1, row, value_MHW)
    return rows.new_zeros(num_made, *size).index_add_(2, column, rows)
