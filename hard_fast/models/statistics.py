"""How far what a network reads is from what it was trained on, as its BatchNorm layers see it.

Letters: B images, C channels, H rows, W columns, L layers.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

# The tap of this name is [L] fp32: each BatchNorm layer's gap, in the order in which they ran. It
# is there where gradients are on: it can take a quarter of a step in which nobody learns from it.
NORM_GAP = "norm_gap"


def watch_norms(network: nn.Module, gaps: list[Tensor]) -> None:
    """Append to `gaps` the gap of each BatchNorm layer, at every call with gradients on.

    Raises:  ValueError if there is no such layer with running statistics.
    """
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm)]
    norms = [norm for norm in norms if norm.running_mean is not None]
    if not norms:
        raise ValueError(
            "it has no BatchNorm statistics to compare with; leave that term of the objective out"
        )
    for norm in norms:
        norm.register_forward_pre_hook(partial(_record_gap, gaps))


def norm_gap(x_BCHW: Tensor, mean_C: Tensor, var_C: Tensor) -> Tensor:
    """[] fp32: 2-norms, over channels, of the differences in mean and in (biased) variance, added.

    Args:    x_BCHW: what a BatchNorm layer reads, [B,C] or [B,C,...]. mean_C, var_C: what it keeps.
    Source:  Yin et al. 2020 (DeepInversion), arXiv:1912.08795, equation 4, without squares as in
             NVlabs/DeepInversion and ljrprocc/DataFree.
    """
    others = [axis for axis in range(x_BCHW.ndim) if axis != 1]
    var, mean = torch.var_mean(x_BCHW.float(), others, correction=0)
    apart = ((mean_C - mean), (var_C - var))
    return sum(torch.linalg.vector_norm(difference) for difference in apart)


def _record_gap(gaps: list[Tensor], norm: _BatchNorm, inputs: tuple[Any, ...]) -> None:
    if torch.is_grad_enabled():
        gaps.append(norm_gap(inputs[0], norm.running_mean, norm.running_var))
