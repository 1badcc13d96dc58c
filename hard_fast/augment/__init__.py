"""What makes the inputs: fixed and learned augmentors."""

import itertools
from typing import Annotated

import torch
from pydantic import Field

from hard_fast.augment.affine import Affine, AffineConfig
from hard_fast.augment.autoaugment import AutoAugment, AutoConfig
from hard_fast.augment.autoencoder import Autoencoder, AutoencoderConfig
from hard_fast.augment.base import Augmentor, is_learned
from hard_fast.augment.compose import Compose, ComposeConfig
from hard_fast.augment.copies import Copies, CopiesConfig
from hard_fast.augment.cutout import Cutout, CutoutConfig
from hard_fast.augment.erasing import ErasingConfig, RandomErasing
from hard_fast.augment.fixed import (
    Cutmix,
    CutmixConfig,
    Identity,
    IdentityConfig,
    Mixup,
    MixupConfig,
    MixupCutmix,
    MixupCutmixConfig,
    RandomAffineConfig,
    RandomWarp,
    ShiftsConfig,
    StandardConfig,
    standard,
)
from hard_fast.augment.generator import Generator, GeneratorConfig
from hard_fast.augment.mix import PatchMix, PatchMixConfig
from hard_fast.augment.noise import GaussianNoise, NoiseConfig
from hard_fast.augment.randomized import (
    Augmix,
    AugmixConfig,
    RandConfig,
    RandomOperations,
    TrivialConfig,
)
from hard_fast.augment.tst import Tst, TstConfig

__all__ = [
    "Augmentor",
    "AugmentorConfig",
    "build_augmentor",
    "generates",
    "is_learned",
    "learns",
    "mixes",
]

AugmentorConfig = Annotated[
    IdentityConfig
    | StandardConfig
    | RandomAffineConfig
    | ShiftsConfig
    | MixupConfig
    | CutmixConfig
    | MixupCutmixConfig
    | ErasingConfig
    | CutoutConfig
    | AutoConfig
    | TrivialConfig
    | RandConfig
    | AugmixConfig
    | NoiseConfig
    | AffineConfig
    | PatchMixConfig
    | AutoencoderConfig
    | GeneratorConfig
    | TstConfig
    | CopiesConfig
    | ComposeConfig,
    Field(discriminator="kind"),
]
# A chain holds configurations of every kind, its own among them.
ComposeConfig.model_rebuild(_types_namespace={"AugmentorConfig": AugmentorConfig})
CopiesConfig.model_rebuild(_types_namespace={"AugmentorConfig": AugmentorConfig})

_COLOURS = (TrivialConfig, RandConfig, AugmixConfig, AutoConfig, TstConfig)
_PICTURES = (*_COLOURS, ErasingConfig, CutoutConfig, AutoencoderConfig)


def build_augmentor(config: AugmentorConfig, shape: torch.Size, is_picture: bool) -> Augmentor:
    """The augmentor for images of shape [C,H,W]; `is_picture` where pixels lie in [0,1].

    Raises:  ValueError, one line, if it cannot make such images.
    """
    if not is_picture and isinstance(config, _PICTURES):
        raise ValueError(
            f"augmentor.kind = {config.kind!r}: changes pictures, bytes or numbers from 0 to 1, "
            "and these data are neither"
        )
    if isinstance(config, _COLOURS) and shape[0] not in (1, 3):
        raise ValueError(f"augmentor.kind = {config.kind!r}: needs 1 or 3 channels, not {shape[0]}")
    match config:
        case IdentityConfig():
            return Identity()
        case StandardConfig():
            return standard(config, shape[2])
        case RandomAffineConfig():
            return RandomWarp(
                rotation_deg=config.rotation_deg,
                shear_deg=config.shear_deg,
                scale=config.scale,
                translate=config.translate,
            )
        case ShiftsConfig(max_px=max_px):
            return RandomWarp(shift_px=max_px, full_px=shape[2])
        case MixupConfig(alpha=alpha):
            return Mixup(alpha)
        case CutmixConfig(alpha=alpha):
            return Cutmix(alpha)
        case MixupCutmixConfig():
            return MixupCutmix(config)
        case ErasingConfig():
            return RandomErasing(config, shape)
        case CutoutConfig():
            return Cutout(config)
        case AutoConfig():
            return AutoAugment(config, shape)
        case TrivialConfig() | RandConfig():
            return RandomOperations(config, shape)
        case AugmixConfig():
            return Augmix(config, shape)
        case NoiseConfig():
            return GaussianNoise(config, shape[0], is_picture)
        case AffineConfig():
            return Affine(config)
        case PatchMixConfig():
            return PatchMix(config, shape)
        case AutoencoderConfig():
            return Autoencoder(config, shape)
        case GeneratorConfig():
            return Generator(config, shape)
        case TstConfig():
            return Tst(config)
        case CopiesConfig(base=base, part=part, num=num):
            _check_copies(config)
            return Copies(*(build_augmentor(m, shape, is_picture) for m in (base, part)), num)
        case ComposeConfig(parts=parts):
            _check_chain(parts)
            return Compose([build_augmentor(part, shape, is_picture) for part in parts])


def _check_chain(parts: list[AugmentorConfig]) -> None:
    if any(isinstance(part, CopiesConfig) for part in parts):
        raise ValueError(
            "augmentor.parts: 'copies' makes more images than it gets, so it stands alone; put the "
            "other parts into its base or its part"
        )


def _check_copies(config: CopiesConfig) -> None:
    for key in ("base", "part"):
        maker = getattr(config, key)
        if learns(maker) or isinstance(maker, CopiesConfig):
            raise ValueError(
                f"augmentor.{key}.kind = {maker.kind!r}: 'copies' are made by what does not learn, "
                "and not of copies"
            )


def learns(config: AugmentorConfig) -> bool:
    """Whether the augmentor that a configuration describes has anything to learn."""
    match config:
        case NoiseConfig(learned=learned) | AutoencoderConfig(learned=learned):
            return learned
        case AffineConfig() | PatchMixConfig() | GeneratorConfig() | TstConfig():
            return True
        case ComposeConfig(parts=parts):
            return any(learns(part) for part in parts)
        case _:
            return False


def generates(config: AugmentorConfig) -> bool:
    """Whether the images are made from noise alone, so that the data's own are not looked at."""
    parts = config.parts if isinstance(config, ComposeConfig) else [config]
    return any(isinstance(part, GeneratorConfig) for part in parts)


def mixes(config: AugmentorConfig) -> bool:
    """Whether each image that an augmentor makes is of several, so that it has no one original.

    What a chain mixes before anything in it learns does not count: that is the original then.
    """
    match config:
        case PatchMixConfig() | MixupConfig() | CutmixConfig() | MixupCutmixConfig():
            return True
        case ComposeConfig(parts=parts):
            return any(mixes(part) for part in itertools.dropwhile(lambda p: not learns(p), parts))
        case _:
            return False
