"""What an ImageNet-style folder holds: one folder per class, pictures anywhere below it."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

# What both DALI and Pillow decode. Where several pictures share a key of a shard, the first wins.
PICTURE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "ppm")

# Enough to hide the latency of a network file system.
_NUM_THREADS = 16
_NUM_SHOWN = 5


class FolderListing(NamedTuple):
    """The pictures below one folder, class after class and sorted by name inside a class.

    classes:   sorted names of the class folders.
    names:     N paths relative to the folder, with "/" on every system.
    num_bytes: [N] int64, 0 for an empty file and for a link to nowhere.
    label:     [N] int64 index into `classes`.
    """

    classes: tuple[str, ...]
    names: list[str]
    num_bytes: np.ndarray
    label: np.ndarray


def list_folder(folder: Path) -> FolderListing:
    """The pictures below each class folder, without those whose name starts with a dot.

    Raises:  ValueError, one line, if there is no class folder, or one without pictures, or a
             folder cannot be listed.
    """
    try:
        classes = list_class_names(folder)
        with ThreadPoolExecutor(_NUM_THREADS) as pool:
            found = list(pool.map(_list_class, [folder] * len(classes), classes))
    except OSError as error:
        raise ValueError(f"{error.filename}: cannot be listed ({error.strerror})") from None
    empty = [name for name, pictures in zip(classes, found, strict=True) if not pictures]
    if empty:
        raise ValueError(
            f"{folder}: no pictures ({', '.join(PICTURE_SUFFIXES)}) in {shorten(empty)}; add some, "
            "or remove the class from every part of the data set"
        )
    names = [name for pictures in found for name, _ in pictures]
    sizes = [size for pictures in found for _, size in pictures]
    label = np.repeat(np.arange(len(classes)), [len(pictures) for pictures in found])
    return FolderListing(classes, names, np.array(sizes, np.int64), label.astype(np.int64))


def check_same_classes(
    classes: tuple[str, ...], others: tuple[str, ...], folder: Path, other: Path
) -> None:
    """Raise ValueError naming what is missing or too much if two class lists differ."""
    missing = sorted(set(classes) - set(others))
    extra = sorted(set(others) - set(classes))
    parts = [f"lacks {shorten(missing)}"] if missing else []
    parts += [f"adds {shorten(extra)}"] if extra else []
    if parts:
        raise ValueError(
            f"{other}: {' and '.join(parts)} compared with the class folders of {folder}, so the "
            "labels would not agree; make the two lists the same"
        )


def shorten(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(names[:_NUM_SHOWN])
    more = len(names) - _NUM_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def list_class_names(folder: Path) -> tuple[str, ...]:
    """The sorted names of the class folders.

    Raises:  ValueError if there is none.
    """
    with os.scandir(folder) as entries:
        # Hidden folders (.ipynb_checkpoints) would become classes and shift every label.
        seen = [entry for entry in entries if not entry.name.startswith(".")]
    classes = sorted(entry.name for entry in seen if entry.is_dir())
    if not classes:
        is_flat = any(is_picture(entry.name) for entry in seen)
        raise ValueError(
            f"{folder}: {'pictures, but ' if is_flat else ''}no class folders; put the pictures of "
            f"each class into a folder of its own, {folder}/<class>/"
        )
    return tuple(classes)


def is_picture(name: str) -> bool:
    """Whether a file of this name is read as a picture."""
    return name.rpartition(".")[2].lower() in PICTURE_SUFFIXES


def _list_class(folder: Path, class_name: str) -> list[tuple[str, int]]:
    """Name relative to `folder` and size of each picture of a class, sorted by name."""
    found: list[tuple[str, int]] = []
    _walk(os.path.join(folder, class_name), class_name, found, ())
    found.sort()
    return found


def _walk(path: str, prefix: str, found: list[tuple[str, int]], above: tuple) -> None:
    status = os.stat(path)
    here = (status.st_dev, status.st_ino)
    if here in above:
        # A link to a folder above would list the same pictures for ever.
        return
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            name = f"{prefix}/{entry.name}"
            if entry.is_dir():
                _walk(entry.path, name, found, (*above, here))
            elif is_picture(entry.name):
                found.append((name, _size(entry)))


def _size(entry: os.DirEntry) -> int:
    try:
        return entry.stat().st_size
    except OSError:
        return 0
