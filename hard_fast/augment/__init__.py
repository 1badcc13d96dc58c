"""What makes the inputs: fixed and learned augmentors."""

from typing import Annotated

import torch
from pydantic import Field

from hard_fast.augment.affine import Affine, AffineConfig
from hard_fast.augment.base import Augmentor, is_learned
from hard_fast.augment.fixed import (
    Cutmix,
    CutmixConfig,
    Identity,
    IdentityConfig,
    Mixup,
    MixupConfig,
    RandomAffineConfig,
    RandomWarp,
    ShiftsConfig,
    StandardConfig,
)
from hard_fast.augment.noise import GaussianNoise, NoiseConfig

__all__ = ["Augmentor", "AugmentorConfig", "build_augmentor", "is_learned", "learns"]

AugmentorConfig = Annotated[
    IdentityConfig
    | StandardConfig
    | RandomAffineConfig
    | ShiftsConfig
    | MixupConfig
    | CutmixConfig
    | NoiseConfig
    | AffineConfig,
    Field(discriminator="kind"),
]


def build_augmentor(config: AugmentorConfig, shape: torch.Size, is_picture: bool) -> Augmentor:
    """The augmentor for images of shape [C,H,W]; `is_picture` where pixels lie in [0,1]."""
    match config:
        case IdentityConfig():
            return Identity()
        case StandardConfig(rotation_deg=rotation_deg, crop_px=crop_px, flip=flip):
            return RandomWarp(rotation_deg=rotation_deg, shift_px=crop_px, flip=flip)
        case RandomAffineConfig():
            return RandomWarp(
                rotation_deg=config.rotation_deg,
                shear_deg=config.shear_deg,
                scale=config.scale,
                translate=config.translate,
            )
        case ShiftsConfig(max_px=max_px):
            return RandomWarp(shift_px=max_px)
        case MixupConfig(alpha=alpha):
            return Mixup(alpha)
        case CutmixConfig(alpha=alpha):
            return Cutmix(alpha)
        case NoiseConfig():
            return GaussianNoise(config, shape[0], is_picture)
        case AffineConfig():
            return Affine(config)


def learns(config: AugmentorConfig) -> bool:
    """Whether the augmentor that a configuration describes has anything to learn."""
    match config:
        case NoiseConfig(learned=learned):
            return learned
        case AffineConfig():
            return True
        case _:
            return False
