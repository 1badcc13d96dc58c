"""Any set of pictures with a corruption made on the fly, where the pictures are.

Letters: B images of a batch, N samples of a part.
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from hard_fast.data.arrays import Arrays, EvalPart
from hard_fast.data.pictures import Pictures
from hard_fast.evals.corruptions import corrupt
from hard_fast.evals.suites.stored import Stored
from hard_fast.types import Batch


class Numbered(NamedTuple):
    """A part whose batches say which of its samples they are.

    part:  its labels are positions, so that pictures left out as unreadable move no other.
    label: [N] int64, what the labels really are.
    """

    part: EvalPart
    label: Tensor


def number(part: EvalPart, device: torch.device) -> Numbered:
    """The part with its positions; what it decodes is kept once for all corruptions of it."""
    match part:
        case Pictures():
            label = torch.from_numpy(part.samples.label)
            samples = part.samples._replace(label=torch.arange(part.num).numpy())
            numbered = Pictures(samples, part.config, part.device)
        case Stored():
            label = part.label
            numbered = dataclasses.replace(part, label=torch.arange(part.num))
        case Arrays():
            label = part.label
            numbered = part._replace(label=torch.arange(part.num, device=label.device))
        case CorruptedPart():
            label = part.numbered.label
            places = torch.arange(part.num, device=label.device)
            numbered = dataclasses.replace(part, numbered=part.numbered._replace(label=places))
        case _:
            raise AssertionError(type(part))
    return Numbered(numbered, label.to(device))


@dataclasses.dataclass(frozen=True, eq=False)
class CorruptedPart:
    """The same pictures, each with one corruption, which depends on the seed and its position."""

    numbered: Numbered
    name: str
    severity: int
    seed: int = 0

    @property
    def num(self) -> int:
        """How many samples there are."""
        return self.numbered.part.num

    @property
    def image_shape(self) -> torch.Size:
        """C, H, W of every image."""
        return self.numbered.part.image_shape

    @property
    def is_picture(self) -> bool:
        """Only pictures can be corrupted."""
        return True

    def batches(self, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """Every sample exactly once over all processes, in the order of the part."""
        part, label = self.numbered
        for image, index_B in part.batches(batch_size, rank, world_size):
            image = corrupt(image, self.name, self.severity, index_B, seed=self.seed)
            yield Batch(image, label[index_B])
