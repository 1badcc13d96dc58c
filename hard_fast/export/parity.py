"""Whether a file answers as the network it was made from."""

from typing import Any

import torch
from torch import Tensor, nn

from hard_fast.export.formats import first_line
from hard_fast.types import Outputs

BATCHES = (1, 3, 32)
NUM_IMAGES = sum(BATCHES)
FP32_TOLERANCE = 1e-4
"""Of the largest output: what another order of the same additions changes in a hundred layers."""
INT8_TOLERANCE = 0.3
"""Of the largest output: runtimes round halves, and biases, differently, and a rounding at the
start moves others behind it. Trained networks stay near 0.01, untrained ones came to 0.14."""
_TYPICAL = 1 / 3
"""Of a tolerance: what the root mean square of the differences may be, as a share of the outputs'.
One wrong row of weights moves it more than the largest difference: int8 files of a ResNet20, a
ResNet10 and a ViT came to 0.02 or less, and with the sign of a row changed to 0.51, 0.17, 0.08."""
_SMALLEST = 1e-12


@torch.no_grad()
def compare_outputs(
    found: nn.Module, expected: nn.Module, images: Tensor, tolerance: float | None = None
) -> dict[str, Any]:
    """How far outputs are apart, in batches of 1, 3 and 32.

    Args:    tolerance: of `worst`, and three times what `typical` may be; None: any number will do.
    Returns: `worst`, the largest difference as a share of the largest output; `typical`, the root
             mean square of one as a share of the other's; `same_class`, the share of images with
             the same top class; and what it was measured on.
    Raises:  ValueError if the difference is above the tolerance, there are no numbers, or `found`
             fails on a batch.
    """
    assert len(images) == NUM_IMAGES
    pairs = [(_answer(found, part), _logits(expected(part))) for part in images.split(BATCHES)]
    for ours, theirs in pairs:
        if ours.shape != theirs.shape:
            raise ValueError(
                f"its outputs are {list(ours.shape)}, and must be {list(theirs.shape)}"
            )
    ours, theirs = (torch.cat(outputs) for outputs in zip(*pairs, strict=True))
    apart = ours - theirs
    worst = (apart.abs().max() / theirs.abs().max().clamp_min(_SMALLEST)).item()
    typical = (apart.square().mean() / theirs.square().mean().clamp_min(_SMALLEST)).sqrt().item()
    if tolerance is not None:
        # A NaN is above every tolerance.
        if not worst <= tolerance:
            raise ValueError(_refusal("the largest", worst, tolerance))
        if not typical <= _TYPICAL * tolerance:
            raise ValueError(_refusal("their root mean square", typical, _TYPICAL * tolerance))
    return {
        "worst": worst,
        "typical": typical,
        "tolerance": tolerance,
        "same_class": (ours.argmax(1) == theirs.argmax(1)).float().mean().item(),
        "batches": list(BATCHES),
    }


def _refusal(what: str, share: float, most: float) -> str:
    return (
        f"its outputs are off by {share:.2g} of {what}, more than {most:.2g}; the file was removed"
    )


def _answer(network: nn.Module, images: Tensor) -> Tensor:
    try:
        return _logits(network(images))
    except Exception as error:
        # What the runtime of a file raises is its own.
        said = first_line(error)
        raise ValueError(f"its runtime fails on a batch of {len(images)}: {said}") from error


def _logits(outputs: Tensor | Outputs) -> Tensor:
    return outputs if isinstance(outputs, Tensor) else outputs.logits_BK
