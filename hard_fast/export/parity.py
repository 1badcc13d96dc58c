"""Whether a file answers as the network it was made from."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from hard_fast.types import Outputs

BATCHES = (1, 3, 32)
NUM_IMAGES = sum(BATCHES)
FP32_TOLERANCE = 1e-4
"""Of the largest output: what another order of the same additions changes in a hundred layers."""
INT8_TOLERANCE = 0.3
"""Of the largest output: runtimes round halves, and biases, differently, and a rounding at the
start moves others behind it. Trained networks stay near 0.01, untrained ones came to 0.14, and a
file that computes something else is off by far more."""


@torch.no_grad()
def compare_outputs(
    found: nn.Module, expected: nn.Module, images: Tensor, tolerance: float
) -> dict[str, Any]:
    """How far outputs are apart, in batches of 1, 3 and 32.

    Returns: `worst`, the largest difference as a share of the largest output; `same_class`, the
             share of images with the same top class; and what it was measured on.
    Raises:  ValueError if the difference is above the tolerance, or there are no numbers.
    """
    assert len(images) == NUM_IMAGES
    worst, same, largest = 0.0, 0, 0.0
    pairs = [(_logits(found(part)), _logits(expected(part))) for part in _batches(images)]
    for ours, theirs in pairs:
        if ours.shape != theirs.shape:
            raise ValueError(
                f"its outputs are {list(ours.shape)}, and must be {list(theirs.shape)}"
            )
        largest = max(largest, theirs.abs().max().item())
        apart = (ours - theirs).abs().max().item()
        # A NaN is above every tolerance.
        worst = max(worst, apart) if apart == apart else float("nan")
        same += int((ours.argmax(1) == theirs.argmax(1)).sum())
    share = worst / max(largest, 1e-12)
    if not share <= tolerance:
        raise ValueError(
            f"its outputs are off by {share:.2g} of the largest, more than {tolerance:g}; the file "
            "was removed"
        )
    return {
        "worst": share,
        "tolerance": tolerance,
        "same_class": same / NUM_IMAGES,
        "batches": list(BATCHES),
    }


def _batches(images: Tensor) -> Iterator[Tensor]:
    yield from images.split(BATCHES)


def _logits(outputs: Tensor | Outputs) -> Tensor:
    return outputs if isinstance(outputs, Tensor) else outputs.logits_BK
