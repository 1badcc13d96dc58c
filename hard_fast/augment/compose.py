"""A chain of augmentors that is one augmentor: VAE-Affine, or any other order."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import nn

from hard_fast.augment.base import Augmentor, is_learned
from hard_fast.augment.mix import PatchMix
from hard_fast.augment.randomized import Randomized
from hard_fast.runtime.configfile import Config
from hard_fast.types import Noise, View

if TYPE_CHECKING:
    from hard_fast.augment import AugmentorConfig


class ComposeConfig(Config):
    """Augmentors in the order in which they act; it learns if any of them does.

    The paper names VAE-Affine without its order. The order of its name is the better one where the
    autoencoder is a reconstruction: it reads the untouched pictures that it was trained on.
    """

    kind: Literal["compose"] = "compose"
    parts: list["AugmentorConfig"] = Field(min_length=1)


class Compose(Augmentor):
    """The first part's images go into the second, and so on. One bank entry holds all parts.

    Noise of part i carries its number: "0.theta". After a part that makes one image of a group the
    following ones draw for so many fewer. What the parts before the first that learns make is the
    original that an augmentor's loss compares with.
    """

    def __init__(self, parts: Sequence[Augmentor]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        # Noted now: the drawn copy's parameters are frozen.
        self.first_learned = next((n for n, part in enumerate(parts) if is_learned(part)), None)
        self.merged = math.prod(num_merged(part) for part in parts)
        # A part's groups are of images that earlier parts made, each of them from several.
        before, self.group = 1, 1
        for number, part in enumerate(parts):
            on_bytes = any(isinstance(module, Randomized) for module in part.modules())
            if on_bytes and any(is_learned(p) for p in parts[:number]):
                raise ValueError(
                    f"augmentor.parts: number {number} works on bytes, so no gradient reaches the "
                    "parts before it that learn; put it first"
                )
            self.group = math.lcm(self.group, before * part.group)
            before *= num_merged(part)

    def draw_noise(self, shape: torch.Size, generator: torch.Generator) -> Noise:
        """What each part draws for the images that reach it."""
        noise, num = {}, shape[0]
        for number, part in enumerate(self.parts):
            drawn = part.draw_noise(torch.Size((num, *shape[1:])), generator)
            noise |= {f"{number}.{name}": value for name, value in drawn.items()}
            num //= num_merged(part)
        return noise

    def forward(self, view: View, noise: Noise) -> View:
        """The images after the last part, and what reached the first that learns."""
        original = None
        for number, part in enumerate(self.parts):
            prefix = f"{number}."
            own = {
                name.removeprefix(prefix): value
                for name, value in noise.items()
                if name.startswith(prefix)
            }
            if number and number == self.first_learned:
                original = view.image
            view = part(view, own)
            if number == self.first_learned and view.original is not None:
                original = view.original
        return View(view.image, view.target_BK, original)


def num_merged(augmentor: Augmentor) -> int:
    """How many images become one; mixup's pairs stay two."""
    match augmentor:
        case PatchMix():
            return augmentor.group
        case Compose():
            return augmentor.merged
        case _:
            return 1
