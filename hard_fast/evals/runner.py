"""A network over test sets: every sample once over all ranks."""

from typing import Literal

import torch
from torch import Tensor, nn

from hard_fast.augment.base import to_float
from hard_fast.data import Part
from hard_fast.evals import scores
from hard_fast.runtime import dist, parallel
from hard_fast.runtime.dist import World
from hard_fast.types import Batch

# A thousand small images at once, or as many large ones as keep memory in bounds.
_MAX_BATCH = 1000
_MAX_PIXELS = 2**23


Answer = Literal["classes", "values", "bound"]
"""What outputs are: logits of classes, values to match, or both parts of a VAE's bound."""

_SCORES = {
    "classes": scores.classification_scores,
    "values": scores.regression_scores,
    "bound": scores.bound_scores,
}
_NUM_SUMS = {"classes": 3, "values": 2, "bound": 3}


@torch.no_grad()
def evaluate(
    network: nn.Module,
    test: dict[str, Part],
    world: World,
    *,
    answer: Answer = "classes",
    truth: nn.Module | None = None,
) -> dict[str, float]:
    """Scores of the network on each test set, `<set>_<score>`; the set named `test` has no prefix.

    Args:    network: [B,C,H,W] images in [0,1] to Outputs; set to eval mode and left there.
             truth: for values: the network whose outputs are the right ones.
    """
    network.eval()
    meets_others = any(parallel.is_sharded(n) for n in (network, truth) if n is not None)
    metrics: dict[str, float] = {}
    for name, part in test.items():
        total = torch.zeros(_NUM_SUMS[answer], dtype=torch.float64, device=world.device)
        num_pixels = part.image_shape[1] * part.image_shape[2]
        batch_size = max(1, min(_MAX_BATCH, _MAX_PIXELS // num_pixels))
        batches = part.batches(batch_size, world.rank, world.size)
        for batch in dist.in_step(batches) if meets_others else batches:
            if batch is None:
                # The others still need this process's part of the weights.
                image = torch.zeros(1, *part.image_shape, device=world.device)
                _sums(network, truth, answer, Batch(image, total.new_zeros(1).long()))
            else:
                total += _sums(network, truth, answer, batch)
        prefix = "" if name == "test" else f"{name}_"
        found = _SCORES[answer](dist.sum_(total))
        metrics |= {f"{prefix}{score}": value for score, value in found.items()}
    return metrics


def _sums(network: nn.Module, truth: nn.Module | None, answer: Answer, batch: Batch) -> Tensor:
    image = to_float(batch.image)
    output = network(image).logits_BK
    match answer:
        case "classes":
            return scores.classification_sums(output, batch.label)
        case "values":
            return scores.regression_sums(output, truth(image).logits_BK)
        case "bound":
            return scores.bound_sums(output)
