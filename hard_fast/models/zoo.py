"""Networks by name, each with its own mean and std, and their weights on disk.

Letters: B images of a batch, C channels, H rows, W columns, K classes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from hard_fast.models.checkpointing import checkpoint_activations
from hard_fast.models.classifier import load_checkpoint
from hard_fast.models.dropout import LayerDropoutConfig, drop_out
from hard_fast.models.ensemble import Ensemble
from hard_fast.models.folding import fold_batchnorm
from hard_fast.models.from_timm import build_timm, is_timm_name
from hard_fast.models.options import typed_options
from hard_fast.models.own import PREFIX, build_own
from hard_fast.models.small import SMALL_NETS
from hard_fast.models.statistics import NORM_GAP
from hard_fast.models.taps import Normalized, nearest, set_dtype
from hard_fast.models.watermark import Watermark, WatermarkConfig
from hard_fast.models.weights import load_weights, save_weights
from hard_fast.runtime.compile import Precision
from hard_fast.runtime.configfile import Config

__all__ = [
    "Dressed",
    "NetworkConfig",
    "Normalized",
    "TeacherConfig",
    "build_network",
    "dress_network",
    "load_weights",
    "members_of",
    "save_weights",
]

# Reads images in [0,1].
Dressed = Normalized | Ensemble
Statistics = tuple[Sequence[float], Sequence[float]]
_IMAGENET_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class NetworkConfig(Config):
    """Which network, with which weights and which input statistics."""

    name: str
    """A small net's name, `python:package.module:function`, or any timm model."""
    checkpoint: str | None = None
    """File of weights, .safetensors or torch's .pth, .pt, .th, .bin."""
    pretrained: bool = False
    """Download timm's weights."""
    new_head: bool = False
    """Start a new classifier instead of the checkpoint's: fine-tuning timm networks on classes of
    your own. `pretrained` does so by itself where the number of classes differs."""
    mean: tuple[float, ...] | None = None
    """Per channel, of inputs in [0,1]; one number serves all channels. None: the network's own."""
    std: tuple[float, ...] | None = None
    options: dict[str, Any] = {}
    """Keyword arguments of the network's constructor."""
    num_classes: int | None = Field(default=None, ge=1)
    """Of a teacher: outputs of its own head, where its classes are not the data's."""
    watermark: WatermarkConfig | None = None
    """Mark the network's answers, which a student that learns from them inherits."""
    precision: Precision = "auto"
    """Of a teacher: the dtype of its weights and arithmetic, without autocast; in 16 bit it takes
    half the memory. auto: weights in fp32, autocast as train.precision says."""
    dropout: LayerDropoutConfig | None = None
    """Dropout behind one random layer in each step in which the network learns."""
    checkpointing: bool = False
    """Keep few activations for the backward pass and compute the others again: less memory for
    more time. timm's networks can."""

    @model_validator(mode="after")
    def _one_source_of_weights(self) -> Self:
        if self.pretrained and self.checkpoint is not None:
            raise ValueError(
                f"pretrained = true and checkpoint = {self.checkpoint!r}: set one of them, not both"
            )
        if self.new_head and self.checkpoint is None:
            raise ValueError("new_head = true: there is no checkpoint whose classifier to replace")
        if self.checkpointing and self.dropout is not None:
            raise ValueError("checkpointing = true: what is computed again cannot have dropout")
        return self

    @property
    def members(self) -> list["NetworkConfig"]:
        """The networks that answer together; of all but an ensemble the network alone."""
        return [self]

    @property
    def title(self) -> str:
        """What a table calls it."""
        return " + ".join(member.name for member in self.members)

    @property
    def uses_autocast(self) -> bool:
        """Whether any of it computes as train.precision says."""
        return any(member.precision == "auto" for member in self.members)

    def each(self, change: Callable[["NetworkConfig"], "NetworkConfig"]) -> "NetworkConfig":
        """The same with every network in it changed."""
        return change(self)


class MemberConfig(NetworkConfig):
    """One of several teachers."""

    weight: float = Field(default=1.0, gt=0.0)
    """Its share in the mean of their probabilities; only ratios count."""


class TeacherConfig(MemberConfig):
    """The network that is followed, or several that answer as one: their mean probability."""

    also: list[MemberConfig] = []
    """More teachers of the same classes, each with weights, statistics and a precision of its own;
    see models/ensemble.py."""

    @model_validator(mode="after")
    def _answers_as_one(self) -> Self:
        if not self.also and self.weight != 1.0:
            raise ValueError(f"weight = {self.weight:g}: there is no other teacher; add also")
        if self.also and any(member.num_classes is not None for member in self.members):
            raise ValueError("num_classes: several teachers answer the data's classes; remove it")
        return self

    @property
    def members(self) -> list[NetworkConfig]:
        """The networks that answer together."""
        return [self, *self.also]

    def each(self, change: Callable[[NetworkConfig], NetworkConfig]) -> NetworkConfig:
        """The same with every network in it changed."""
        return change(self).model_copy(update={"also": [change(member) for member in self.also]})


def members_of(teacher: TeacherConfig | None) -> list[NetworkConfig]:
    """The networks that teach together; none where there is no teacher."""
    return teacher.members if teacher else []


