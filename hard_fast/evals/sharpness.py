"""python -m hard_fast.evals.sharpness --run DIR --suite NAME --data-root DIR

How sharp the minimum is in which a network ended: how much the mean cross-entropy on a set rises
within a ball around the weights, and the largest eigenvalue of its Hessian. Weights are all that
learn, as they were trained; BatchNorm's statistics stay.
"""

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hard_fast.augment.base import to_float
from hard_fast.data.arrays import EvalPart
from hard_fast.evals.robustness import logits_of, open_all, parser_of, report
from hard_fast.runtime import dist
from hard_fast.runtime.arguments import at_least
from hard_fast.runtime.dist import World

_BATCH = 250

# [] the mean loss at the weights as they are, and its gradient by their places; with a direction
# the slope along it and the Hessian times it instead.
Landscape = Callable[[list[Tensor] | None], tuple[float, list[Tensor]]]


def sharpness(weights: Sequence[Tensor], landscape: Landscape, radius: float, steps: int) -> float:
    """How much the loss rises, at most, on a way of `steps` steps within a ball around the weights.

    Each step goes to where the ball's edge lies in the direction of the gradient at the last
    place. The first is exact where the loss is linear in the ball; for a convex loss each rises.

    Args:    radius: of the ball, as a share of the 2-norm of all weights together.
    Returns: the rise of the loss; the weights are as they were.
    Source:  Keskar et al. 2017, arXiv:1609.04836, the maximum within a neighbourhood, here a ball
             and not divided by 1 + loss; the step is that of Foret et al. 2021, arXiv:2010.01412,
             equation 2, with a radius that follows the weights' size.
    """
    with _kept(weights) as start:
        length = radius * _norm(start)
        lowest, gradient = landscape(None)
        highest = lowest
        for _ in range(steps):
            norm = _norm(gradient)
            if norm == 0.0:
                break
            _move(weights, start, gradient, length / norm)
            loss, gradient = landscape(None)
            highest = max(highest, loss)
    return highest - lowest


def top_eigenvalue(
    weights: Sequence[Tensor], landscape: Landscape, steps: int, *, seed: int = 0
) -> float:
    """The Hessian's eigenvalue of the largest size, by so many steps of power iteration.

    Returns: v H v / v v of the last vector v. It nears the eigenvalue as the square of (second
             largest / largest) to the number of steps; the first vector is random.
    """
    generator = torch.Generator().manual_seed(seed)
    # On the CPU, so that it does not depend on the device.
    vector = [torch.randn(w.shape, generator=generator).to(w.device) for w in weights]
    quotient = 0.0
    for _ in range(steps):
        norm = _norm(vector)
        if norm == 0.0:
            break
        vector = [(part / norm).to(w.dtype) for part, w in zip(vector, weights, strict=True)]
        _, turned = landscape(vector)
        pairs = zip(vector, turned, strict=True)
        quotient = sum((one.double() * other.double()).sum().item() for one, other in pairs)
        vector = turned
    return quotient


def landscape_of(network: nn.Module, part: EvalPart, world: World) -> Landscape:
    """The mean cross-entropy of a network in eval mode over all processes' labelled samples.

    Args:    network: its parameters that require gradients are the weights.
    """
    weights = [p for p in network.parameters() if p.requires_grad]

    def landscape(direction: list[Tensor] | None) -> tuple[float, list[Tensor]]:
        sums = torch.zeros(2, dtype=torch.float64, device=world.device)
        totals = [torch.zeros_like(w, dtype=torch.float64) for w in weights]
        for batch in part.batches(_BATCH, world.rank, world.size):
            is_known = batch.label >= 0
            image, label = to_float(batch.image)[is_known], batch.label[is_known]
            if not len(label):
                continue
            # The kernels that fuse attention cannot be differentiated twice.
            with sdpa_kernel(SDPBackend.MATH):
                logits_BK = logits_of(network, image).float()
                loss = F.cross_entropy(logits_BK, label, reduction="sum")
                if direction is not None:
                    found = _gradient(loss, weights, create_graph=True)
                    loss = sum((one * v).sum() for one, v in zip(found, direction, strict=True))
                found = _gradient(loss, weights)
            for total, one in zip(totals, found, strict=True):
                total += one
            sums += torch.stack([loss.detach().double(), sums.new_tensor(len(label))])
        loss, num = dist.sum_(sums).tolist()
        if num == 0:
            return math.nan, totals
        return loss / num, [dist.sum_(total) / num for total in totals]

    return landscape


def measure(options: argparse.Namespace, world: World) -> dict[str, float]:
    """loss on the suite, sharpness within the radius, and the Hessian's top eigenvalue.

    Raises:  ValueError, one line, for what cannot be opened or is not the network's.
    """
    network, part, _ = open_all(options, world, frozen=False)
    weights = [p for p in network.parameters() if p.requires_grad]
    landscape = landscape_of(network, part, world)
    return {
        "loss": landscape(None)[0],
        "sharpness": sharpness(weights, landscape, options.radius, options.steps),
        "top_eigenvalue": top_eigenvalue(weights, landscape, options.power_steps),
    }


def main(arguments: list[str] | None = None) -> int:
    """Print the scores as JSON; the exit code is 0, or 2 after a line about a mistake."""
    parser = parser_of("hard_fast.evals.sharpness", __doc__)
    parser.add_argument("--radius", type=float, default=0.001, help="share of the weights' norm")
    parser.add_argument("--steps", type=at_least(1), default=3)
    parser.add_argument("--power-steps", type=at_least(1), default=20)
    return report(parser.parse_intermixed_args(arguments), measure)


@contextmanager
def _kept(weights: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """A copy of the weights, which they are again afterwards."""
    start = [w.detach().clone() for w in weights]
    try:
        yield start
    finally:
        _move(weights, start, start, 0.0)


@torch.no_grad()
def _move(
    weights: Sequence[Tensor], start: list[Tensor], direction: list[Tensor], length: float
) -> None:
    for weight, origin, way in zip(weights, start, direction, strict=True):
        weight.copy_(origin + length * way if length else origin)


def _norm(parts: Sequence[Tensor]) -> float:
    return math.sqrt(sum(part.detach().double().square().sum().item() for part in parts))


def _gradient(loss: Tensor, weights: list[Tensor], *, create_graph: bool = False) -> list[Tensor]:
    """By the weights' places; zeros where the loss does not depend on one."""
    settings = {"create_graph": create_graph, "allow_unused": True, "materialize_grads": True}
    return list(torch.autograd.grad(loss, weights, **settings))


if __name__ == "__main__":
    dist.end(main())
