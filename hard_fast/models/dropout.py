"""Dropout behind one layer at a time, a random one in each step, at a rate that grows."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from functools import partial
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from hard_fast.models.taps import nearest
from hard_fast.runtime.configfile import Config
from hard_fast.runtime.cycle import Cycle, Held, within
from hard_fast.runtime.seed import derive_seed


class LayerDropoutConfig(Config):
    """In each step one of these layers has dropout on its output, while the network learns."""

    layers: list[str] = Field(min_length=1)
    """Names of inner modules that return one tensor; a star stands for any name between two dots:
    `blocks.*`."""
    rate: Annotated[float | Cycle, within(least=0.0, most=0.95)] = Cycle(
        ends=0.0, peak=0.3, factor=1.0
    )
    """Share of the output's elements that is set to zero; by default it grows along a line from 0
    to 0.3 at the run's end."""


class LayerDropout(Held):
    """Which layer has dropout now, and at which rate; nothing of it is saved with the network.

    All processes draw the same layer, which depends on the step and the network's seed. The masks
    come from the generator that other dropout reads, each process its own.

    Source:  Morerio et al. 2017, arXiv:1703.06229 (Curriculum Dropout), for the rate that grows
             from none; there all layers have it, and it grows as 1 - exp(-10 step / num_steps)
             towards its peak, where this is a line. One random layer at a time is our reading of
             layer-random dropout, for which no source was found.
    """

    def __init__(self, config: LayerDropoutConfig, num_layers: int) -> None:
        super().__init__()
        self.hold(rate=config.rate)
        self.num_layers = num_layers
        self.chosen = nn.Buffer(torch.tensor(0), persistent=False)
        # Who builds a network seeds the generator of its weights.
        self._seed = int(torch.randint(2**62, (), device="cpu"))

    def advance(self, step: int, *, num_steps: int, num_steps_per_epoch: int) -> None:
        """Draw the step's layer and set its rate."""
        super().advance(step, num_steps=num_steps, num_steps_per_epoch=num_steps_per_epoch)
        self.chosen.fill_(derive_seed(self._seed, "layer dropout", step) % self.num_layers)

    def forward(self, output: Tensor, number: int) -> Tensor:
        """A layer's output, with dropout if its number was drawn; else exactly as it is."""
        rate = torch.where(self.chosen == number, self.rate, 0.0)
        kept = torch.rand_like(output, dtype=torch.float32) >= rate
        return output * (kept / (1.0 - rate)).to(output.dtype)


def drop_out(network: nn.Module, net: nn.Module, config: LayerDropoutConfig) -> None:
    """Give the layers of a network that learns their dropout; it must not be compiled yet.

    Args:    network: holds the dropout, and is in training mode while there is to be any.
             net: the bare network inside it, whose names the configuration speaks of.
    Raises:  ValueError for a name that no inner module has; when called, for a layer that returns
             no tensor.
    """
    modules = {name: module for name, module in net.named_modules() if name}
    found = sorted({name for wanted in config.layers for name in _named(wanted, modules)})
    network.dropout = LayerDropout(config, len(found))
    for number, name in enumerate(found):
        # A partial, not a closure: a deep copy of the network then has its own dropout.
        modules[name].register_forward_hook(partial(_drop, network.dropout, number, name))


def _named(wanted: str, names: Iterable[str]) -> list[str]:
    parts = wanted.split(".")
    found = [
        name
        for name in names
        if len(own := name.split(".")) == len(parts) and all(map(fnmatchcase, own, parts))
    ]
    if not found:
        raise ValueError(f"dropout.layers = {wanted!r}: no such module{nearest(wanted, names)}")
    return found


def _drop(
    dropout: LayerDropout,
    number: int,
    name: str,
    module: nn.Module,
    inputs: tuple[Any, ...],
    output: Any,
) -> Any:
    if not dropout.training:
        return output
    if not isinstance(output, Tensor):
        raise ValueError(f"dropout.layers: {name!r} returned a {type(output).__name__}, no tensor")
    return dropout(output, number)
