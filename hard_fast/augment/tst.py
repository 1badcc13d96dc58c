"""TST: colour and geometry operations whose probabilities and magnitudes are learned.

Letters: B images, C channels (1 or 3), H rows, W columns, O operations, L of them with a magnitude,
G of those geometric.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from hard_kernels import affine_mix
from pydantic import Field
from torch import Tensor, nn

from hard_fast.augment.base import Augmentor, to_float
from hard_fast.augment.operations import Operation, apply_each, to_bytes
from hard_fast.runtime.configfile import Config
from hard_fast.types import Noise, View

# Operations with a magnitude, geometric ones first, and what a magnitude of 1 means: columns
# per row, share of the picture's side, degrees, factor - 1.
_GEOMETRY = {
    "shear_x": 0.3,
    "shear_y": 0.3,
    "translate_x": 150 / 331,
    "translate_y": 150 / 331,
    "rotate": 30.0,
}
_ENHANCE = {"brightness": 0.9, "color": 0.9, "contrast": 0.9, "sharpness": 0.9}
_LEARNED = (*_GEOMETRY, *_ENHANCE, "posterize", "solarize")
OPERATIONS = (*_LEARNED, "equalize", "invert", "cut")
_MOST_BITS_LOST = 4.0
_GREY = (0.2989, 0.587, 0.114)
# Of levels in [0,1]: over so much of them the gradient spreads a threshold.
_SOFT_LEVELS = 0.05


class TstConfig(Config):
    """TST's augmentor; the defaults are the published settings."""

    kind: Literal["tst"] = "tst"
    num: int = Field(default=4, ge=1, le=len(OPERATIONS))
    """Operations picked at random for each image; their changes are added up, not chained."""
    temperature: float = Field(default=0.05, gt=0.0)
    """Of the relaxed Bernoulli choice: the lower, the closer a choice is to yes or no."""
    probability: float = Field(default=0.5, gt=0.0, lt=1.0)
    """Of a picked operation to be carried out, at the start."""
    magnitude: float = Field(default=0.5, gt=0.0, lt=1.0)
    """Of each operation, of AutoAugment's largest, at the start."""
    cut: float = Field(default=1.0, gt=0.0, le=1.0)
    """Side of the square that is cut out, as a share of the picture's, before the edge cuts it."""


