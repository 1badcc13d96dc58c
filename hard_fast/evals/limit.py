"""A share of a suite, for when the whole would take too long."""

from dataclasses import replace

import numpy as np
import torch

from hard_fast.data import Arrays
from hard_fast.data.arrays import EvalPart
from hard_fast.data.pictures import Pictures
from hard_fast.evals.suites import Loaded
from hard_fast.evals.suites.corrupted import CorruptedPart
from hard_fast.evals.suites.stored import Stored

_SEED = 0


def limited(loaded: Loaded, num: int) -> Loaded:
    """The suite with the first `num` samples of a fixed shuffle of each part, in their old order.

    What a corruption does to a sample stays what it is in the whole suite.
    """
    # Corruptions share their pictures, which are decoded once.
    known: dict[int, EvalPart] = {}
    return loaded._replace(
        parts={name: _limited(part, num, known) for name, part in loaded.parts.items()}
    )


def _limited(part: EvalPart, num: int, known: dict[int, EvalPart]) -> EvalPart:
    if part.num <= num:
        return part
    if id(part) in known:
        return known[id(part)]
    order = torch.randperm(part.num, generator=torch.Generator().manual_seed(_SEED))
    chosen = order[:num].sort().values
    match part:
        case CorruptedPart():
            few = part.numbered._replace(part=_limited(part.numbered.part, num, known))
            found: EvalPart = replace(part, numbered=few)
        case Stored():
            image = np.ascontiguousarray(part.image_NHWC[chosen.numpy()])
            found = replace(part, image_NHWC=image, label=part.label[chosen])
        case Pictures():
            found = Pictures(part.samples.take(chosen.numpy()), part.config, part.device)
        case Arrays():
            here = chosen.to(part.label.device)
            # Rows of the channels_last view, so that the layout stays.
            image_NHWC = part.image.permute(0, 2, 3, 1)[here]
            found = Arrays(image_NHWC.permute(0, 3, 1, 2), part.label[here])
        case _:
            raise AssertionError(type(part))
    known[id(part)] = found
    return found
