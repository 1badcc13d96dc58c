"""Activation checkpointing: what the backward pass needs is computed again instead of kept."""

from collections.abc import Sequence

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def checkpoint_activations(
    net: nn.Module, name: str, *, is_frozen: bool, taps: Sequence[str] = ()
) -> None:
    """Make a network of timm's recompute the activations inside its blocks in the backward pass.

    Args:    name: of the network, for messages. is_frozen: whether it stays in eval mode.
             taps: names of inner modules whose outputs are wanted.
    Raises:  ValueError where the network cannot, its inner outputs are wanted, or BatchNorm learns.
    """
    if taps:
        # A hook inside a recomputed block does not compile, and stages run without their module.
        raise ValueError(
            f"checkpointing = true: the loss reads inner outputs of {name!r} ({', '.join(taps)}), "
            "and those are not kept"
        )
    norms = (m for m in net.modules() if isinstance(m, _BatchNorm))
    if not is_frozen and any(norm.running_mean is not None for norm in norms):
        raise ValueError(
            f"checkpointing = true: {name!r} learns and has BatchNorm, whose statistics would move "
            "twice in a step; use it for a teacher, or for a network without BatchNorm"
        )
    refusal = (
        f"checkpointing = true: {name!r} cannot compute its activations again; most of timm's "
        "networks can"
    )
    enable = getattr(net, "set_grad_checkpointing", None)
    if enable is None:
        raise ValueError(refusal)
    try:
        enable(True)
    except AssertionError:
        # How timm's networks without it answer.
        raise ValueError(refusal) from None
