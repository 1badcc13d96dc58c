"""Published test sets in the layouts their authors ship, ready to be evaluated."""

import difflib
from pathlib import Path

import torch

from hard_fast.evals.suites.catalogue import SUITES
from hard_fast.evals.suites.corrupted import CorruptedPart, number
from hard_fast.evals.suites.names import SuiteName, parse_name, split_names
from hard_fast.evals.suites.suite import (
    Loaded,
    Missing,
    PictureFormat,
    Request,
    Suite,
)
from hard_fast.evals.suites.summary import summarise

__all__ = [
    "SUITES",
    "Loaded",
    "Missing",
    "PictureFormat",
    "Suite",
    "find_suite",
    "has_label_map",
    "load_suite",
    "split_names",
    "summarise",
]

# Suites whose name goes on behind a colon.
_DETAILED = ("folder", "pacs", "mnist_c", "cifar10_c", "imagenet_c")
_SEVERE = ("mnist_c", "cifar10_c", "imagenet_c")
_MAPPED = ("folder", "pacs")


def find_suite(name: str) -> tuple[Suite, SuiteName]:
    """The suite that a name means, and the parts of the name.

    A name is a key of SUITES; `folder:PATH`, `pacs:DOMAIN`, or a corrupted set with the ones it is
    to be limited to, `cifar10_c:fog,snow@3`; and behind any of them `+corrupted`, with the same
    limits if need be: `cifar10+corrupted:fog@5`.

    Raises:  ValueError, one line, with the nearest names if there is no such suite.
    """
    asked = parse_name(name)
    if asked.key not in SUITES:
        near = difflib.get_close_matches(asked.key, SUITES, 3, 0.5) or list(SUITES)
        raise ValueError(f"{name}: no such suite; choose from {', '.join(near)}")
    if asked.detail and asked.key not in _DETAILED:
        raise ValueError(f"{name}: {asked.key} takes nothing behind a colon")
    if asked.severity is not None and asked.key not in _SEVERE:
        raise ValueError(f"{name}: {asked.key} has no severities; write {asked.key}+corrupted@3")
    return SUITES[asked.key], asked


def has_label_map(name: str) -> bool:
    """Whether a label map may say which outputs are the classes of the suite of this name."""
    return find_suite(name)[1].key in _MAPPED


def load_suite(
    name: str,
    data_root: Path,
    pictures: PictureFormat,
    device: torch.device,
    *,
    label_map: Path | None = None,
) -> Loaded:
    """The suite of that name below the root; pictures are decoded when batches are asked for.

    Args:    label_map: outputs of the network by class folder, for `folder:` and `pacs:` only.
    Raises:  Missing if the data are not there; ValueError, one line, if the name or a file is
             wrong.
    """
    suite, asked = find_suite(name)
    request = Request(
        suite,
        name,
        asked.detail,
        asked.severity,
        Path(data_root).expanduser(),
        pictures,
        device,
        label_map,
    )
    loaded = suite.read(request)
    if not asked.corruptions:
        return loaded
    if set(loaded.parts) != {"test"}:
        raise ValueError(f"{name}: {suite.title} is corrupted already")
    numbered = number(loaded.parts["test"], device)
    return loaded._replace(
        parts={
            f"{corruption}/{severity}": CorruptedPart(numbered, corruption, severity)
            for corruption in asked.corruptions
            for severity in asked.severities
        }
    )
