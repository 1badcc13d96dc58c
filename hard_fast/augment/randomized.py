"""TrivialAugment, RandAugment and AugMix: operations drawn at random, each image its own.

All work on bytes, so floats from an earlier part of a chain are rounded, and no gradient passes.
Warps are bilinear and fill with zeros. Letters: B images, L operations in a row, N chains.
"""

from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

import torch
from hard_kernels import affine_mix
from pydantic import Field
from torch import Tensor

from hard_fast.augment.base import Augmentor, to_float
from hard_fast.augment.operations import Operation, apply_each, to_bytes
from hard_fast.runtime.configfile import Config
from hard_fast.runtime.cycle import Cycle, within
from hard_fast.types import Noise, View

_GEOMETRY = range(Operation.SHEAR_X, Operation.ROTATE + 1)
_COLOURS = range(Operation.BRIGHTNESS, Operation.SHARPNESS + 1)


class TrivialConfig(Config):
    """TrivialAugment, "wide": one operation at a random level (arXiv:2103.10158)."""

    kind: Literal["trivial"] = "trivial"
    bins: int = Field(default=31, ge=2)
    """Levels of each operation."""
    strength: Annotated[float | Cycle, within(least=0.0, most=1.0)] = 1.0
    """Share of the levels, from the weakest on, that may be drawn."""


class RandConfig(Config):
    """RandAugment: so many operations at one level (arXiv:1909.13719)."""

    kind: Literal["rand"] = "rand"
    num: int = Field(default=2, ge=1)
    magnitude: Annotated[int | Cycle, within(least=0, most=30)] = 9
    """Of 0 to 30; of a cycle the nearest whole one."""


class AugmixConfig(Config):
    """AugMix without its consistency loss: a mixture of chains (arXiv:1912.02781)."""

    kind: Literal["augmix"] = "augmix"
    severity: Annotated[int | Cycle, within(least=1, most=10)] = 3
    """Levels are drawn from so many of ten; of a cycle the nearest whole number."""
    width: int = Field(default=3, ge=1)
    """N."""
    max_depth: int = Field(default=3, ge=1)
    """Of a chain: 1 to so many operations, drawn for each."""
    alpha: float = Field(default=1.0, gt=0.0)
    """Of the chains' Dirichlet weights and of the original's Beta weight."""
    all_operations: bool = False
    """Brightness, colour, contrast and sharpness too. The paper leaves them out, as corruptions
    of ImageNet-C that it tests on."""


class Space(NamedTuple):
    """The levels of the operations that may be drawn, from first to last bin.

    translate: px, or a share of the side where `is_share`. enhance: factor - 1.
    """

    shear: float
    translate: float
    is_share: bool
    degrees: float
    enhance: float
    bits: tuple[int, int]

    def levels(self, height: int, width: int, bins: int) -> Tensor:
        """[operations,bins]: rows are values of Operation; zeros where it has no level."""
        shift_y, shift_x = (
            (side if self.is_share else 1) * self.translate for side in (height, width)
        )
        last = dict.fromkeys((Operation.SHEAR_X, Operation.SHEAR_Y), self.shear)
        last |= {Operation.TRANSLATE_X: shift_x, Operation.TRANSLATE_Y: shift_y}
        last |= {Operation.ROTATE: self.degrees, **dict.fromkeys(_COLOURS, self.enhance)}
        levels = torch.zeros(len(Operation), bins)
        for operation, end in last.items():
            levels[operation] = torch.linspace(0.0, end, bins)
        levels[Operation.POSTERIZE] = torch.linspace(*map(float, self.bits), bins).round()
        levels[Operation.SOLARIZE] = torch.linspace(1.0, 0.0, bins)
        return levels


TRIVIAL = Space(0.99, 32.0, is_share=False, degrees=135.0, enhance=0.99, bits=(8, 2))
RAND = Space(0.3, 150 / 331, is_share=True, degrees=30.0, enhance=0.9, bits=(8, 4))
AUGMIX = Space(0.3, 1 / 3, is_share=True, degrees=30.0, enhance=0.9, bits=(4, 0))


class Randomized(Augmentor):
    """Rows of operations drawn uniformly, each at the level of one of its bins.

    Args:    levels: [operations,bins], for pictures of `full_px` columns.
    """

    def __init__(self, operations: Sequence[int], levels: Tensor, full_px: int) -> None:
        super().__init__()
        self.full_px = full_px
        self.register_buffer("operations", torch.tensor(list(operations)), persistent=False)
        self.register_buffer("levels", levels, persistent=False)
        has_sign = torch.zeros(len(Operation), dtype=torch.bool)
        has_sign[[*_GEOMETRY, *_COLOURS]] = True
        self.register_buffer("has_sign", has_sign, persistent=False)

    def choose(self, uniform: Tensor, width_px: int) -> tuple[Tensor, Tensor]:
        """Operations and their levels from [...,3] draws in [0,1): which, which bin, which sign.

        Args:    width_px: of the pictures that they are for.
        """
        operation = self.operations[_place(uniform[..., 0], len(self.operations))]
        bin = self.bins(uniform[..., 1]).clamp(max=self.levels.shape[1] - 1)
        level = self.fitted(operation, self.levels[operation, bin], width_px)
        is_negative = self.has_sign[operation] & (uniform[..., 2] < 0.5)
        return operation, torch.where(is_negative, -level, level)

    def fitted(self, operation: Tensor, level: Tensor, width_px: int) -> Tensor:
        """The same levels in pictures of another width, in which shifts are as much shorter."""
        along_x, along_y = Operation.TRANSLATE_X.value, Operation.TRANSLATE_Y.value
        is_shift = (operation == along_x) | (operation == along_y)
        return torch.where(is_shift, level * (width_px / self.full_px), level)

    def bins(self, uniform: Tensor) -> Tensor:
        """int64 bins, from the weakest on, from draws in [0,1); of the same shape."""
        raise NotImplementedError


