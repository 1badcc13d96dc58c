"""Pictures in class folders: any such folder, and the domains of PACS.

Letters: N pictures of a part, K classes, G outputs of a class.
"""

import json
import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from hard_fast.data.folders import shorten
from hard_fast.data.pictures import Pictures
from hard_fast.data.pipelines import import_dali
from hard_fast.data.sources import Listing, PicturesConfig, find_readable, list_part
from hard_fast.evals.suites.imagenet_classes import read_wnids
from hard_fast.evals.suites.suite import Loaded, Missing, Request

_log = logging.getLogger(__name__)

# Inside a folder of class folders; --label-map names another file.
LABEL_MAP = "label_map.json"
PACS_DOMAINS = ("art_painting", "cartoon", "photo", "sketch")
PACS_CLASSES = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")


class ClassFolders(NamedTuple):
    """The pictures of one folder; the labels count its sorted class folders."""

    folder: Path
    classes: tuple[str, ...]
    listing: Listing


def list_classes(folder: Path) -> ClassFolders:
    """What a folder of class folders holds.

    Raises:  ValueError, one line, if there are none or one is empty.
    """
    return ClassFolders(folder, *list_part(folder.parent, folder.name))


def open_listing(
    request: Request,
    listing: Listing,
    class_names: tuple[str, ...],
    *,
    label: np.ndarray | None = None,
    eval_crop: float | None = None,
) -> Pictures:
    """The readable pictures of a listing as a part; nothing is decoded yet.

    Args:    label: [N] int64 in place of the listing's own; -1 leaves a picture out.
             eval_crop: in place of the network's.
    """
    import_dali()
    is_kept = find_readable(listing, class_names)
    samples = listing.samples
    if label is not None:
        samples = samples._replace(label=label)
        is_kept &= label >= 0
    size, crop, interpolation = request.pictures
    config = PicturesConfig(
        root=str(listing.folders[0]),
        size=size,
        eval_crop=crop if eval_crop is None else eval_crop,
        interpolation=interpolation,
    )
    return Pictures(samples.take(np.flatnonzero(is_kept)), config, request.device)


def read_folder(request: Request) -> Loaded:
    """Any folder of class folders, whose sorted names are the labels or go through a label map."""
    if not request.detail:
        raise ValueError(f"{request.name}: name the folder, as folder:mine/val")
    folder = request.data_root / request.detail
    if not folder.is_dir():
        raise Missing(f"no folder {folder}")
    return _load(request, list_classes(folder))


def read_pacs(request: Request) -> Loaded:
    """One domain of PACS with its seven classes."""
    domain = request.detail
    if domain not in PACS_DOMAINS:
        raise ValueError(f"{request.name}: name a domain, as pacs:{'|'.join(PACS_DOMAINS)}")
    home = request.find_home()
    places = [home / below / domain for below in ("", "kfold", "images")]
    folder = next((place for place in places if place.is_dir()), None)
    if folder is None:
        raise ValueError(f"{home}: no folder {domain}, expected {request.suite.layout}")
    found = list_classes(folder)
    check_classes(found.classes, PACS_CLASSES, folder, "PACS")
    return _load(request, found)


def check_classes(
    found: tuple[str, ...], expected: tuple[str, ...], folder: Path, title: str
) -> None:
    """Raise ValueError naming what is missing or too much if the class folders are not those."""
    lacking, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    parts = [f"lacks {len(lacking)} of them: {shorten(lacking)}"] if lacking else []
    parts += [f"has {len(extra)} too many: {shorten(extra)}"] if extra else []
    if parts:
        raise ValueError(
            f"{folder}: expected the {len(expected)} class folders of {title}, but it "
            f"{' and '.join(parts)}"
        )


def _load(request: Request, found: ClassFolders) -> Loaded:
    path = request.label_map
    if path is None and (found.folder / LABEL_MAP).is_file():
        path = found.folder / LABEL_MAP
    if path is None:
        part = open_listing(request, found.listing, found.classes)
        return Loaded({"test": part}, len(found.classes))
    outputs = read_label_map(path, found)
    label_of = np.full(len(found.classes), -1, np.int64)
    for label, name in enumerate(outputs):
        label_of[found.classes.index(name)] = label
    unmapped = [name for name in found.classes if name not in outputs]
    if unmapped:
        _log.warning(
            "%s: left out, for %s does not name them: %s",
            found.folder,
            path.name,
            ", ".join(unmapped),
        )
    label = label_of[found.listing.samples.label]
    columns = torch.full((len(outputs), max(map(len, outputs.values()))), -1)
    for row, numbers in enumerate(outputs.values()):
        columns[row, : len(numbers)] = torch.tensor(numbers)
    part = open_listing(request, found.listing, found.classes, label=label)
    return Loaded({"test": part}, len(outputs), columns)


def read_label_map(path: Path, found: ClassFolders) -> dict[str, list[int]]:
    """The outputs of the network that are each class folder's, sorted by the folder's name.

    Args:    path: a JSON object of lists by folder; ImageNet's outputs may be numbers or WordNet
             identifiers.
    Raises:  ValueError if it is anything else, names a folder that is not there, or an output
             twice.
    """
    example = '{"cat": [281, 282], "dog": ["n02085620"]}'
    try:
        tree = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: no readable JSON ({error}); expected {example}") from None
    if not isinstance(tree, dict) or not tree:
        raise ValueError(f"{path}: expected class folders and outputs, as {example}")
    unknown = sorted(set(tree) - set(found.classes))
    if unknown:
        raise ValueError(f"{path}: {found.folder} has no class folder {shorten(unknown)}")
    number_of = {wnid: i for i, wnid in enumerate(read_wnids())}
    outputs: dict[str, list[int]] = {}
    owner: dict[int, str] = {}
    for name in sorted(tree):
        values = tree[name] if isinstance(tree[name], list) else [tree[name]]
        numbers = [number_of[v] if isinstance(v, str) and v in number_of else v for v in values]
        if not numbers or any(type(n) is not int or n < 0 for n in numbers):
            raise ValueError(f"{path}: {name}: {tree[name]!r}: expected outputs, as {example}")
        for n in numbers:
            if n in owner:
                raise ValueError(f"{path}: output {n} is given twice: {owner[n]} and {name}")
            owner[n] = name
        outputs[name] = numbers
    return outputs
