"""Networks by name, each with its own mean and std, and their weights on disk.

Letters: B images of a batch, C channels, H rows, W columns, K classes.
"""

import importlib
import inspect
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from hard_fast.models.checkpointing import checkpoint_activations
from hard_fast.models.dropout import LayerDropoutConfig, drop_out
from hard_fast.models.folding import fold_batchnorm
from hard_fast.models.options import typed_options
from hard_fast.models.small import SMALL_NETS
from hard_fast.models.statistics import NORM_GAP
from hard_fast.models.taps import Normalized, nearest, set_dtype
from hard_fast.models.watermark import Watermark, WatermarkConfig
from hard_fast.models.weights import load_weights, save_weights
from hard_fast.runtime.compile import Precision
from hard_fast.runtime.configfile import Config

__all__ = ["NetworkConfig", "Normalized", "build_network", "load_weights", "save_weights"]

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


def build_network(
    config: NetworkConfig,
    *,
    num_classes: int,
    in_channels: int,
    image_size: int,
    frozen: bool = False,
    taps: tuple[str, ...] = (),
) -> Normalized:
    """The network a config names, with its weights loaded, on the CPU.

    Args:    image_size: side of a square picture, px; timm models that need it are told.
             frozen: it never learns: in eval mode, without weight gradients, BatchNorm folded.
             taps: names of inner modules whose outputs are wanted, and stay what they are.
    Raises:  ValueError for an unknown name or option, unusable weights, mean and std that do not
             fit the channels, or checkpointing where it cannot be.
    """
    sizes = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    if config.num_classes is not None:
        sizes["num_classes"] = config.num_classes
    net = _bare_network(config, sizes)
    if config.checkpoint is not None:
        load_weights(net, config.checkpoint, head=_head(config, net))
    own_mean, own_std = _own_statistics(config.name, net, in_channels)
    mean = _per_channel("mean", own_mean if config.mean is None else config.mean, in_channels)
    std = _per_channel("std", own_std if config.std is None else config.std, in_channels)
    if not min(std) > 0:
        raise ValueError(f"std = {list(std)}: must be above 0")
    network = Normalized(net, mean, std)
    if frozen:
        network.eval().requires_grad_(False)
        if NORM_GAP not in taps:
            fold_batchnorm(network, (in_channels, image_size, image_size), taps)
    if config.precision != "auto":
        set_dtype(network, _DTYPES[config.precision])
    if config.dropout is not None and not frozen:
        drop_out(network, net, config.dropout)
    if config.checkpointing:
        checkpoint_activations(net, config.name, is_frozen=frozen, taps=taps)
    if config.watermark is not None:
        shape = (in_channels, image_size, image_size)
        network.mark = Watermark(config.watermark, shape, sizes["num_classes"])
    return network


def _bare_network(config: NetworkConfig, sizes: Mapping[str, int]) -> nn.Module:
    name = config.name
    is_small, is_own = name in SMALL_NETS, name.startswith("python:")
    if not (is_small or is_own):
        if not _is_timm_name(name):
            raise ValueError(_unknown_name(name))
        return _timm_net(config, sizes)
    if config.pretrained:
        raise ValueError(
            f"pretrained = true: only timm's networks have weights for download, {name!r} is none "
            "of them; give checkpoint = FILE"
        )
    return (_small_net if is_small else _own_net)(name, config.options, sizes)


def _head(config: NetworkConfig, net: nn.Module) -> str | None:
    """The name of the classifier that is not to be loaded, if there is one."""
    if not config.new_head:
        return None
    head = getattr(net, "pretrained_cfg", {}).get("classifier")
    if not isinstance(head, str):
        raise ValueError(
            f"new_head = true: {config.name!r} does not name its classifier as timm's do"
        )
    return head


def _own_statistics(name: str, net: nn.Module, in_channels: int) -> Statistics:
    """The mean and std a network was, or would be, trained with."""
    if in_channels == 3 and name.startswith("cifar_resnet"):
        return _IMAGENET_STATISTICS
    if in_channels == 3 and name not in SMALL_NETS and not name.startswith("python:"):
        return net.pretrained_cfg["mean"], net.pretrained_cfg["std"]
    return (0.0,), (1.0,)


