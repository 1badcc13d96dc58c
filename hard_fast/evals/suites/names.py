"""How a suite is asked for: NAME, NAME:DETAIL, NAME:DETAIL@SEVERITY, and +corrupted behind it."""

import difflib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from hard_fast.data.folders import shorten
from hard_fast.evals.corruptions import CORRUPTIONS, EXTRA_CORRUPTIONS
from hard_fast.evals.published import SEVERITIES
from hard_fast.evals.suites.suite import Request

MNIST_CORRUPTIONS = (
    "shot_noise", "impulse_noise", "glass_blur", "motion_blur", "shear", "scale", "rotate",
    "brightness", "translate", "stripe", "fog", "spatter", "dotted_line", "zigzag", "canny_edges",
)  # fmt: skip

_SUFFIX = "+corrupted"


class SuiteName(NamedTuple):
    """A suite as it was asked for.

    detail:      what stands behind the colon: a folder, a domain, corruptions.
    severity:    of the published corruptions; None: all.
    corruptions: to be made on the fly, each in these severities; empty: none.
    """

    key: str
    detail: str
    severity: int | None
    corruptions: tuple[str, ...] = ()
    severities: tuple[int, ...] = ()


def split_names(text: str) -> list[str]:
    """The suites of a comma-separated list, whose names may themselves list corruptions."""
    known = {*CORRUPTIONS, *EXTRA_CORRUPTIONS, *MNIST_CORRUPTIONS, "identity"}
    names: list[str] = []
    for piece in filter(None, (piece.strip() for piece in text.split(","))):
        if names and piece.partition("@")[0].partition("+")[0] in known:
            names[-1] += f",{piece}"
        else:
            names.append(piece)
    return names


def parse_name(name: str) -> SuiteName:
    """The parts of a suite's name.

    Raises:  ValueError if a corruption or a severity is none.
    """
    base, suffix, rest = name.partition(_SUFFIX)
    key, _, detail = base.partition(":")
    severity = None
    if key != "folder":
        # A folder may have an @ in its name.
        if "@" in key:
            key, _, text = key.partition("@")
            severity = _severity(name, text)
        elif "@" in detail:
            detail, _, text = detail.partition("@")
            severity = _severity(name, text)
    if not suffix:
        return SuiteName(key, detail, severity)
    listed, at, text = rest.removeprefix(":").partition("@")
    if rest[:1] not in ("", ":", "@"):
        raise ValueError(f"{name}: write {base}{_SUFFIX}, {_SUFFIX}:fog,snow or {_SUFFIX}@3")
    corruptions = tuple(filter(None, listed.split(","))) or CORRUPTIONS
    check_names(name, corruptions, (*CORRUPTIONS, *EXTRA_CORRUPTIONS))
    return SuiteName(
        key, detail, severity, corruptions, (_severity(name, text),) if at else SEVERITIES
    )


def check_names(suite: str, names: Iterable[str], known: tuple[str, ...]) -> None:
    """Raise ValueError with the nearest names if one of the corruptions is unknown."""
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 3) or known
            raise ValueError(
                f"{suite}: no corruption {name!r}; choose from {', '.join(sorted(near))}"
            )


def pick(
    request: Request,
    home: Path,
    find: Callable[[str], Path | None],
    standard: tuple[str, ...],
    extra: tuple[str, ...],
) -> dict[str, Path]:
    """Where the corruptions that were asked for lie, by name; without a choice, the standard ones.

    Args:    find: where one lies, or None if it is not there.
    Raises:  ValueError if one is unknown or not there.
    """
    names = tuple(filter(None, request.detail.split(","))) or standard
    check_names(request.name, names, (*standard, *extra))
    found = {name: find(name) for name in names}
    lacking = [name for name, path in found.items() if path is None]
    if lacking:
        there = [name for name in (*standard, *extra) if find(name) is not None]
        hint = f"; fetch it, or ask for {request.suite.name}:{','.join(there)}" if there else ""
        raise ValueError(f"{home}: lacks {shorten(lacking)}, expected {request.suite.layout}{hint}")
    return {name: path for name, path in found.items() if path is not None}


def _severity(name: str, text: str) -> int:
    if text not in map(str, SEVERITIES):
        raise ValueError(f"{name}: severity {text!r} is not from 1 to {SEVERITIES[-1]}")
    return int(text)
