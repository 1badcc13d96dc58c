"""Many suites at once: opened, gone through, and what came of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from hard_fast.data import DataConfig, PicturesConfig
from hard_fast.evals.corruptions import CORRUPTIONS, EXTRA_CORRUPTIONS
from hard_fast.evals.limit import limited
from hard_fast.evals.runner import compare
from hard_fast.evals.suites import (
    Loaded,
    Missing,
    PictureFormat,
    has_label_map,
    load_suite,
    summarise,
)
from hard_fast.runtime.dist import World

Scores = dict[str, dict[str, float]]


class Opened(NamedTuple):
    """Suites that are ready, and why others are not."""

    suites: dict[str, Loaded]
    gaps: dict[str, str]


class Findings(NamedTuple):
    """Scores by suite and score, and those of each part of a suite."""

    student: Scores
    teacher: Scores | None
    parts: dict[str, Scores]
    teacher_parts: dict[str, Scores] | None


def open_suites(
    names: Sequence[str],
    data_root: Path,
    pictures: PictureFormat,
    device: torch.device,
    *,
    label_map: Path | None = None,
    limit: int | None = None,
) -> Opened:
    """The suites of these names; one whose data are not there is a gap, with the reason.

    Args:    label_map: file of the network's outputs that are a class folder's, for folders.
             limit: samples of each part; None: all.
    Raises:  ValueError, one line, for an unknown name, data in a wrong layout, or a label map that
             none of the suites reads.
    """
    if label_map is not None and not any(map(has_label_map, names)):
        raise ValueError(
            f"label map {label_map}: only folder:PATH and pacs:DOMAIN read one; remove it"
        )
    suites: dict[str, Loaded] = {}
    gaps: dict[str, str] = {}
    for name in dict.fromkeys(names):
        try:
            loaded = load_suite(name, data_root, pictures, device, label_map=label_map)
        except Missing as missing:
            gaps[name] = str(missing)
            continue
        suites[name] = loaded if limit is None else limited(loaded, limit)
    return Opened(suites, gaps)


def survey(student: nn.Module, teacher: nn.Module | None, opened: Opened, world: World) -> Findings:
    """The scores of a student, and of its teacher, on every suite.

    Raises:  ValueError that begins with the suite whose images or classes are not the networks'.
    """
    found: dict[str, tuple[Scores, Scores | None]] = {}
    for name, loaded in opened.suites.items():
        try:
            found[name] = compare(student, teacher, loaded, world)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    ours = {name: pair[0] for name, pair in found.items()}
    summary = {name: summarise(name, parts) for name, parts in ours.items()}
    if teacher is None:
        return Findings(summary, None, ours, None)
    theirs = {name: pair[1] for name, pair in found.items()}
    return Findings(
        summary, {name: summarise(name, parts) for name, parts in theirs.items()}, ours, theirs
    )


def picture_format(data: DataConfig, size: int) -> PictureFormat:
    """How pictures in files become what the networks of a run read.

    Args:    size: height and width of the images that the run learned from, px.
    """
    told = data if isinstance(data, PicturesConfig) else PicturesConfig(root="")
    return PictureFormat(size, told.eval_crop, told.interpolation)


def check_suites(opened: Opened, image_shape: Sequence[int], num_outputs: int) -> None:
    """Raise ValueError if a suite's images or classes are not those of the networks."""
    ours = "x".join(map(str, image_shape))
    for name, loaded in opened.suites.items():
        for part in loaded.parts.values():
            if tuple(part.image_shape) != tuple(image_shape):
                theirs = "x".join(map(str, part.image_shape))
                raise ValueError(
                    f"{name}: its images are {theirs}, and the network reads {ours}; evaluate it "
                    "with a network of such images"
                )
        if loaded.columns is None and loaded.num_classes != num_outputs:
            raise ValueError(
                f"{name}: has {loaded.num_classes} classes, and the network {num_outputs} outputs; "
                "give a network of these classes, or for folders a label map"
            )
        if loaded.columns is not None and (last := int(loaded.columns.max())) >= num_outputs:
            raise ValueError(
                f"{name}: its classes are outputs up to number {last}, and the network has "
                f"{num_outputs}; give a network of those classes, or another label map"
            )


def in_one_row(found: Scores) -> dict[str, float]:
    """Scores as one row of a journal, `<suite>_<score>`; of corruptions only their mean."""
    each = {f"{corruption}_error" for corruption in CORRUPTIONS + EXTRA_CORRUPTIONS}
    return {
        f"{suite}_{score}": value
        for suite, own in found.items()
        for score, value in own.items()
        if score not in each
    }