def build_network(
    config: NetworkConfig,
    *,
    num_classes: int,
    in_channels: int,
    image_size: int,
    frozen: bool = False,
    taps: tuple[str, ...] = (),
) -> Dressed:
    """The network a config names, with its weights loaded, on the CPU.

    Args:    image_size: side of a square picture, px; timm models that need it are told.
             frozen: it never learns: in eval mode, without weight gradients, BatchNorm folded.
             taps: names of inner modules whose outputs are wanted, and stay what they are.
    Raises:  ValueError for an unknown name or option, unusable weights, mean and std that do not
             fit the channels, checkpointing where it cannot be, or taps of an ensemble.
    """
    sizes = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    shape = (in_channels, image_size, image_size)

    def bare_network(member: NetworkConfig) -> nn.Module:
        given = {"num_classes": member.num_classes} if member.num_classes is not None else {}
        net = _bare_network(member, sizes | given)
        if member.checkpoint is not None:
            is_teacher = isinstance(member, TeacherConfig) and not member.also
            may = {"may_learn": not frozen, "may_keep_classes": is_teacher}
            load_checkpoint(net, member.name, member.checkpoint, new_head=member.new_head, **may)
        return net

    return dress_network(config, bare_network, num_classes, shape, frozen=frozen, taps=taps)


def dress_network(
    config: NetworkConfig,
    bare_network: Callable[[NetworkConfig], nn.Module],
    num_classes: int,
    image_shape: tuple[int, int, int],
    *,
    frozen: bool,
    taps: tuple[str, ...],
) -> Dressed:
    """A bare network, or several, made what a config says of it beyond its name and weights.

    Args:    bare_network: the network of the config, or of a member of it.
             image_shape: [C,H,W].
    """
    if len(config.members) > 1 and taps:
        raise ValueError(
            f"also: the objective reads inner layers of the teacher ({', '.join(taps)}), and "
            "several teachers have none in common; remove also"
        )
    built = []
    for number, member in enumerate(config.members):
        try:
            net = bare_network(member)
            built.append(_dress_one(member, net, num_classes, image_shape, frozen, taps))
        except ValueError as error:
            if number:
                raise ValueError(f"also.{number - 1}: {error}") from error
            raise
    if len(built) == 1:
        return built[0]
    return Ensemble(built, [member.weight for member in config.members]).train(not frozen)


def _dress_one(
    config: NetworkConfig,
    net: nn.Module,
    num_classes: int,
    image_shape: tuple[int, int, int],
    frozen: bool,
    taps: tuple[str, ...],
) -> Normalized:
    num_channels = image_shape[0]
    own_mean, own_std = _own_statistics(config.name, net, num_channels)
    mean = _per_channel("mean", own_mean if config.mean is None else config.mean, num_channels)
    std = _per_channel("std", own_std if config.std is None else config.std, num_channels)
    if not min(std) > 0:
        raise ValueError(f"std = {list(std)}: must be above 0")
    network = Normalized(net, mean, std)
    if frozen:
        network.eval().requires_grad_(False)
        if NORM_GAP not in taps:
            fold_batchnorm(network, image_shape, taps)
    if config.precision != "auto":
        set_dtype(network, _DTYPES[config.precision])
    if config.dropout is not None and not frozen:
        drop_out(network, net, config.dropout)
    if config.checkpointing:
        checkpoint_activations(net, config.name, is_frozen=frozen, taps=taps)
    if config.watermark is not None:
        network.mark = Watermark(config.watermark, image_shape, config.num_classes or num_classes)
    return network


def _bare_network(config: NetworkConfig, sizes: Mapping[str, int]) -> nn.Module:
    name = config.name
    is_small, is_own = name in SMALL_NETS, name.startswith(PREFIX)
    if not (is_small or is_own):
        if not is_timm_name(name):
            raise ValueError(_unknown_name(name))
        return build_timm(name, config.options, sizes, pretrained=config.pretrained)
    if config.pretrained:
        raise ValueError(
            f"pretrained = true: only timm's networks have weights for download, {name!r} is none "
            "of them; give checkpoint = FILE"
        )
    return (_small_net if is_small else build_own)(name, config.options, sizes)


def _own_statistics(name: str, net: nn.Module, in_channels: int) -> Statistics:
    """The mean and std a network was, or would be, trained with."""
    if in_channels == 3 and name.startswith("cifar_resnet"):
        return _IMAGENET_STATISTICS
    if in_channels == 3 and name not in SMALL_NETS and not name.startswith(PREFIX):
        return net.pretrained_cfg["mean"], net.pretrained_cfg["std"]
    return (0.0,), (1.0,)


def _small_net(name: str, options: Mapping[str, Any], sizes: Mapping[str, int]) -> nn.Module:
    builder = SMALL_NETS[name]
    return builder(**sizes, **typed_options(name, builder, options, given=sizes))


def _unknown_name(name: str) -> str:
    import timm

    has_tag = "." in name
    known = timm.list_models(pretrained=True) if has_tag else [*SMALL_NETS, *timm.list_models()]
    return (
        f"name = {name!r}: unknown network{nearest(name, known)} "
        f"(choices: {', '.join(SMALL_NETS)}, python:package.module:function, any timm model)"
    )


def _per_channel(key: str, values: Sequence[float], in_channels: int) -> tuple[float, ...]:
    if len(values) not in (1, in_channels):
        raise ValueError(
            f"{key} = {list(values)}: has {len(values)} numbers, must have 1 or one for each of "
            f"the {in_channels} channels"
        )
    return tuple(values) if len(values) == in_channels else tuple(values) * in_channels
