"""Warp, patch-mix, scale and lay out a batch."""

from hard_kernels.affine_mix.op import affine_mix

__all__ = ["affine_mix"]
