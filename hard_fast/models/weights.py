"""Weights of a network on disk: read from any usual file, written as safetensors."""

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from hard_fast.models.taps import bare
from hard_fast.runtime.archive import load_plain, reading_failure
from hard_fast.runtime.files import write_atomic

# Training frameworks wrap weights in one of these entries; averaged weights come first, as in timm.
_ENTRIES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
_ENTRIES += ("state_dict", "model_state_dict", "model")
# torch's AveragedModel counts beside the weights.
_COUNTER = "n_averaged"
# Values that lie beside weights and cannot run code: timm and DeiT save their command line, others
# a score as numpy has it, whose dtype is pickled under a class of its own.
_NUMBERS = "?" + np.typecodes["AllInteger"] + np.typecodes["Float"]
_SCALAR = np.float64(0).__reduce__()[0]
_SAFE = [argparse.Namespace, np.dtype, *{type(np.dtype(code)) for code in _NUMBERS}]
_SAFE += [(_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
_NUM_LISTED = 3
_log = logging.getLogger(__name__)


class OtherClasses(ValueError):
    """Weights that would fit a network of as many classes as they have themselves.

    num, keys: those classes, and what differs in the number of its rows alone: the classifier, if
               these are its names.
    """

    def __init__(self, text: str, num: int, keys: Sequence[str]) -> None:
        super().__init__(text)
        self.num, self.keys = num, keys


def load_weights(net: nn.Module, path: str | Path, *, head: str | None = None) -> None:
    """Load a file of weights into a network, the bare one inside Normalized and Tapped.

    Wrapping entries (`state_dict`, `model` and the like, those of averaged weights first; else the
    only one that holds weights) and prefixes that all keys carry (`module.`, `_orig_mod.`) are
    taken off. A file whose tensors have other names, but one by one the network's shapes, is taken
    in its order, with a warning. Nothing in the file is ever executed, and a network whose file
    does not fit is left as it was.

    Args:    head: a module of the network that keeps its own weights, whatever the file holds.
    Raises:  ValueError if there is no such file, it holds no weights, or they do not fit; where
             nothing but the number of classes is in the way, OtherClasses.
    """
    net = bare(net)
    own = net.state_dict()
    is_head = tuple(key for key in own if head is not None and key.startswith(f"{head}."))
    given = _without_prefixes(_read_tensors(Path(path)), own)
    if Path(path).suffix != ".safetensors":
        # Those are sorted by name, the others as the network lists them.
        given = _in_order(given, own, is_head, path)
    given |= {key: own[key] for key in is_head}
    # Weights saved before torch 0.4.1 have no such counters, and BatchNorm does without.
    missing = [k for k in own if k not in given and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in given if k not in own]
    differ = [k for k in own if k in given and given[k].shape != own[k].shape]
    shapes = [f"{k}: file {list(given[k].shape)}, network {list(own[k].shape)}" for k in differ]
    problems = ((missing, "missing"), (unexpected, "unexpected"), (shapes, "of another shape"))
    if found := [f"{len(keys)} {word} ({_first(keys)})" for keys, word in problems if keys]:
        text = (
            f"{path}: does not fit the network ({len(given)} tensors in the file, {len(own)} in "
            f"the network): {', '.join(found)}"
        )
        num = None if missing or unexpected else _other_rows(given, own, differ)
        raise ValueError(text) if num is None else OtherClasses(text, num, differ)
    net.load_state_dict(given)


def _in_order(
    given: dict[str, Tensor], own: Mapping[str, Tensor], free: Sequence[str], path: str | Path
) -> dict[str, Tensor]:
    """The tensors under the network's names, if only names differ; `free` ones may differ in shape.

    Other trainers of a network name its layers otherwise, and list them in the same order.
    """
    if given.keys() == own.keys() or len(given) != len(own):
        return given
    renamed = dict(zip(own, given.values(), strict=True))
    differ = [key for key in own if key not in free and renamed[key].shape != own[key].shape]
    if differ:
        # Those of other classes do not fit either way; under these names that can be told.
        return given if _other_rows(renamed, own, differ) is None else renamed
    _log.warning(
        "%s: other names than the network's, so its %d tensors are taken in order", path, len(own)
    )
    return renamed


def _other_rows(
    given: Mapping[str, Tensor], own: Mapping[str, Tensor], keys: Sequence[str]
) -> int | None:
    """How many rows these tensors have in the file, if they differ in nothing else."""
    pairs = [(given[key].shape, own[key].shape) for key in keys]
    is_alike = all(len(a) == len(b) and a[1:] == b[1:] for a, b in pairs)
    return pairs[0][0][0] if is_alike and len({(a[0], b[0]) for a, b in pairs}) == 1 else None


def save_weights(net: nn.Module, path: str | Path) -> Path:
    """Write the bare network's weights as safetensors, whole or not at all.

    The file loads with `load_weights` and, for a timm network, with timm's `checkpoint_path`.

    Raises:  ValueError if the name does not end in .safetensors.
    """
    from safetensors.torch import save

    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: weights are saved as safetensors; the name must end so")
    # Clones, since safetensors refuses tensors that share memory, and channels_last ones.
    tensors = {
        key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, tensor in bare(net).state_dict().items()
    }
    return write_atomic(path, save(tensors, metadata={"format": "pt"}))


def _read_tensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    if not path.is_file():
        raise ValueError(f"{path}: no such file of weights")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except Exception as error:
            raise ValueError(f"{path}: {reading_failure(error)}") from error
    with torch.serialization.safe_globals(_SAFE):
        content = load_plain(path, path)
    while isinstance(content, Mapping) and (entry := _wrapping_entry(content, path)) is not None:
        content = content[entry]
    if not _is_weights(content):
        found = f", found {_first(list(map(str, content)))}" if isinstance(content, Mapping) else ""
        raise ValueError(
            f"{path}: holds no weights; expected a dictionary of tensors by name{found}"
        )
    return {key: tensor for key, tensor in content.items() if key != _COUNTER}


def _is_weights(content: object) -> bool:
    return isinstance(content, Mapping) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    )


def _wrapping_entry(content: Mapping[str, object], path: Path) -> str | None:
    """The entry with the weights; None where they lie bare, or are not to be found.

    Raises:  ValueError if several are weights, and none has a name that says which to take.
    """
    named = [entry for entry in _ENTRIES if isinstance(content.get(entry), Mapping)]
    if named or _is_weights(content):
        return next(iter(named), None)
    found = [entry for entry, value in content.items() if value and _is_weights(value)]
    if len(found) > 1:
        raise ValueError(
            f"{path}: holds several sets of weights ({_first(list(map(str, found)))}); save the "
            "one that is wanted alone"
        )
    return next(iter(found), None)


def _without_prefixes(given: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without prefixes that all their names carry and not all of the network's do."""
    while given and given.keys() != own.keys():
        prefix = next(iter(given)).partition(".")[0] + "."
        if not _all_start(given, prefix) or _all_start(own, prefix):
            break
        given = {key.removeprefix(prefix): tensor for key, tensor in given.items()}
    return given


def _all_start(names: Mapping[str, Tensor], prefix: str) -> bool:
    return all(name.startswith(prefix) for name in names)


def _first(texts: Sequence[str]) -> str:
    return ", ".join(texts[:_NUM_LISTED]) + (", ..." if len(texts) > _NUM_LISTED else "")
