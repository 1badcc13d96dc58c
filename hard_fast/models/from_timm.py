"""Networks of timm, and what is wrong with what they were asked for, in one line."""

import inspect
import re
import sys
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from torch import nn

from hard_fast.models.own import count_outputs
from hard_fast.models.taps import nearest


def is_timm_name(name: str) -> bool:
    """Whether timm has such a network, and where the name has a tag, such weights."""
    import timm

    return timm.is_model(name) and ("." not in name or name in timm.list_models(pretrained=True))


def build_timm(
    name: str, options: Mapping[str, Any], sizes: Mapping[str, int], *, pretrained: bool
) -> nn.Module:
    """The network of this name with these options, told its image size where it wants to be.

    Where there are options, it is tried on one image.

    Args:    sizes: num_classes, in_channels and image_size.
    Raises:  ValueError, one line, for options that do not fit, or weights that cannot be had.
    """
    net = _create(name, options, sizes, pretrained=pretrained)
    if options:
        try:
            count_outputs(net, (sizes["in_channels"], sizes["image_size"], sizes["image_size"]))
        except ValueError as error:
            raise ValueError(f"name = {name!r}, options = {dict(options)}: {error}") from error
    return net


def _create(
    name: str, options: Mapping[str, Any], sizes: Mapping[str, int], *, pretrained: bool
) -> nn.Module:
    import timm

    if taken := sorted(options.keys() & {"num_classes", "in_chans", "pretrained"}):
        raise ValueError(f"options.{taken[0]}: is set elsewhere, leave it out of options")
    create = partial(
        timm.create_model,
        name,
        num_classes=sizes["num_classes"],
        in_chans=sizes["in_channels"],
        pretrained=pretrained,
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
            f"({type(error).__name__}: {_first_line(error)}){advice if pretrained else ''}"
        ) from error


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


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")
