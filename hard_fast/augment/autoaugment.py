"""AutoAugment: one of 25 learned policies per image, each of two operations.

It works on bytes, so no gradient passes. Letters: B images, P policies.
"""

from typing import Literal

import torch

from hard_fast.augment.base import to_float
from hard_fast.augment.operations import Operation, apply_each, to_bytes
from hard_fast.augment.randomized import RAND, Randomized
from hard_fast.runtime.configfile import Config
from hard_fast.types import Noise, View

_NUM_BINS = 10
_NUM_OPERATIONS = 2


class AutoConfig(Config):
    """AutoAugment with the policies that were learned on one data set (arXiv:1805.09501)."""

    kind: Literal["autoaugment"] = "autoaugment"
    policy: Literal["cifar10", "imagenet", "svhn"] = "cifar10"


class AutoAugment(Randomized):
    """Two operations in a row, each applied with its policy's probability, at its level.

    Source:  arXiv:1805.09501, tables 7 to 9; policies and levels as in torchvision 0.29, which
             takes the nearest pixel in warps, where this is bilinear.
    """

    def __init__(self, config: AutoConfig, shape: torch.Size) -> None:
        from torchvision.transforms import autoaugment

        levels = RAND.levels(shape[1], shape[2], _NUM_BINS)
        super().__init__(list(Operation), levels, shape[2])
        theirs = autoaugment.AutoAugment(autoaugment.AutoAugmentPolicy(config.policy))
        steps = [step for policy in theirs.policies for step in policy]
        self.num_policies = len(theirs.policies)
        found = [_operation(name, number, levels) for name, _, number in steps]
        shape_PL = (self.num_policies, _NUM_OPERATIONS)
        operation_PL = torch.tensor([operation for operation, _ in found]).view(shape_PL)
        level_PL = torch.tensor([level for _, level in found]).view(shape_PL)
        chance_PL = torch.tensor([chance for _, chance, _ in steps]).view(shape_PL)
        self.register_buffer("operation_PL", operation_PL, persistent=False)
        self.register_buffer("level_PL", level_PL, persistent=False)
        self.register_buffer("chance_PL", chance_PL, persistent=False)

    def draw_noise(self, shape: torch.Size, generator: torch.Generator) -> Noise:
        """policy: [B], chance and sign: [B,2], all in [0,1)."""
        device = generator.device
        pair = (shape[0], _NUM_OPERATIONS)
        return {
            "policy": torch.rand(shape[0], generator=generator, device=device),
            "chance": torch.rand(pair, generator=generator, device=device),
            "sign": torch.rand(pair, generator=generator, device=device),
        }

    def forward(self, view: View, noise: Noise) -> View:
        """The images after their policy's second operation; labels stay."""
        policy = (noise["policy"] * self.num_policies).long().clamp(max=self.num_policies - 1)
        is_applied = noise["chance"] < self.chance_PL[policy]
        operation = torch.where(is_applied, self.operation_PL[policy], Operation.IDENTITY.value)
        level = self.fitted(operation, self.level_PL[policy], view.image.shape[3])
        is_negative = self.has_sign[operation] & (noise["sign"] < 0.5)
        level = torch.where(is_negative, -level, level)
        image = to_bytes(view.image)
        for place in range(_NUM_OPERATIONS):
            image = apply_each(image, operation[:, place], level[:, place])
        image = to_float(image).contiguous(memory_format=torch.channels_last)
        return View(image, view.target_BK)


def _operation(name: str, number: int | None, levels: torch.Tensor) -> tuple[int, float]:
    """The operation of torchvision's name, and what its level's number stands for."""
    if name == "Invert":  # From the lowest value on.
        return Operation.SOLARIZE.value, 0.0
    words = "".join(f"_{letter}" if letter.isupper() else letter for letter in name).strip("_")
    spelled = {"AUTO_CONTRAST": "AUTOCONTRAST"}.get(words.upper(), words.upper())
    operation = Operation[spelled].value
    return operation, 0.0 if number is None else levels[operation, number].item()
