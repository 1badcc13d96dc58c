"""The operation in plain PyTorch: the truth that every faster version is held to.

Letters: N images given, M images made, G images mixed into one, C channels, H rows, W columns.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def affine_mix(
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
        source = image / 255.0 if image.dtype == torch.uint8 else image
        source = source.to(torch.promote_types(source.dtype, torch.float32))
        mixed = None
        for g in range(1 if index is None else index.shape[1]):
            layer = source if index is None else source[index[:, g]]
            if theta is not None:
                layer = _warp(layer, theta[:, g].to(source.dtype), padding)
            if weight is not None:
                layer = layer * _per_pixel(weight[:, g], layer.shape[2:])[:, None]
            mixed = layer if mixed is None else mixed + layer
        return mixed.to(out_dtype, memory_format=torch.channels_last)


def _warp(image: Tensor, theta: Tensor, padding: str) -> Tensor:
    grid = F.affine_grid(theta, list(image.shape), align_corners=False)
    return F.grid_sample(image, grid, "bilinear", padding, align_corners=False)


def _per_pixel(weight_MPQ: Tensor, size: torch.Size) -> Tensor:
    """[M,H,W]: the weight of the patch that each pixel lies in."""
    row = torch.arange(size[0], device=weight_MPQ.device) * weight_MPQ.shape[1] // size[0]
    column = torch.arange(size[1], device=weight_MPQ.device) * weight_MPQ.shape[2] // size[1]
    return weight_MPQ[:, row][:, :, column]
