"""The contract of `affine_mix`.

Letters: N images given, M images made, G images mixed into one, C channels, H rows, W columns,
Hp x Wp patches.
"""

import torch
from torch import Tensor

from hard_kernels.affine_mix import reference

PADDINGS = ("zeros", "border", "reflection")


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

    Args:    image: [N,C,H,W] uint8 (scaled by 1/255) or float.
             theta: [M,G,2,3] float, output to input in normalised coordinates as
                    `F.affine_grid(align_corners=False)` has them; None copies pixels exactly.
             weight: [M,G,Hp,Wp] float; None needs G = 1 and means 1.
             index: [M,G] int64 into N; None means image m itself, and needs M = N and G = 1.
             padding: what lies outside the image: zeros, border or reflection.
    Returns: [M,C,H,W] `out_dtype`, channels_last; computed in fp32 whatever autocast says.
             Differentiable in theta, weight and a float image.
    Raises:  ValueError that names the argument.
    """
    _check(image, theta, weight, index, padding)
    return reference.affine_mix(image, theta, weight, index, padding, out_dtype)


def _check(
    image: Tensor,
    theta: Tensor | None,
    weight: Tensor | None,
    index: Tensor | None,
    padding: str,
) -> None:
    if image.ndim != 4:
        raise ValueError(f"image: needs shape [N,C,H,W], got {list(image.shape)}")
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise ValueError(f"image: needs dtype uint8 or float, got {image.dtype}")
    if padding not in PADDINGS:
        raise ValueError(f"padding: {padding!r} is none of {', '.join(PADDINGS)}")
    if index is not None and (index.ndim != 2 or index.dtype != torch.int64):
        raise ValueError(f"index: needs [M,G] int64, got {list(index.shape)} {index.dtype}")
    num_made, num_mixed = (image.shape[0], 1) if index is None else index.shape
    if theta is not None and tuple(theta.shape) != (num_made, num_mixed, 2, 3):
        raise ValueError(
            f"theta: needs shape {[num_made, num_mixed, 2, 3]}, got {list(theta.shape)}"
        )
    if weight is None and num_mixed > 1:
        raise ValueError(f"weight: needed to mix groups of {num_mixed}")
    if weight is not None and (weight.ndim != 4 or weight.shape[:2] != (num_made, num_mixed)):
        raise ValueError(
            f"weight: needs shape [{num_made},{num_mixed},Hp,Wp], got {list(weight.shape)}"
        )
