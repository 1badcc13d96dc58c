"""Augmentations that do not learn: batched on the device, each one call of `affine_mix`.

Mixing pairs each image with its neighbour (0 with 1, 2 with 3 ...): the loader's order is already
random, and pairs never cross ranks, so many processes mix what one would.
"""

import math
from typing import Annotated, Literal

import torch
from hard_kernels import affine_mix
from pydantic import Field, field_validator
from torch import Tensor

from hard_fast.augment.base import Augmentor, to_float
from hard_fast.runtime.configfile import Config
from hard_fast.runtime.cycle import Cycle, within
from hard_fast.types import Noise, View

_Degrees = Annotated[float | Cycle, within(least=0.0, most=180.0)]
_Pixels = Annotated[int | Cycle, within(least=0)]


class IdentityConfig(Config):
    """The images as they are."""

    kind: Literal["identity"] = "identity"


class StandardConfig(Config):
    """Random rotation, crop and horizontal flip (HARD Table 2; the authors' 15 deg and 4 px)."""

    kind: Literal["standard"] = "standard"
    rotation_deg: _Degrees = 15.0
    crop_px: _Pixels = 4
    """Zero padding on each side before the crop to the same size, a whole number of a cycle's."""
    flip: bool = True


class RandomAffineConfig(Config):
    """Parameters drawn uniformly; the defaults keep a 20 px digit on its 28 px canvas visible."""

    kind: Literal["random_affine"] = "random_affine"
    rotation_deg: _Degrees = 30.0
    translate: Annotated[float | Cycle, within(least=0.0)] = 0.12
    """Largest shift along each axis, as a share of the picture's side."""
    scale: tuple[float, float] = (0.7, 1.1)
    """Smallest and largest magnification."""
    shear_deg: Annotated[float | Cycle, within(least=0.0, most=89.0)] = 10.0

    @field_validator("scale")
    @classmethod
    def _is_a_range(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if not 0.0 < scale[0] <= scale[1]:
            raise ValueError(f"scale = {list(scale)}: must be [smallest, largest], above 0")
        return scale


class ShiftsConfig(Config):
    """Whole-pixel shifts, uniform over the square of shifts up to `max_px` along each axis."""

    kind: Literal["shifts"] = "shifts"
    max_px: _Pixels = 3


class MixupConfig(Config):
    """A blend of two images with weight Beta(alpha, alpha) (arXiv:1710.09412)."""

    kind: Literal["mixup"] = "mixup"
    alpha: float = Field(default=1.0, gt=0.0)


class CutmixConfig(Config):
    """A box of one image pasted into another, area 1 - Beta(alpha, alpha) (arXiv:1905.04899)."""

    kind: Literal["cutmix"] = "cutmix"
    alpha: float = Field(default=1.0, gt=0.0)


class MixupCutmixConfig(Config):
    """Mixup or cutmix, drawn for each batch: what the paper's KD rows and timm's recipes use."""

    kind: Literal["mixup_cutmix"] = "mixup_cutmix"
    mixup_alpha: float = Field(default=1.0, gt=0.0)
    cutmix_alpha: float = Field(default=1.0, gt=0.0)
    cutmix_share: Annotated[float | Cycle, within(least=0.0, most=1.0)] = 0.5
    """Of the batches."""


class Identity(Augmentor):
    """The images as floats and nothing else."""

    def draw_noise(self, shape: torch.Size, generator: torch.Generator) -> Noise:
        """Nothing is random here."""
        return {}

    def forward(self, view: View, noise: Noise) -> View:
        """The same images, float."""
        return View(to_float(view.image), view.target_BK)


class RandomWarp(Augmentor):
    """A warp per image from uniform ranges: standard, random affine and shifts are cases of it.

    Args:    shift_px: in pictures of `full_px` columns; in smaller ones as much less. None of the
                       latter: in all.
    """

    def __init__(
        self,
        *,
        rotation_deg: float | Cycle = 0.0,
        shear_deg: float | Cycle = 0.0,
        scale: tuple[float, float] = (1.0, 1.0),
        shift_px: int | Cycle | None = None,
        full_px: int | None = None,
        translate: float | Cycle = 0.0,
        flip: bool = False,
    ) -> None:
        super().__init__()
        self.scale, self.flip, self.is_whole = scale, flip, shift_px is not None
        self.full_px = full_px
        self.hold(rotation=_radians(rotation_deg), shear=_radians(shear_deg))
        self.hold(shift=translate if shift_px is None else shift_px)

    def draw_noise(self, shape: torch.Size, generator: torch.Generator) -> Noise:
        """uniform: [B,6] in [0,1): rotation, shear, scale, flip, shift along x and y."""
        return {"uniform": torch.rand(shape[0], 6, generator=generator, device=generator.device)}

    def forward(self, view: View, noise: Noise) -> View:
        """Each image warped by its own matrix."""
        theta = self.matrix(noise["uniform"], view.image.shape[2:])
        return View(affine_mix(view.image, theta), view.target_BK)

    def matrix(self, uniform: Tensor, size: torch.Size) -> Tensor:
        """[B,1,2,3]: output to input, normalised coordinates, from [B,6] uniform draws."""
        signed = 2.0 * uniform - 1.0
        angle, shear = signed[:, 0] * self.rotation, torch.tan(signed[:, 1] * self.shear)
        low, high = self.scale
        zoom = 1.0 / (low + (high - low) * uniform[:, 2])
        mirror = torch.where(uniform[:, 3] < 0.5, -1.0, 1.0) if self.flip else 1.0
        # Rotation and shear act in pixels, so an oblong picture is not skewed by them.
        aspect = size[0] / size[1]
        cos, sin = torch.cos(angle), torch.sin(angle)
        row_x = torch.stack([cos * zoom * mirror, (shear * cos - sin) * zoom * aspect], 1)
        row_y = torch.stack([sin * zoom * mirror / aspect, (shear * sin + cos) * zoom], 1)
        offset = self._offset(uniform[:, 4:], size)
        return torch.stack(
            [torch.cat([row_x, offset[:, :1]], 1), torch.cat([row_y, offset[:, 1:]], 1)], 1
        )[:, None]

    def _offset(self, uniform_B2: Tensor, size: torch.Size) -> Tensor:
        if not self.is_whole:
            return (2.0 * uniform_B2 - 1.0) * (2.0 * self.shift)
        # Whole pixels, each of the 2 * shift_px + 1 places equally likely.
        shift_px = (self.shift * (size[1] / (self.full_px or size[1]))).round()
        moved = torch.floor(uniform_B2 * (2.0 * shift_px + 1.0)) - shift_px
        return moved * uniform_B2.new_tensor([2.0 / size[1], 2.0 / size[0]])


def standard(config: StandardConfig, full_px: int) -> RandomWarp:
    """Rotation, crop and flip, for pictures of so many columns."""
    turned = {"rotation_deg": config.rotation_deg, "flip": config.flip}
    return RandomWarp(**turned, shift_px=config.crop_px, full_px=full_px)


class Mixup(Augmentor):
    """Each image blended with its neighbour, and so are their labels."""

    group = 2

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha

    def draw_noise(self, shape: torch.Size, generator: torch.Generator) -> Noise:
        """share: [B] Beta(alpha, alpha), the image's own share."""
        return {"share": _beta(self.alpha, shape[0], generator)}

    def forward(self, view: View, noise: Noise) -> View:
        """The blends."""
        share = noise["share"][:, None, None]
        weight = torch.stack([share, 1.0 - share], 1)
        image = affine_mix(view.image, None, weight, _pairs(view.image))
        return View(image, _mix_targets(view.target_BK, noise["share"]))


class Cutmix(Augmentor):
    """A box from the neighbour in each image; labels by the areas that are really visible."""

    group = 2

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha

    def draw_noise(self, shape: torch.Size, generator: torch.Generator) -> Noise:
        """share: [B] Beta(alpha, alpha), the image's own area. centre: [B,2] in [0,1), y and x."""
        centre = torch.rand(shape[0], 2, generator=generator, device=generator.device)
        return {"share": _beta(self.alpha, shape[0], generator), "centre": centre}

    def forward(self, view: View, noise: Noise) -> View:
        """The images with their boxes; a box is cut off at the picture's edge, as published."""
        box = _boxes(noise["share"], noise["centre"], view.image.shape[2:])
        image = affine_mix(view.image, None, torch.stack([1.0 - box, box], 1), _pairs(view.image))
        return View(image, _mix_targets(view.target_BK, 1.0 - box.mean((1, 2))))


class MixupCutmix(Augmentor):
    """All images of a batch by Mixup, or all by Cutmix."""

    group = 2

    def __init__(self, config: MixupCutmixConfig) -> None:
        super().__init__()
        self.mixup, self.cutmix = Mixup(config.mixup_alpha), Cutmix(config.cutmix_alpha)
        self.hold(cutmix_share=config.cutmix_share)

    def draw_noise(self, shape: torch.Size, generator: torch.Generator) -> Noise:
        """mixup_share, cutmix_share, centre: as for the two. switch: [] in [0,1)."""
        box = self.cutmix.draw_noise(shape, generator)
        return {
            "mixup_share": self.mixup.draw_noise(shape, generator)["share"],
            "cutmix_share": box["share"],
            "centre": box["centre"],
            "switch": torch.rand((), generator=generator, device=generator.device),
        }

    def forward(self, view: View, noise: Noise) -> View:
        """The blends or the images with boxes; one graph and one pass for both."""
        box = _boxes(noise["cutmix_share"], noise["centre"], view.image.shape[2:])
        blend = (1.0 - noise["mixup_share"])[:, None, None]
        other = torch.where(noise["switch"] < self.cutmix_share, box, blend)
        image = affine_mix(
            view.image, None, torch.stack([1.0 - other, other], 1), _pairs(view.image)
        )
        return View(image, _mix_targets(view.target_BK, 1.0 - other.mean((1, 2))))


def _radians(degrees: float | Cycle) -> float | Cycle:
    factor = math.pi / 180.0
    return degrees.times(factor) if isinstance(degrees, Cycle) else degrees * factor


def _boxes(share_B: Tensor, centre_B2: Tensor, size: torch.Size) -> Tensor:
    """[B,H,W] 1.0 in boxes of area 1 - share around their centres."""
    side = torch.sqrt(1.0 - share_B)
    row = _inside(centre_B2[:, 0], side, size[0])
    column = _inside(centre_B2[:, 1], side, size[1])
    return row[:, :, None] * column[:, None, :]


def _beta(alpha: float, num: int, generator: torch.Generator) -> Tensor:
    """[num] draws from Beta(alpha, alpha), on the generator's device."""
    concentration = torch.full((num, 2), alpha, device=generator.device)
    return torch._sample_dirichlet(concentration, generator=generator)[:, 0]


def _inside(centre_B: Tensor, side_B: Tensor, length: int) -> Tensor:
    """[B,length] 1.0 where a pixel lies in the box along one axis."""
    pixel = torch.arange(length, device=centre_B.device)
    start = torch.floor((centre_B - side_B / 2) * length + 0.5)[:, None]
    end = torch.floor((centre_B + side_B / 2) * length + 0.5)[:, None]
    return ((pixel >= start) & (pixel < end)).float()


def _pairs(image: Tensor) -> Tensor:
    """[B,2] each image's own index and its neighbour's."""
    own = torch.arange(image.shape[0], device=image.device)
    return torch.stack([own, own ^ 1], 1)


def _mix_targets(target_BK: Tensor | None, share_B: Tensor) -> Tensor | None:
    if target_BK is None:
        return None
    neighbour = target_BK.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
    return torch.lerp(neighbour, target_BK, share_B[:, None])
