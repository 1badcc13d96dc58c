"""Networks of the person's own: found by their function's name, and tried out before a run begins.

Letters: C channels, H rows, W columns.
"""

import importlib
import inspect
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hard_fast.models.taps import Tapped, try_out

PREFIX = "python:"


def build_own(name: str, options: Mapping[str, Any], sizes: Mapping[str, int]) -> nn.Module:
    """What the function of `python:package.module:function` returns; its errors stay its own.

    Args:    sizes: num_classes, in_channels and image_size, which the function is called with
                 beside the options.
    Raises:  ValueError, one line, if there is no such function, it does not take what it is given,
             or returns no network that turns such images into so many outputs.
    """
    module_name, _, function_name = name.removeprefix(PREFIX).partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"name = {name!r}: cannot be loaded ({error}); it must read "
            "python:package.module:function, of a module in this folder or on PYTHONPATH"
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
    try:
        num = count_outputs(net, (sizes["in_channels"], sizes["image_size"], sizes["image_size"]))
    except ValueError as error:
        raise ValueError(f"name = {name!r}: {error}") from error
    if num != sizes["num_classes"]:
        raise ValueError(
            f"name = {name!r}: has {num} outputs, and num_classes is {sizes['num_classes']}; the "
            "function is called with num_classes and must heed it"
        )
    return net


def count_outputs(net: nn.Module, image_shape: Sequence[int]) -> int:
    """How many outputs a network has for an image: tried on one of zeros, in eval mode.

    Args:    image_shape: [C,H,W].
    Raises:  ValueError, one line, if it cannot read the image or returns no logits.
    """
    held = itertools.chain(net.parameters(), net.buffers())
    device = next((tensor.device for tensor in held), torch.device("cpu"))
    try:
        logits = try_out(Tapped(net), torch.zeros(1, *image_shape, device=device)).logits_BK
    except ValueError:
        raise
    except Exception as error:
        # A network of any origin may raise anything.
        said = next(iter(str(error).splitlines()), "")
        shape = "x".join(map(str, image_shape))
        raise ValueError(
            f"cannot read an image of {shape} ({type(error).__name__}: {said})"
        ) from error
    if logits.ndim != 2 or len(logits) != 1:
        raise ValueError(
            f"returned {list(logits.shape)} for one image; it must be [1, number of classes]"
        )
    return logits.shape[1]
