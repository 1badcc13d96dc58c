"""ImageNet's validation set and the sets whose classes are its own.

Letters: N validation pictures, S labels of a picture.
"""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hard_fast.data.folders import is_picture
from hard_fast.data.pictures import Pictures
from hard_fast.data.sources import Listing, list_shards
from hard_fast.evals.corruptions import CORRUPTIONS, EXTRA_CORRUPTIONS
from hard_fast.evals.published import SEVERITIES
from hard_fast.evals.suites.flat_val import list_flat, number_in
from hard_fast.evals.suites.folders import check_classes, list_classes, open_listing
from hard_fast.evals.suites.imagenet_classes import read_real_labels, read_wnids
from hard_fast.evals.suites.names import pick
from hard_fast.evals.suites.suite import Loaded, Request

_NUM_CLASSES = 1000
# The official archive, Kaggle's and the flat archive of the validation set alone.
_VAL_FOLDERS = ("val", "ILSVRC/Data/CLS-LOC/val", "ILSVRC2012_img_val")
# ImageNet-C's own archives; some keep them as folders around the corruptions.
_GROUPS = ("", "noise", "blur", "weather", "digital", "extra")
# The authors take the centre of these 224 px pictures without resizing them.
_NO_RESIZE = 1.0


def read_val(request: Request) -> Loaded:
    """The 50,000 validation pictures, in class folders or flat beside a file of labels."""
    listing, classes = _list_val(request)
    return Loaded({"test": open_listing(request, listing, classes)}, _NUM_CLASSES)


def read_real(request: Request) -> Loaded:
    """The same pictures with all their right labels; a batch's label is the picture's number."""
    listing, classes = _list_val(request)
    sets_NS = _read_label_sets(request)
    row = np.array([number_in(name) for name in listing.names], np.int64) - 1
    if row.max() >= len(sets_NS):
        last = listing.names[row.argmax()]
        raise ValueError(
            f"{request.name}: label sets of {len(sets_NS)} pictures, but {last} is beyond them; "
            "fetch real.json again"
        )
    part = open_listing(request, listing, classes, label=row)
    return Loaded({"test": part}, _NUM_CLASSES, label_sets=sets_NS)


def read_folders(request: Request) -> Loaded:
    """A set with a folder for each of the 1000 classes: V2, Sketch, Stylized."""
    home = request.find_home()
    return Loaded({"test": _open_wnids(request, home)}, _NUM_CLASSES)


def read_subset(request: Request) -> Loaded:
    """ImageNet-A or -R: 200 classes, so only these outputs of the network compete."""
    home = request.find_home()
    found = list_classes(home)
    wnids = read_wnids(request.suite.name[-1])
    check_classes(found.classes, wnids, home, request.suite.title)
    number_of = {wnid: i for i, wnid in enumerate(read_wnids())}
    columns = torch.tensor([number_of[wnid] for wnid in found.classes])
    part = open_listing(request, found.listing, found.classes)
    return Loaded({"test": part}, len(wnids), columns)


def read_imagenet_c(request: Request) -> Loaded:
    """A folder of classes for each corruption and severity."""
    home = request.find_home()

    def find(name: str) -> Path | None:
        places = (home / group / name for group in _GROUPS)
        return next((place for place in places if place.is_dir()), None)

    parts = {}
    for name, folder in pick(request, home, find, CORRUPTIONS, EXTRA_CORRUPTIONS).items():
        for severity in SEVERITIES if request.severity is None else (request.severity,):
            place = folder / str(severity)
            if not place.is_dir():
                raise ValueError(f"{folder}: no folder {severity}, expected {request.suite.layout}")
            parts[f"{name}/{severity}"] = _open_wnids(request, place, eval_crop=_NO_RESIZE)
    return Loaded(parts, _NUM_CLASSES)


def _open_wnids(request: Request, folder: Path, eval_crop: float | None = None) -> Pictures:
    """The pictures of 1000 folders named by WordNet identifier, or by the number of the output."""
    found = list_classes(folder)
    wnids = read_wnids()
    if found.classes[0].isdecimal():
        # Sorted as text, folder 10 comes before folder 2.
        numbers = tuple(map(str, range(len(wnids))))
        check_classes(found.classes, numbers, folder, f"{request.suite.title}, 0 to 999")
        output_of = np.array([int(name) for name in found.classes])
        label = output_of[found.listing.samples.label]
        return open_listing(request, found.listing, found.classes, label=label, eval_crop=eval_crop)
    check_classes(found.classes, wnids, folder, request.suite.title)
    return open_listing(request, found.listing, found.classes, eval_crop=eval_crop)


def _list_val(request: Request) -> tuple[Listing, tuple[str, ...]]:
    """The validation pictures with their classes, and the names of these."""
    home = request.find_home()
    folder = next((home / name for name in _VAL_FOLDERS if (home / name).is_dir()), None)
    if folder is None:
        shards = sorted(map(str, home.glob("val*.tar")))
        if not shards:
            raise request.missing()
        return _list_val_shards(request, shards), read_wnids()
    if any(is_picture(path.name) and path.is_file() for path in folder.iterdir()):
        return list_flat(home, folder), read_wnids()
    found = list_classes(folder)
    check_classes(found.classes, read_wnids(), folder, request.suite.title)
    return found.listing, found.classes


def _list_val_shards(request: Request, shards: list[str]) -> Listing:
    """The validation pictures in WebDataset shards, as training reads them."""
    listing = list_shards(shards, request.name)
    label = listing.samples.label
    outside = np.flatnonzero((label < 0) | (label >= _NUM_CLASSES))
    if len(outside):
        raise ValueError(
            f"{listing.folders[0]}/{listing.names[outside[0]]}: its class is {label[outside[0]]}, "
            f"but classes go from 0 to {_NUM_CLASSES - 1}"
        )
    return listing


def _read_label_sets(request: Request) -> Tensor:
    """[N,S] int64, padded with -1; from real.json, or from timm where that is not there."""
    places = [request.data_root / home / "real.json" for home in ("", *request.suite.homes)]
    path = next((place for place in places if place.is_file()), None)
    try:
        rows = read_real_labels() if path is None else json.loads(path.read_text())
        width = max(map(len, rows))
        sets_NS = torch.tensor([row + [-1] * (width - len(row)) for row in rows])
    except (OSError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: expected a JSON list of lists of labels ({reason})") from None
    if sets_NS.ndim != 2 or sets_NS.dtype != torch.int64 or sets_NS.max() >= _NUM_CLASSES:
        raise ValueError(f"{path}: labels must be whole numbers from 0 to {_NUM_CLASSES - 1}")
    return sets_NS
