"""BatchNorm's statistics computed anew, for weights that no training step ever ran with."""

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from hard_fast.augment.base import draw_share
from hard_fast.data.arrays import Loader
from hard_fast.runtime import dist
from hard_fast.runtime.dist import World
from hard_fast.runtime.seed import reseed
from hard_fast.step import DistillStep
from hard_fast.types import Phase


@torch.no_grad()
def recompute_batchnorm(
    net: DistillStep, loader: Loader, num_batches: int, world: World, *, seed: int
) -> None:
    """Set the student's running statistics to their plain mean over augmented training batches.

    Everything but BatchNorm stays in eval mode. Where the student has no BatchNorm, nothing is run.

    Args:    loader: of its own, since the run's must not lose its place.
    Source:  Izmailov et al. 2018, arXiv:1803.05407, section 3.2.
    """
    norms = [module for module in net.student.modules() if isinstance(module, _BatchNorm)]
    norms = [norm for norm in norms if norm.track_running_stats]
    if not norms:
        return
    kept = [norm.momentum for norm in norms]
    was_training = [(module, module.training) for module in net.modules()]
    net.train(False)
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    generator = torch.Generator(world.device)
    for number in range(num_batches):
        batch = loader.next_batch()
        drawn = reseed(generator, seed, "batchnorm", number)
        noise = draw_share(net.augmentor, batch.image.shape, drawn, world.rank, world.size)
        net.student(net.make_view(Phase.STUDENT, batch, noise).image)
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum
    for module, is_training in was_training:
        module.training = is_training
    statistics = [value for norm in norms for value in (norm.running_mean, norm.running_var)]
    dist.mean_(statistics)
