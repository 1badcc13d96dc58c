"""Nothing is timed before every implementation finds the same losses."""

import math
import tempfile
from pathlib import Path

import torch

from bench.distillers import Distiller, Problem, build_distillers
from bench.trainers import Pair, draw_batch, draw_networks

TOLERANCES = {"fp32": 1e-5, "bf16": 0.1}
"""Per precision, how far a first loss may be from the reference's, as a share of it. In bf16 that
only finds what is plainly wrong: some take the softmax of rounded logits."""
LATER_TOLERANCE = 1e-3
"""The same for the two steps after it in fp32: Adam's first updates enlarge rounding."""
GATE_BATCH = 4
"""Images of the gate in fp32, for pairs that are timed in another precision."""


class Disagreement(RuntimeError):
    """Implementations of one step find different losses: a line for each that is off."""


def check(found: dict[str, Distiller], pair: Pair) -> None:
    """Make three steps of each, and compare their losses with those of the first.

    Raises:  Disagreement if one differs.
    """
    losses = {name: [distiller.loss() for _ in range(3)] for name, distiller in found.items()}
    reference, want = next(iter(losses.items()))
    first = TOLERANCES[pair.precision]
    tolerances = [first, *[max(first, LATER_TOLERANCE)] * 2]
    wrong = []
    for name, values in losses.items():
        errors = [abs(value / right - 1) for value, right in zip(values, want, strict=True)]
        for number, (error, tolerance) in enumerate(zip(errors, tolerances, strict=True)):
            if math.isnan(error) or error > tolerance:
                said = f"loss {number + 1} is {values[number]:.6f}, {error:.1e} off"
                wrong.append(f"  {name}: {said} the {want[number]:.6f} of {reference}")
                break
    if wrong:
        raise Disagreement("\n".join(wrong))


def check_in_fp32(pair: Pair, device: torch.device, peers: tuple[str, ...]) -> None:
    """The same with a few images in full precision and nothing compiled.

    Raises:  Disagreement if one differs.
    """
    small = pair._replace(batch_size=GATE_BATCH, precision="fp32")
    is_allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        with tempfile.TemporaryDirectory() as folder:
            problem = Problem(small, draw_networks(small, Path(folder)), draw_batch(small, device))
            check(build_distillers(problem, peers, with_compiled=False), small)
    finally:
        torch.backends.cudnn.allow_tf32 = is_allowed
