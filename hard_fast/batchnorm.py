"""BatchNorm's statistics: of weights that no training step ran with, and of each process."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from hard_fast.augment.base import draw_share
from hard_fast.bank import AugmentorBank
from hard_fast.data.arrays import Loader
from hard_fast.models.dropout import LayerDropout
from hard_fast.runtime import dist
from hard_fast.runtime.dist import World
from hard_fast.runtime.seed import reseed
from hard_fast.step import DistillStep
from hard_fast.types import Phase


@torch.no_grad()
def recompute_batchnorm(
    net: DistillStep,
    phase: Phase,
    loader: Loader,
    num_batches: int,
    world: World,
    *,
    seed: int,
    bank: AugmentorBank | None = None,
) -> None:
    """Set the student's running statistics to their plain mean over training batches.

    The student sees what a step of this phase shows it, dropout apart; all else stays in eval mode.
    Where the student has no BatchNorm, nothing is run.

    Args:    phase: in which the student learns.
             loader: of its own, since the run's must not lose its place.
             bank: a step draws its augmentor there.
    Source:  Izmailov et al. 2018, arXiv:1803.05407, section 3.2.
    """
    norms = [module for module in net.student.modules() if isinstance(module, _BatchNorm)]
    norms = [norm for norm in norms if norm.track_running_stats]
    if not norms:
        return
    kept = [norm.momentum for norm in norms]
    was_training = [(module, module.training) for module in net.modules()]
    net.train(False)
    net.student.train()
    for module in net.student.modules():
        # By its name: only networks of timm's have one, and no other run needs the package.
        if isinstance(module, _DropoutNd | LayerDropout) or type(module).__name__ == "DropPath":
            module.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    generator = torch.Generator(world.device)
    for number in range(num_batches):
        batch = loader.next_batch()
        drawn = reseed(generator, seed, "batchnorm", number)
        noise = draw_share(net.augmentor, batch.image.shape, drawn, world.rank, world.size)
        if bank is not None:
            bank.draw_into(net.drawn, number)
        net(phase, batch, noise)
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum
    for module, is_training in was_training:
        module.training = is_training
    statistics = [value for norm in norms for value in (norm.running_mean, norm.running_var)]
    dist.mean_(statistics)


def gather_statistics(own: Sequence[Tensor]) -> list[Tensor]:
    """What `restore_statistics` needs: all numbers of each process; nothing where there is one."""
    if not own:
        return []
    flat = dist.gather_objects(torch.cat([value.flatten().float() for value in own]).cpu())
    return flat if len(flat) > 1 else []


@torch.no_grad()
def restore_statistics(own: Sequence[Tensor], gathered: Sequence[Tensor], world: World) -> None:
    """Give this process its own numbers again, or the mean of all if there were more or fewer.

    Args:    gathered: what `gather_statistics` returned; nothing changes where that is nothing.
    """
    if not gathered:
        return
    is_alike = len(gathered) == world.size
    flat = gathered[world.rank] if is_alike else torch.stack(list(gathered)).mean(0)
    for value, part in zip(own, flat.split([v.numel() for v in own]), strict=True):
        value.copy_(part.view_as(value))
