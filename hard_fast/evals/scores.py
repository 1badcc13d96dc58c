"""Scores of a network's outputs, as sums that add up over batches and ranks.

Letters: B samples, K classes (or regression outputs).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def classification_sums(logits_BK: Tensor, label_B: Tensor) -> Tensor:
    """[3] fp64: labelled samples, right answers, negative log-likelihood in nats.

    Args:    label_B: class, or -1 for a sample without one, which does not count.
    """
    nll = F.cross_entropy(logits_BK.float(), label_B, ignore_index=-1, reduction="sum")
    right = (logits_BK.argmax(1) == label_B).sum()
    return torch.stack([(label_B >= 0).sum().double(), right.double(), nll.double()])


def classification_scores(sums: Tensor) -> dict[str, float]:
    """top1 in percent and nll in nats per sample, from added-up sums; NaN without a label."""
    num, right, nll = sums.tolist()
    if num == 0:
        return {"top1": math.nan, "nll": math.nan}
    return {"top1": 100.0 * right / num, "nll": nll / num}


def regression_sums(output_BK: Tensor, target_BK: Tensor) -> Tensor:
    """[2] fp64: values, squared error."""
    squared = (output_BK.double() - target_BK.double()).square()
    return torch.stack([squared.new_tensor(squared.numel()), squared.sum()])


def regression_scores(sums: Tensor) -> dict[str, float]:
    """mse, from added-up sums; NaN without a value."""
    num, squared = sums.tolist()
    return {"mse": squared / num if num else math.nan}


def bound_sums(parts_B2: Tensor) -> Tensor:
    """[3] fp64: samples, distortion, rate.

    Args:    parts_B2: both parts of a VAE's bound, nats per value.
    """
    sums_2 = parts_B2.double().sum(0)
    return torch.cat([sums_2.new_tensor([len(parts_B2)]), sums_2])


def bound_scores(sums: Tensor) -> dict[str, float]:
    """distortion and rate in nats per value, and bound, their sum, from added-up sums."""
    num, distortion, rate = sums.tolist()
    num = num or math.nan
    parts = {"distortion": distortion / num, "rate": rate / num}
    return {**parts, "bound": sum(parts.values())}