def _small_net(name: str, options: Mapping[str, Any], sizes: Mapping[str, int]) -> nn.Module:
    builder = SMALL_NETS[name]
    return builder(**sizes, **typed_options(name, builder, options, given=sizes))


def _own_net(name: str, options: Mapping[str, Any], sizes: Mapping[str, int]) -> nn.Module:
    """What the person's own function returns; errors inside it keep their traceback."""
    module_name, _, function_name = name.removeprefix("python:").partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"name = {name!r}: cannot be loaded ({error}); it must read "
            "python:package.module:function"
        ) from error
    if taken := sorted(options.keys() & sizes.keys()):
        raise ValueError(f"options.{taken[0]}: is given by the data, leave it out")
    try:
        inspect.signature(function).bind(**sizes, **options)
    except TypeError as error:
        raise ValueError(
            f"name = {name!r}: cannot be called with {', '.join([*sizes, *options])}: {error}"
        ) from error
    net = function(**sizes, **options)
    if not isinstance(net, nn.Module):
        raise ValueError(f"name = {name!r}: returned a {type(net).__name__}, not an nn.Module")
    return net


def _timm_net(config: NetworkConfig, sizes: Mapping[str, int]) -> nn.Module:
    import timm

    name, options = config.name, config.options
    if taken := sorted(options.keys() & {"num_classes", "in_chans", "pretrained"}):
        raise ValueError(f"options.{taken[0]}: is set elsewhere, leave it out of options")
    create = partial(
        timm.create_model,
        name,
        num_classes=sizes["num_classes"],
        in_chans=sizes["in_channels"],
        pretrained=config.pretrained,
        **options,
    )
    try:
        if "img_size" in options:
            return create()
        try:
            return create(img_size=sizes["image_size"])
        except TypeError as error:
            # Networks that work at any size do not take it.
            if _unexpected_key(error) != "img_size":
                raise
            return create()
    except Exception as error:
        # Whatever a wrong option or a failed download raises deep inside, the person reads a line.
        if (key := _unexpected_key(error)) in options:
            raise ValueError(_unknown_option(name, key, _timm_options(name, error))) from error
        advice = "; without a network, set pretrained = false and checkpoint = FILE"
        raise ValueError(
            f"name = {name!r}, options = {options}: timm cannot build it "
            f"({type(error).__name__}: {_first_line(error)}){advice if config.pretrained else ''}"
        ) from error


def _is_timm_name(name: str) -> bool:
    import timm

    return timm.is_model(name) and ("." not in name or name in timm.list_models(pretrained=True))


def _unknown_name(name: str) -> str:
    import timm

    has_tag = "." in name
    known = timm.list_models(pretrained=True) if has_tag else [*SMALL_NETS, *timm.list_models()]
    return (
        f"name = {name!r}: unknown network{nearest(name, known)} "
        f"(choices: {', '.join(SMALL_NETS)}, python:package.module:function, any timm model)"
    )


def _unexpected_key(error: Exception) -> str | None:
    """The keyword that a call did not expect, if that is what the error says."""
    match = re.search(r"unexpected keyword argument(?:\(s\): \[)? ?'(\w+)'", str(error))
    return match.group(1) if match and isinstance(error, TypeError) else None


def _timm_options(name: str, error: Exception) -> list[str]:
    """Keywords of the class that refused one, where its name is in the model's own module."""
    import timm

    members = vars(sys.modules[timm.model_entrypoint(name).__module__])
    refusing = str(error).partition(".")[0]
    if refusing not in members:
        return []
    set_elsewhere = ("num_classes", "in_chans", "args", "kwargs")
    return [
        key for key in inspect.signature(members[refusing]).parameters if key not in set_elsewhere
    ]


def _unknown_option(name: str, key: str, known: Iterable[str]) -> str:
    listing = ", ".join(known)
    choices = f" (options: {listing})" if listing else ""
    return f"options.{key}: {name!r} has no such option{nearest(key, known)}{choices}"


def _per_channel(key: str, values: Sequence[float], in_channels: int) -> tuple[float, ...]:
    if len(values) not in (1, in_channels):
        raise ValueError(
            f"{key} = {list(values)}: has {len(values)} numbers, must have 1 or one for each of "
            f"the {in_channels} channels"
        )
    return tuple(values) if len(values) == in_channels else tuple(values) * in_channels


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")
