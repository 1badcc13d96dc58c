"""A network over test sets: every sample once over all ranks."""

import torch
from torch import Tensor, nn

from hard_fast.augment.base import to_float
from hard_fast.data import Part
from hard_fast.evals import scores
from hard_fast.runtime import dist, parallel
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
    meets_others = any(parallel.is_sharded(n) for n in (network, truth) if n is not None)
    metrics: dict[str, float] = {}
    for name, part in test.items():
        total = None
        num_pixels = part.image_shape[1] * part.image_shape[2]
        batch_size = max(1, min(_MAX_BATCH, _MAX_PIXELS // num_pixels))
        batches = part.batches(batch_size, world.rank, world.size)
        for batch in dist.in_step(batches) if meets_others else batches:
            if batch is None:
                # The others still need this process's part of the weights.
                _call(network, truth, torch.zeros(1, *part.image_shape, device=world.device))
                continue
            image = to_float(batch.image)
            output, right = _call(network, truth, image)
            if right is None:
                sums = scores.classification_sums(output, batch.label)
            else:
                sums = scores.regression_sums(output, right)
            total = sums if total is None else total + sums
        if total is None:
            total = torch.zeros(3 if truth is None else 2, dtype=torch.float64, device=world.device)
        total = dist.sum_(total)
        found = (scores.classification_scores if truth is None else scores.regression_scores)(total)
        prefix = "" if name == "test" else f"{name}_"
        metrics |= {f"{prefix}{score}": value for score, value in found.items()}
    return metrics


def _call(
    network: nn.Module, truth: nn.Module | None, image: Tensor
) -> tuple[Tensor, Tensor | None]:
    output = network(image).logits_BK.float()
    return output, None if truth is None else truth(image).logits_BK.float()