class RandomOperations(Randomized):
    """L operations in a row: TrivialAugment and RandAugment.

    Source:  ranges and bins as in torchvision 0.29's TrivialAugmentWide and RandAugment, which
             take the nearest pixel in warps, where this is bilinear.
    """

    def __init__(self, config: TrivialConfig | RandConfig, shape: torch.Size) -> None:
        has_one_level = isinstance(config, RandConfig)
        space, num_bins = (RAND, 31) if has_one_level else (TRIVIAL, config.bins)
        levels = space.levels(shape[1], shape[2], num_bins)
        super().__init__(list(Operation), levels, shape[2])
        self.has_one_level, self.num = has_one_level, config.num if has_one_level else 1
        self.hold(strength=config.magnitude if has_one_level else config.strength)

    def bins(self, uniform: Tensor) -> Tensor:
        """The one of the magnitude, or drawn uniformly from the weakest ones."""
        if self.has_one_level:
            return self.strength.round().long().expand_as(uniform)
        return (uniform * (self.strength * self.levels.shape[1])).long()

    def draw_noise(self, shape: torch.Size, generator: torch.Generator) -> Noise:
        """uniform: [B,L,3] in [0,1)."""
        return {"uniform": _uniform((shape[0], self.num, 3), generator)}

    def forward(self, view: View, noise: Noise) -> View:
        """The images after the last operation."""
        operation_BL, level_BL = self.choose(noise["uniform"], view.image.shape[3])
        image = to_bytes(view.image)
        for place in range(self.num):
            image = apply_each(image, operation_BL[:, place], level_BL[:, place])
        image = to_float(image).contiguous(memory_format=torch.channels_last)
        return View(image, view.target_BK)


class Augmix(Randomized):
    """Chains of operations on copies of an image, and their weighted sum with the image.

    Source:  arXiv:1912.02781, algorithm 1; ranges and bins as in torchvision 0.29's AugMix. The
             sum stays float, where theirs is cut off to bytes.
    """

    def __init__(self, config: AugmixConfig, shape: torch.Size) -> None:
        left_out = {Operation.IDENTITY, *([] if config.all_operations else _COLOURS)}
        levels = AUGMIX.levels(shape[1], shape[2], 10)
        super().__init__([one for one in Operation if one not in left_out], levels, shape[2])
        self.hold(severity=config.severity)
        self.width, self.max_depth, self.alpha = config.width, config.max_depth, config.alpha

    def bins(self, uniform: Tensor) -> Tensor:
        """Drawn uniformly from the weakest ones."""
        return (uniform * self.severity.round()).long()

    def draw_noise(self, shape: torch.Size, generator: torch.Generator) -> Noise:
        """uniform: [B,N,L,3], depth: [B,N], both in [0,1). weight: [B,1+N], sums to one."""
        num, device = shape[0], generator.device
        whole = torch.full((num, 2), self.alpha, device=device)
        own = torch._sample_dirichlet(whole, generator=generator)[:, :1]
        parts = torch.full((num, self.width), self.alpha, device=device)
        chains = torch._sample_dirichlet(parts, generator=generator)
        return {
            "uniform": _uniform((num, self.width, self.max_depth, 3), generator),
            "depth": _uniform((num, self.width), generator),
            "weight": torch.cat([own, (1.0 - own) * chains], 1),
        }

    def forward(self, view: View, noise: Noise) -> View:
        """The mixtures."""
        original = to_bytes(view.image)
        num = len(original)
        operation, level = self.choose(noise["uniform"].flatten(0, 1), original.shape[3])
        depth = 1 + _place(noise["depth"], self.max_depth).flatten()
        chains = original.repeat_interleave(self.width, 0, output_size=num * self.width)
        for place in range(self.max_depth):
            still = torch.where(place < depth, operation[:, place], Operation.IDENTITY.value)
            chains = apply_each(chains, still, level[:, place])
        own = torch.arange(num, device=original.device)
        members = torch.arange(num, num * (1 + self.width), device=original.device)
        index = torch.cat([own[:, None], members.view(num, self.width)], 1)
        weight = noise["weight"][:, :, None, None]
        image = affine_mix(torch.cat([original, chains]), None, weight, index)
        # Weights that sum to one in fp32 may do so to a last digit above.
        return View(image.clamp(max=1.0), view.target_BK)


def _place(uniform: Tensor, num: int) -> Tensor:
    """int64 in 0..num-1 from draws in [0,1)."""
    return (uniform * num).long().clamp(max=num - 1)


def _uniform(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device)
