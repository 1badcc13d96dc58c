"""A network over test sets: every sample once over all ranks."""

import torch
from torch import nn

from hard_fast.augment.base import to_float
from hard_fast.data import Part
from hard_fast.evals import scores
from hard_fast.runtime import dist
from hard_fast.runtime.dist import World

# A thousand small images at once, or as many large ones as keep memory in bounds.
_MAX_BATCH = 1000
_MAX_PIXELS = 2**23


@torch.no_grad()
def evaluate(
    network: nn.Module,
    test: dict[str, Part],
    world: World,
    *,
    truth: nn.Module | None = None,
) -> dict[str, float]:
    """Scores of the network on each test set, `<set>_<score>`; the set named `test` has no prefix.

    Args:    network: [B,C,H,W] images in [0,1] to Outputs; set to eval mode and left there.
             truth: for regression: the network whose outputs are the right answer. None: labels.
    """
    network.eval()
    metrics: dict[str, float] = {}
    for name, part in test.items():
        total = None
        num_pixels = part.image_shape[1] * part.image_shape[2]
        batch_size = max(1, min(_MAX_BATCH, _MAX_PIXELS // num_pixels))
        for batch in part.batches(batch_size, world.rank, world.size):
            image = to_float(batch.image)
            output = network(image).logits_BK
            if truth is None:
                sums = scores.classification_sums(output, batch.label)
            else:
                sums = scores.regression_sums(output, truth(image).logits_BK)
            total = sums if total is None else total + sums
        if total is None:
            total = torch.zeros(3 if truth is None else 2, dtype=torch.float64, device=world.device)
        total = dist.sum_(total)
        found = (scores.classification_scores if truth is None else scores.regression_scores)(total)
        prefix = "" if name == "test" else f"{name}_"
        metrics |= {f"{prefix}{score}": value for score, value in found.items()}
    return metrics
