"""The networks of a run, ready to be stepped."""

import torch
from torch import nn

from hard_fast.augment import build_augmentor
from hard_fast.config import RunConfig
from hard_fast.data import DataSet
from hard_fast.models.taps import Tapped
from hard_fast.models.zoo import NetworkConfig, build_network
from hard_fast.objectives import build_objective
from hard_fast.runtime import dist, parallel
from hard_fast.runtime.compile import amp_dtype
from hard_fast.runtime.dist import World
from hard_fast.runtime.seed import derive_seed
from hard_fast.step import DistillStep
from hard_fast.types import Phase


def build_step(config: RunConfig, data: DataSet, world: World) -> DistillStep:
    """Augmentor, student, teacher and objective on the device, alike in every process.

    Raises:  ValueError, one line, that names the network which cannot be built.
    """
    objective = build_objective(config.objective)
    objective.shares_classes = config.shares_classes
    needs = [objective.needs(phase) for phase in Phase]
    taps = sorted({name for need in needs for name in need.student_taps})
    student = _network(config.student, "student", taps, config, data, world)
    teacher = None
    if config.teacher:
        taps = sorted({name for need in needs for name in need.teacher_taps})
        teacher = _network(config.teacher, "teacher", taps, config, data, world)
    if config.distributed.sync_batchnorm:
        student = parallel.sync_batchnorm(student, world)
    torch.manual_seed(derive_seed(config.seed, "augmentor"))
    train = data.train
    augmentor = build_augmentor(config.augmentor, train.image_shape, is_picture=train.is_picture)
    torch.manual_seed(derive_seed(config.seed, "objective"))
    objective.meet(student, teacher, torch.zeros(1, *train.image_shape))
    net = DistillStep(augmentor, student, teacher, objective, num_classes=data.num_classes)
    net.to(world.device)
    dist.broadcast_module(net)
    if teacher is not None and config.distributed.teacher == "sharded":
        parallel.shard_(teacher, world)
    return net


def _network(
    network: NetworkConfig,
    role: str,
    taps: list[str],
    config: RunConfig,
    data: DataSet,
    world: World,
) -> nn.Module:
    torch.manual_seed(derive_seed(config.seed, role))
    channels, height, width = data.train.image_shape
    try:
        if height != width:
            raise ValueError(f"needs square pictures, and these are {height}x{width}")
        built = build_network(
            network,
            num_classes=data.num_classes,
            in_channels=channels,
            image_size=height,
            frozen=role == "teacher",
            taps=tuple(taps),
        )
    except ValueError as error:
        raise ValueError(f"[{role}] {error}") from error
    # A network with a precision of its own needs no autocast.
    amp = amp_dtype(config.train.precision, world.device) if network.precision == "auto" else None
    return Tapped(built, tuple(taps), amp).to(memory_format=torch.channels_last)
