"""The networks of a run, ready to be stepped."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch

from hard_fast.augment import build_augmentor
from hard_fast.config import RunConfig
from hard_fast.data import DataSet
from hard_fast.models.ensemble import Ensemble
from hard_fast.models.taps import Tapped
from hard_fast.models.zoo import Dressed, NetworkConfig, build_network, members_of
from hard_fast.objectives import build_objective
from hard_fast.runtime import dist, parallel
from hard_fast.runtime.compile import amp_dtype
from hard_fast.runtime.dist import World
from hard_fast.runtime.seed import derive_seed
from hard_fast.step import DistillStep
from hard_fast.types import Phase, View

Role = Literal["student", "teacher"]
# The network of a config, with these inner modules' names left as they are.
Make = Callable[[NetworkConfig, Role, tuple[str, ...]], Dressed]


def build_step(
    config: RunConfig, data: DataSet, world: World, sizes: Sequence[int] = ()
) -> DistillStep:
    """Augmentor, student, teacher and objective on the device, alike in every process.

    Args:    sizes: sides of training pictures, px, other than the data's own.
    Raises:  ValueError, one line, that names the network which cannot be built, or that does not
             take pictures of a size.
    """
    train = data.train
    channels, height, width = train.image_shape

    def make(network: NetworkConfig, role: Role, taps: tuple[str, ...]) -> Dressed:
        if height != width:
            raise ValueError(f"needs square pictures, and these are {height}x{width}")
        given = {"num_classes": data.num_classes, "in_channels": channels, "image_size": height}
        return build_network(network, **given, frozen=role == "teacher", taps=taps)

    given = {"is_picture": train.is_picture, "sizes": sizes}
    return assemble(config, make, train.image_shape, data.num_classes, world, **given)


def assemble(
    config: RunConfig,
    make: Make,
    image_shape: torch.Size,
    num_classes: int,
    world: World,
    *,
    is_picture: bool = True,
    sizes: Sequence[int] = (),
) -> DistillStep:
    """What `build_step` returns, for images of shape [C,H,W], of networks that `make` makes.

    Args:    num_classes: of the labels. is_picture: whether pixels lie in [0,1].
    """
    objective = build_objective(config.objective)
    objective.shares_classes = config.shares_classes
    needs = [objective.needs(phase) for phase in Phase]
    student = _network(config, "student", [need.student_taps for need in needs], make, world)
    teacher = None
    if config.teacher:
        _check_members(config)
        teacher = _network(config, "teacher", [need.teacher_taps for need in needs], make, world)
    if config.distributed.sync_batchnorm:
        student = parallel.sync_batchnorm(student, world)
    torch.manual_seed(derive_seed(config.seed, "augmentor"))
    augmentor = build_augmentor(config.augmentor, image_shape, is_picture=is_picture)
    torch.manual_seed(derive_seed(config.seed, "objective"))
    objective.meet(student, teacher, torch.zeros(1, *image_shape))
    net = DistillStep(augmentor, student, teacher, objective, num_classes=num_classes)
    net.to(world.device)
    dist.broadcast_module(net)
    if sizes:
        _check_sizes(net, config, image_shape[0], sizes, world)
    if teacher is not None and config.distributed.teacher == "sharded":
        # Each member by itself, since weights of several precisions do not travel together.
        network = teacher.network
        for member in network.children() if isinstance(network, Ensemble) else [teacher]:
            parallel.shard_(member, world)
    return net


def _check_members(config: RunConfig) -> None:
    has_distance = config.objective.kind in ("kd", "hard")
    if len(members_of(config.teacher)) > 1 and has_distance and config.objective.distance == "mse":
        raise ValueError(
            "teacher.also: several teachers answer with probabilities, and objective.distance = "
            "'mse' compares raw outputs; use 'kl'"
        )


@torch.no_grad()
def _check_sizes(
    net: DistillStep, config: RunConfig, channels: int, sizes: Sequence[int], world: World
) -> None:
    """Show all that looks at pictures one batch of each size."""
    net.train(False)
    generator = torch.Generator(world.device).manual_seed(0)
    for side in sizes:
        shape = torch.Size((net.augmentor.group, channels, side, side))
        image = torch.zeros(shape, device=world.device).contiguous(
            memory_format=torch.channels_last
        )
        if net.teacher is not None:
            _check_size(f"[teacher] name = {config.teacher.name!r}", side, net.teacher, image)
        _check_size(f"[student] name = {config.student.name!r}", side, net.student, image)

        def make(image: torch.Tensor, shape: torch.Size = shape) -> View:
            return net.augmentor(View(image, None), net.augmentor.draw_noise(shape, generator))

        _check_size(f"[augmentor] kind = {config.augmentor.kind!r}", side, make, image)
    net.learn(Phase.STUDENT)


def _check_size(who: str, side: int, call: Callable[..., Any], image: torch.Tensor) -> None:
    try:
        call(image)
    except Exception as error:
        # Networks say it in ways of their own, AssertionError and RuntimeError among them.
        said = next(iter(str(error).splitlines()), "").strip()
        raise ValueError(
            f"train.resolution: {who} does not take pictures of {side} px ({said}); timm's ViTs do "
            "with options.dynamic_img_size = true; else change start_px, or remove train.resolution"
        ) from error


def _network(
    config: RunConfig,
    role: Role,
    taps: Iterable[tuple[str, ...]],
    make: Make,
    world: World,
) -> Tapped:
    torch.manual_seed(derive_seed(config.seed, role))
    network = config.teacher if role == "teacher" else config.student
    names = tuple(sorted({name for need in taps for name in need}))
    try:
        built = make(network, role, names)
    except ValueError as error:
        raise ValueError(f"[{role}] {error}") from error
    # A network with a precision of its own needs no autocast.
    amp = amp_dtype(config.train.precision, world.device) if network.uses_autocast else None
    return Tapped(built, names, amp).to(memory_format=torch.channels_last)
