"""All that is random in a step: a function of the run's seed and the step, and nothing else."""

import torch

from hard_fast.augment.base import draw_share
from hard_fast.bank import AugmentorBank
from hard_fast.runtime.dist import World
from hard_fast.runtime.seed import default_generator, reseed
from hard_fast.step import DistillStep
from hard_fast.types import Noise, Phase


class Draws:
    """Draws for one step after the other, in any order: a checkpoint need not keep it.

    Args:    bank: where students' steps draw their augmentor, if the run has one.
    """

    def __init__(
        self, net: DistillStep, bank: AugmentorBank | None, seed: int, world: World
    ) -> None:
        self._net, self._bank, self._seed, self._world = net, bank, seed, world
        self._noise = torch.Generator(world.device)
        self._network = default_generator(world.device)

    def draw(self, step: int, phase: Phase, shape: torch.Size) -> Noise:
        """The augmentor's noise for this process's images of a 0-based step.

        The bank's augmentor and the generator that dropout reads are set to the step's, too.

        Args:    shape: [B,C,H,W] of the process's own batch.
        """
        generator = reseed(self._noise, self._seed, "noise", step)
        rank, num_ranks = self._world.rank, self._world.size
        noise = draw_share(self._net.augmentor, shape, generator, rank, num_ranks)
        if self._bank is not None and phase is Phase.STUDENT:
            self._bank.draw_into(self._net.drawn, step)
        reseed(self._network, self._seed, "network", step, rank)
        return noise
