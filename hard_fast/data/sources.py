"""Pictures on disk: an ImageNet-style folder or WebDataset tar shards, listed, checked and split.

A mistake is one ValueError line: which key or file, what is wrong with it, what to do. Nothing is
decoded here.

Letters: N pictures of a part.
"""

import itertools
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field

from hard_fast.data.folders import check_same_classes, list_folder, shorten
from hard_fast.data.shards import find_shards, read_index, read_indices
from hard_fast.data.splits import split_held_out
from hard_fast.data.unreadable import LIST_NAME, read_unreadable
from hard_fast.runtime.configfile import Config

_log = logging.getLogger(__name__)


class PicturesConfig(Config):
    """Pictures in files, decoded while the networks learn: a folder of classes, or tar shards."""

    kind: Literal["pictures"] = "pictures"
    root: str | list[str]
    """Folder of train/<class>/ and val/<class>/; or shards: a path, a list, or a brace pattern such
    as DIR/train-{000..146}.tar."""
    val_root: str | list[str] | None = None
    """Shards of the evaluation set; None = only the held-out split is evaluated. Only with shards,
    since a folder has its own val/."""
    num_classes: int | None = Field(default=None, ge=1)
    """Needed with shards, whose classes are numbers; a folder's are counted."""
    size: int = Field(default=224, ge=1)
    """Height and width of training and evaluation pictures, px."""
    min_scale: float = Field(default=0.08, gt=0.0, le=1.0)
    """Smallest share of a picture's area that a random crop keeps; its sides are 3:4 to 4:3."""
    eval_crop: float = Field(default=0.875, gt=0.0, le=1.0)
    """For evaluation the shorter side becomes floor(size / eval_crop), and the centre is kept."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Of training and of evaluation."""
    flip: bool = True
    """Mirror half of the training pictures."""
    val_share: float = Field(default=0.01, ge=0.0, lt=1.0)
    """Share of the training part kept for validation, class by class; 0 = no validation split."""
    val_seed: int = 42
    """Decides which pictures are kept for validation."""
    max_bad: float = Field(default=0.001, ge=0.0, le=1.0)
    """Share of an epoch's pictures that may fail to decode before the run ends; one always may,
    unless it is 0."""
    threads: int | None = Field(default=None, ge=1)
    """Decoding threads per process; None = its share of the cores, at most 8."""
    prefetch: int = Field(default=2, ge=1)
    """Batches decoded ahead."""


class Samples(NamedTuple):
    """Where the encoded pictures of one part lie, and their classes.

    files:     paths, shared by the parts of a set: one per picture of a folder, one per shard.
    file_of:   [N] int32 index into `files`.
    offset:    [N] int64 of the picture in its file, bytes; 0 in a folder, never 0 in a shard.
    num_bytes: [N] int64, never 0.
    label:     [N] int64 class.
    """

    files: tuple[str, ...]
    file_of: np.ndarray
    offset: np.ndarray
    num_bytes: np.ndarray
    label: np.ndarray

    def name(self, position: int) -> str:
        """What a person is told of a picture: its path, or that of its shard and the member's."""
        path, offset = self.files[self.file_of[position]], int(self.offset[position])
        if not offset:
            return path
        index = read_index(Path(path))
        return f"{path}/{index.names[index.offset.index(offset)]}"

    def take(self, positions: np.ndarray) -> "Samples":
        """These pictures only, in this order; the list of files stays whole."""
        return Samples(self.files, *(array[positions] for array in self[1:]))


class Listing(NamedTuple):
    """Every picture of one part as it lies on disk, nothing left out.

    names:   N names relative to the first of the folders: train/class/a.jpg, shard.tar/a.jpg.
    folders: those that may keep a list of unreadable pictures, relative to themselves.
    """

    samples: Samples
    names: list[str]
    folders: tuple[Path, ...]


class PictureSet(NamedTuple):
    """The parts of a set of pictures. `val` is held out of training, `test` is the set's own."""

    num_classes: int
    class_names: tuple[str, ...]
    train: Samples
    val: Samples | None
    test: Samples | None


def read_pictures(config: PicturesConfig) -> PictureSet:
    """The parts of the configured set, without empty files and those listed as unreadable.

    Raises:  ValueError, one line, naming the key or the file, what is wrong and what to do.
    """
    root = find_folder(config.root, "data.root")
    if root is not None:
        class_names, train, test = list_parts(root)
        _check_folder_keys(config, len(class_names))
    else:
        if config.num_classes is None:
            raise ValueError(
                "data.num_classes is not set: tar shards do not say how many classes there are"
            )
        class_names = tuple(map(str, range(config.num_classes)))
        train, test = list_shards(config.root, "data.root"), None
        _check_labels(train, config.num_classes)
        if config.val_root is not None:
            test = list_shards(config.val_root, "data.val_root")
            _check_labels(test, config.num_classes)
            both = sorted(set(train.samples.files) & set(test.samples.files))
            if both:
                raise ValueError(f"data.val_root: {shorten(both)}: also a shard of data.root")
    if test is None and not config.val_share:
        place = f"{root}/val/" if root is not None else "data.val_root"
        raise ValueError(
            f"data.val_share = 0: nothing is left to evaluate, for there is no {place} either; "
            "add it, or hold out a share"
        )
    rest, held = np.arange(len(train.names)), None
    if config.val_share:
        # Before unreadable pictures are left out, so that finding one moves no other.
        rest, held = split_held_out(
            train.names, train.samples.label, class_names, config.val_share, config.val_seed
        )
    is_readable = find_readable(train, class_names)
    return PictureSet(
        len(class_names),
        class_names,
        train=train.samples.take(rest[is_readable[rest]]),
        val=None if held is None else train.samples.take(held[is_readable[held]]),
        test=None if test is None else test.samples.take(find_readable(test, class_names)),
    )


