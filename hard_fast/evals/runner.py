"""A network over test sets: every sample once over all ranks."""

import torch
from torch import nn

from hard_fast.augment.base import to_float
from hard_fast.data import Arrays, eval_batches
from hard_fast.evals import scores
from hard_fast.runtime import dist
from hard_fast.runtime.dist import World


@torch.no_grad()
def evaluate(
    network: nn.Module,
    test: dict[str, Arrays],
    world: World,
    *,
    truth: nn.Module | None = None,
    batch_size: int = 1000,
) -> dict[str, float]:
    """Scores of the network on each test set, `<set>_<score>`; the set named `test` has no prefix.

    Args:    network: [B,C,H,W] images in [0,1] to Outputs; set to eval mode and left there.
             truth: for regression: the network whose outputs are the right answer. None: labels.
    """
    network.eval()
    metrics: dict[str, float] = {}
    for name, arrays in test.items():
        total = None
        for batch in eval_batches(arrays, batch_size, world.rank, world.size):
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
