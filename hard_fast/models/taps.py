"""Wrappers of a network: its input statistics, and the one form every loss reads its outputs in.

Letters: B images of a batch, C channels, H rows, W columns, K classes.
"""

import difflib
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hard_fast.models.statistics import NORM_GAP, watch_norms
from hard_fast.types import Outputs


class Normalized(nn.Module):
    """A network with the mean and std it was trained with, so that it reads images in [0,1].

    `mark`, where there is one, changes what the network answers to an image.

    Args:    mean, std: one number per channel, as fp32 buffers of shape [1,C,1,1].
    """

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.net = net
        self.mark: nn.Module | None = None
        self.dtype: torch.dtype | None = None
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, image_BCHW: Tensor) -> Any:
        """What the network makes of (image - mean) / std, rounded to its dtype if it has one."""
        # One multiply-add. On a CPU channels alone are too short a loop: rows of them take a sixth.
        rows = {"memory_format": torch.channels_last}
        scale = (1.0 / self.std).expand(-1, -1, 1, image_BCHW.shape[3]).contiguous(**rows)
        shift = (-self.mean / self.std).expand_as(scale).contiguous(**rows)
        read_BCHW = torch.addcmul(shift, image_BCHW, scale)
        answer = self.net(read_BCHW if self.dtype is None else read_BCHW.to(self.dtype))
        return answer if self.mark is None else self.mark(answer, image_BCHW)


def set_dtype(network: Normalized, dtype: torch.dtype) -> None:
    """Make a network compute in a dtype without autocast: its weights, and the image it is given.

    The image is normalised in fp32 before it is rounded. BatchNorm keeps what it has in fp32, small
    beside the rest: torch's batch_norm takes fp32 statistics and weights with any input.
    """
    network.dtype = dtype
    for module in network.net.modules():
        if isinstance(module, _BatchNorm):
            continue
        for parameter in module.parameters(recurse=False):
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point():
                module._buffers[name] = buffer.to(dtype)


class Tapped(nn.Module):
    """A network that returns Outputs: its logits and the outputs of the inner modules named.

    Names are those of the bare network, inside a Normalized too. Each call's taps are its own: an
    inner module that runs twice in a call gives its last output, and what a later layer does in
    place does not reach a tap. A network that returns two logits (a distilled ViT while
    `set_distilled_training` is on and it trains) gives their mean, and taps `head` and `head_dist`.
    One that returns Outputs (branches while it trains) adds its own taps. The tap NORM_GAP is no
    module but how far from their statistics the BatchNorm layers' inputs are: a term that somebody
    learns from, so calls without gradient do not measure it and have no such tap.

    Args:    amp_dtype: autocast the network to it, and logits and taps may come in it; None: run
             the network as it is.
    Raises:  ValueError for a name the network does not have; when called, for a named module that
             did not run or returned no tensor, and for a network whose output is no logits.
    """

    def __init__(
        self,
        network: nn.Module,
        taps: tuple[str, ...] = (),
        amp_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.taps, self.amp_dtype = taps, amp_dtype
        self._seen: dict[str, Tensor] = {}
        modules = {name: module for name, module in bare(network).named_modules() if name}
        self._gaps: list[Tensor] = []
        if NORM_GAP in taps:
            watch_norms(network, self._gaps)
        for name in taps:
            if name == NORM_GAP:
                continue
            if name not in modules:
                raise ValueError(f"tap {name!r}: no such module{nearest(name, modules)}")
            # A partial, not a closure: a deep copy of this module then records into its own dict.
            modules[name].register_forward_hook(partial(_record, self._seen, name))

    def forward(self, image_BCHW: Tensor) -> Outputs:
        """Logits [B,K] and one tensor per tap, in the order asked for."""
        self._seen.clear()
        self._gaps.clear()
        if self.amp_dtype is None:
            result = self.network(image_BCHW)
        else:
            with torch.autocast(image_BCHW.device.type, self.amp_dtype):
                result = self.network(image_BCHW)
        if self._gaps:
            self._seen[NORM_GAP] = torch.stack(self._gaps)
            self._gaps.clear()
        taps: dict[str, Tensor] = {}
        for name in self.taps:
            if name in self._seen:
                taps[name] = self._seen[name]
            elif name != NORM_GAP:
                raise ValueError(f"tap {name!r}: this module did not run")
        self._seen.clear()
        if isinstance(result, Outputs):
            return Outputs(result.logits_BK, taps | result.taps)
        if isinstance(result, Tensor):
            return Outputs(result, taps)
        # A tuple with names holds something else, such as auxiliary logits.
        if type(result) is not tuple or len(result) != 2:
            raise ValueError(
                f"a network must return logits or a pair of logits, not a {type(result).__name__}"
            )
        head, head_dist = result
        return Outputs((head + head_dist) / 2, taps | {"head": head, "head_dist": head_dist})


@torch.no_grad()
def try_out(network: nn.Module, image_BCHW: Tensor) -> Outputs:
    """What a network in eval mode makes of images; it is left as it was, also where it fails."""
    trained = {module: module.training for module in network.modules()}
    network.eval()
    try:
        return network(image_BCHW)
    finally:
        # Some undo by this call what they did in eval mode; the parts may have been in either.
        network.train(trained[network])
        for module, was_training in trained.items():
            module.training = was_training


def bare(network: nn.Module) -> nn.Module:
    """The network inside Tapped and Normalized; names in configs and files are its own."""
    if isinstance(network, Tapped):
        network = network.network
    return network.net if isinstance(network, Normalized) else network


def nearest(name: str, choices: Iterable[str]) -> str:
    """`; did you mean 'x' or 'y'?` with the closest choices, or nothing where none is close."""
    close = difflib.get_close_matches(name, sorted(set(choices)), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


def _record(
    seen: dict[str, Tensor], name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any
) -> Tensor:
    """Keep a module's output and hand on a copy, which later layers may change in place."""
    if not isinstance(output, Tensor):
        raise ValueError(f"tap {name!r}: returned a {type(output).__name__}, not a tensor")
    seen[name] = output
    return output.clone()