def find_folder(root: str | list[str], key: str) -> Path | None:
    """The folder that the value of a key names, or None if it names shards.

    Raises:  ValueError if it can be neither.
    """
    if not isinstance(root, str):
        return None
    path = Path(root).expanduser()
    if path.is_dir():
        return path
    if "{" not in root and not path.exists():
        raise ValueError(f"{key} = {root!r}: no such folder or shard; correct {key}")
    return None


def list_parts(root: Path) -> tuple[tuple[str, ...], Listing, Listing | None]:
    """The class names, the training part and, where there is a val/, the test part of a folder.

    Raises:  ValueError if there is no train/, a class is empty, or the class lists differ.
    """
    if not (root / "train").is_dir():
        shards = sorted(path.name for path in root.glob("*.tar"))
        hint = f" (for its shards give their names, such as {root}/{shards[0]})" if shards else ""
        if root.name in ("train", "val"):
            hint = f" (or give the folder above: data.root = {str(root.parent)!r})"
        raise ValueError(f"{root}: no train/ in it; put the pictures in train/<class>/{hint}")
    classes, train = list_part(root, "train")
    if not (root / "val").is_dir():
        return classes, train, None
    test_classes, test = list_part(root, "val")
    check_same_classes(classes, test_classes, root / "train", root / "val")
    return classes, train, test


def list_part(root: Path, part: str) -> tuple[tuple[str, ...], Listing]:
    """The class names and the pictures of one folder of class folders."""
    found = list_folder(root / part)
    names = [f"{part}/{name}" for name in found.names]
    return found.classes, list_files(root, names, found.num_bytes, found.label)


def list_files(root: Path, names: list[str], num_bytes: np.ndarray, label: np.ndarray) -> Listing:
    """One picture per file, named relative to the root."""
    samples = Samples(
        files=tuple(f"{root}/{name}" for name in names),
        file_of=np.arange(len(names), dtype=np.int32),
        offset=np.zeros(len(names), np.int64),
        num_bytes=num_bytes,
        label=label,
    )
    return Listing(samples, names, (root,))


def list_shards(patterns: str | list[str], key: str) -> Listing:
    """Every picture of some shards that has a class.

    Raises:  ValueError naming the key or the shard.
    """
    paths = find_shards([patterns] if isinstance(patterns, str) else patterns, key)
    indices = read_indices(paths)
    folders = tuple(dict.fromkeys(path.parent for path in paths))
    prefixes = [os.path.relpath(path, folders[0]) for path in paths]
    samples = Samples(
        files=tuple(map(str, paths)),
        file_of=np.repeat(
            np.arange(len(paths), dtype=np.int32), [len(index.names) for index in indices]
        ),
        offset=_join(index.offset for index in indices),
        num_bytes=_join(index.num_bytes for index in indices),
        label=_join(index.label for index in indices),
    )
    if not len(samples.label):
        raise ValueError(
            f"{key}: no sample in {shorten(list(samples.files))}; each needs a picture and a .cls "
            "entry with the number of its class, as KEY.jpg and KEY.cls"
        )
    names = [f"{p}/{n}" for p, index in zip(prefixes, indices, strict=True) for n in index.names]
    return Listing(samples, names, folders)


def _join(columns: Iterable[list[int]]) -> np.ndarray:
    return np.fromiter(itertools.chain.from_iterable(columns), np.int64)


def _check_folder_keys(config: PicturesConfig, num_classes: int) -> None:
    if config.val_root is not None:
        raise ValueError(
            f"data.val_root = {config.val_root!r}: goes with shards only; the folder "
            f"{config.root} has its own val/"
        )
    if config.num_classes not in (None, num_classes):
        raise ValueError(
            f"data.num_classes = {config.num_classes}: {config.root}/train has {num_classes} class "
            "folders; correct it, or leave it out"
        )


def _check_labels(listing: Listing, num_classes: int) -> None:
    label = listing.samples.label
    outside = np.flatnonzero((label < 0) | (label >= num_classes))
    if len(outside):
        raise ValueError(
            f"{listing.folders[0]}/{listing.names[outside[0]]}: its class is {label[outside[0]]}, "
            f"but classes go from 0 to {num_classes - 1}; correct data.num_classes"
        )


def find_readable(listing: Listing, class_names: tuple[str, ...]) -> np.ndarray:
    """[N] bool: not empty and not listed as unreadable; one warning says how many others there are.

    Raises:  ValueError if none is left.
    """
    samples, names, folders = listing
    unreadable = _read_lists(folders)
    is_empty = samples.num_bytes == 0
    is_listed = np.fromiter((name in unreadable for name in names), bool, len(names))
    is_readable = ~(is_empty | is_listed)
    if is_readable.all():
        return is_readable
    said = (
        f"{folders[0]}: left out of {len(names)} pictures: {(is_empty & ~is_listed).sum()} empty, "
        f"{is_listed.sum()} listed in {LIST_NAME}"
    )
    lost = np.setdiff1d(samples.label, samples.label[is_readable])
    if len(lost) == len(np.unique(samples.label)):
        raise ValueError(f"{said}; none is left")
    if len(lost):
        said += f"; none is left of class {shorten([class_names[label] for label in lost])}"
    _log.warning("%s", said)
    return is_readable


def _read_lists(folders: tuple[Path, ...]) -> set[str]:
    """What the lists of all the folders name, relative to the first of them."""
    prefixes = [os.path.relpath(folder, folders[0]) for folder in folders]
    return {
        name if prefix == os.curdir else f"{prefix}/{name}"
        for folder, prefix in zip(folders, prefixes, strict=True)
        for name in read_unreadable(folder)
    }
