"""Operations of the engine that PyTorch spends several passes over memory on."""

from hard_kernels.affine_mix import affine_mix

__all__ = ["affine_mix"]