class Tst(Augmentor):
    """x~ = x + sum over picked operations of b (op(x, m) - x), b a relaxed Bernoulli choice.

    The published code trains a small network per operation to imitate it, since a gradient is to
    reach the magnitude. Here each is the operation itself. The warps, brightness, colour, contrast
    and sharpness are differentiable as they are. `posterize` and `solarize` have the exact values,
    and the gradient of what they do on average over the levels near a threshold (straight-through).
    `equalize`, `invert` and `cut` have no magnitude, and pass no gradient to the picture through
    `equalize`, which works on bytes.

    Source:  Shao et al. 2023, arXiv:2212.05422, and shaoshitong/TST@18003a9 `Augmention.py`.
             Deviations: picks, choices and signs are drawn for each image, not for a whole batch;
             signs at all, which the code draws in its imitators' training alone; the Bernoulli's
             logit is the parameter itself, whose sigmoid the code squashes once more, so that no
             operation gets below a half; the sum is cut off at black and white.
    """

    def __init__(self, config: TstConfig) -> None:
        super().__init__()
        self.num, self.temperature, self.cut = config.num, config.temperature, config.cut
        logit = _logit(torch.tensor([config.probability, config.magnitude]))
        self.choice = nn.Parameter(logit[0].repeat(len(OPERATIONS)))
        self.magnitude = nn.Parameter(logit[1].repeat(len(_LEARNED)))
        largest = [*_GEOMETRY.values(), *_ENHANCE.values(), 1.0, 1.0]
        self.register_buffer("largest", torch.tensor(largest), persistent=False)

    def draw_noise(self, shape: torch.Size, generator: torch.Generator) -> Noise:
        """choice, order: [B,O], sign: [B,L], centre: [B,2] y and x, all uniform in [0,1)."""

        def uniform(num: int) -> Tensor:
            return torch.rand(shape[0], num, generator=generator, device=generator.device)

        num_all = len(OPERATIONS)
        noise = {"choice": uniform(num_all), "order": uniform(num_all)}
        return noise | {"sign": uniform(len(_LEARNED)), "centre": uniform(2)}

    def forward(self, view: View, noise: Noise) -> View:
        """Each image with the changes of its own operations; labels stay."""
        image = to_float(view.image)
        share_BO = self.shares(noise)
        size = torch.sigmoid(self.magnitude) * self.largest
        signed_BL = torch.where(noise["sign"] < 0.5, -size, size)
        num_warps = len(_GEOMETRY)
        theta = _matrices(signed_BL[:, :num_warps], image.shape[2:])
        own = torch.arange(len(image), device=image.device)[:, None].expand(-1, num_warps)
        weight = share_BO[:, :num_warps, None, None]
        warped = affine_mix(view.image, theta, weight, own.contiguous())
        made = warped + image * (1.0 - share_BO.sum(1)).view(-1, 1, 1, 1)
        for place, name in enumerate(OPERATIONS[num_warps:], start=num_warps):
            if name in _ENHANCE:
                changed = _enhance(name, image, signed_BL[:, place])
            elif name in _LEARNED:
                changed = _threshold(name, image, size[place])
            else:
                changed = self._without_magnitude(name, image, noise)
            made = made + share_BO[:, place].view(-1, 1, 1, 1) * changed
        made = made.clamp(0.0, 1.0).contiguous(memory_format=torch.channels_last)
        return View(made, view.target_BK)

    def shares(self, noise: Noise) -> Tensor:
        """[B,O] how much of each operation an image gets, 0 where it is not picked."""
        order_BO = noise["order"]
        last = order_BO.topk(self.num, dim=1, largest=False).values[:, -1:]
        logistic = _logit(noise["choice"].clamp(1e-6, 1.0 - 1e-6))
        chosen_BO = torch.sigmoid((logistic + self.choice) / self.temperature)
        return torch.where(order_BO <= last, chosen_BO, 0.0)

    def _without_magnitude(self, name: str, image: Tensor, noise: Noise) -> Tensor:
        if name == "invert":
            return 1.0 - image
        if name == "equalize":
            flat = to_bytes(image.detach())
            which = torch.full_like(noise["order"][:, 0], Operation.EQUALIZE.value).long()
            return to_float(apply_each(flat, which, torch.zeros_like(noise["order"][:, 0])))
        inside = []
        for axis, length in enumerate(image.shape[2:]):
            half = max(1, round(self.cut * length) // 2)
            centre = torch.floor(noise["centre"][:, axis, None] * length)
            pixel = torch.arange(length, device=image.device)
            inside.append((pixel >= centre - half) & (pixel < centre + half))
        is_cut = inside[0][:, None, :, None] & inside[1][:, None, None, :]
        return torch.where(is_cut, 0.0, image)


def _logit(probability: Tensor) -> Tensor:
    return torch.log(probability) - torch.log1p(-probability)


def _matrices(amount_BG: Tensor, size: torch.Size) -> Tensor:
    """[B,G,2,3] output to input, normalised, one per warp; shears and turns act in pixels."""
    aspect = size[0] / size[1]
    shear_x, shear_y, right, down, degrees = amount_BG.unbind(1)
    angle = degrees * (math.pi / 180.0)
    cos, sin = torch.cos(angle), torch.sin(angle)
    one, zero = torch.ones_like(angle), torch.zeros_like(angle)
    rows = [
        (one, shear_x * aspect, zero, zero, one, zero),
        (one, zero, zero, shear_y / aspect, one, zero),
        (one, zero, -2.0 * right, zero, one, zero),
        (one, zero, zero, zero, one, -2.0 * down),
        (cos, -sin * aspect, zero, sin / aspect, cos, zero),
    ]
    return torch.stack([torch.stack(row, 1) for row in rows], 1).unflatten(2, (2, 3))


def _enhance(name: str, image: Tensor, amount_B: Tensor) -> Tensor:
    """The images led away from their dull versions by 1 + amount, as torchvision's blends."""
    if name == "brightness":
        dull = torch.zeros_like(image)
    elif name == "sharpness":
        dull = _blurred(image)
    else:
        dull = _grey(image)
        dull = dull.mean((1, 2, 3), keepdim=True) if name == "contrast" else dull
    return (image + (image - dull) * amount_B.view(-1, 1, 1, 1)).clamp(0.0, 1.0)


def _threshold(name: str, image: Tensor, size: Tensor) -> Tensor:
    """Posterised to 8 - 4 size bits, or inverted from the level 1 - size on."""
    if name == "posterize":
        step = torch.exp2(_MOST_BITS_LOST * size) / 255.0
        place = image / step
        # Levels on a step's edge belong above it, whatever rounding did to them.
        share = (place - torch.floor(place + 1e-3)).detach()
        # Exact in value. That a pixel keeps its share of a step is right on average over levels.
        return image - share * step
    level = 1.0 - size
    soft = torch.sigmoid((image - level) / _SOFT_LEVELS)
    is_above = soft + ((image >= level).float() - soft).detach()
    return image + is_above * (1.0 - 2.0 * image)


def _grey(image: Tensor) -> Tensor:
    if image.shape[1] == 1:
        return image
    red, green, blue = image.split(1, dim=1)
    return _GREY[0] * red + _GREY[1] * green + _GREY[2] * blue


def _blurred(image: Tensor) -> Tensor:
    """A 3x3 mean in which the middle counts five times; the outermost pixels stay."""
    three = image[:, :, :-2] + image[:, :, 1:-1] + image[:, :, 2:]
    nine = three[..., :-2] + three[..., 1:-1] + three[..., 2:]
    middle = image[:, :, 1:-1, 1:-1]
    return image + F.pad((nine + 4.0 * middle) / 13.0 - middle, (1, 1, 1, 1))
