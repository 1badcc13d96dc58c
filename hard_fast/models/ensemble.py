"""Several networks that answer as one.

Letters: B images of a batch, C channels, H rows, W columns, K classes.
"""

import contextlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hard_fast.models.taps import Normalized


class Ensemble(nn.Module):
    """Networks that answer together: their logits are the log of their mean probability.

    To all that asks, it is one network whose softmax is p = sum_i w_i softmax(z_i), so whatever
    holds for one teacher holds for it: gradient flows to the image through every member, and a
    temperature softens p as it softens any network's answer, softmax(log p / T). At T = 1 a student
    learns the same as from the weighted mean of its KLs to each member. (At other temperatures the
    mean of softmax(z_i / T) would be another target; members that agree make no difference.)

    Args:    members: each with statistics and, perhaps, a dtype of its own.
             weights: above 0, one a member; only their ratios count.
    Source:  Hinton et al. 2015, arXiv:1503.02531, section 1: the soft targets of an ensemble are an
             arithmetic or geometric mean of its members' distributions. Arithmetic here: one member
             that is sure a class is wrong does not veto it.
    """

    def __init__(self, members: Sequence[Normalized], weights: Sequence[float]) -> None:
        super().__init__()
        # Not in a list: who divides weights among processes takes what is in one for one layer.
        for number, member in enumerate(members):
            self.add_module(str(number), member)
        self.log_weights = [math.log(weight / sum(weights)) for weight in weights]

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """[B,K] fp32 logarithms of the mean probabilities: logits that sum to 1 as they are."""
        parts = []
        for member, log_weight in zip(self.children(), self.log_weights, strict=True):
            logits_BK = _ask(member, image_BCHW)
            if not isinstance(logits_BK, Tensor):
                raise ValueError("teacher.also: each teacher must return one tensor of logits")
            parts.append(logits_BK.float().log_softmax(1) + log_weight)
        return torch.stack(parts).logsumexp(0)


def _ask(member: Normalized, image_BCHW: Tensor) -> Tensor:
    """A member's answer; one with a dtype of its own computes in that, whatever autocast says."""
    is_own = member.dtype is not None
    plain = torch.autocast(image_BCHW.device.type, enabled=False)
    with plain if is_own else contextlib.nullcontext():
        return member(image_BCHW)
