"""What a run kept of its augmentor: the entries of its bank, and its newest checkpoint."""

import pickle
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hard_fast.report.record import Record, at
from hard_fast.types import Phase

# What opening a damaged file raises: safetensors its own, torch.load any of the others.
_DAMAGED = (SafetensorError, OSError, RuntimeError, ValueError, LookupError, TypeError, EOFError)


class Part(NamedTuple):
    """One augmentor of the run.

    table:  its configuration.
    prefix: of the names of its tensors; a chain numbers its parts.
    """

    table: Mapping[str, Any]
    prefix: str

    @property
    def kind(self) -> str:
        """Its `kind` in the configuration."""
        return str(at(self.table, "kind"))


class Moment(NamedTuple):
    """The augmentor as it was after `step` steps: which tensors are kept, and how to read one."""

    step: int
    names: frozenset[str]
    read: Callable[[str], Tensor]


def augmentor_parts(config: Mapping[str, Any]) -> list[Part]:
    """The augmentors of a run in the order in which they act; chains within chains are one."""
    return _flatten(at(config, "augmentor"), "")


def read_moments(record: Record) -> tuple[list[Moment], int]:
    """Every moment that is kept, in order of steps, and how many files could not be read.

    The first is the untouched augmentor. The newest checkpoint is the last where it is later than
    the bank: with the joint schedule, which has no switches, only it tells what was learned.
    """
    moments, num_damaged = [], 0
    steps = _save_steps(record)
    for file in sorted((record.folder / "bank").glob("entry_*.safetensors")):
        number = file.stem.removeprefix("entry_")
        if not number.isdecimal() or int(number) >= len(steps):
            continue
        moment = _from_bank(file, steps[int(number)])
        num_damaged += moment is None
        moments += [] if moment is None else [moment]
    newest = _from_checkpoint(record) if moments else None
    if newest is not None and newest.step > moments[-1].step:
        # A checkpoint holds frozen tensors too.
        moments.append(newest._replace(names=newest.names & moments[0].names))
    return moments, num_damaged


def read_history(
    moments: Sequence[Moment], part: Part, pattern: str
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Step and trained tensors of a part at each moment, float64, by their names in the part.

    Only names that match the whole pattern are read. A moment that lacks one which the first has,
    has it in another shape, or cannot be read is left out; a last one that is equal to the one
    before it too.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    before: dict[str, np.ndarray] = {}
    wanted = re.compile(re.escape(part.prefix) + f"(?:{pattern})")
    for i, moment in enumerate(moments):
        names = sorted(filter(wanted.fullmatch, moment.names))
        try:
            tensors = {
                name.removeprefix(part.prefix): moment.read(name).double().numpy()
                for name in names
                if not shapes or name.removeprefix(part.prefix) in shapes
            }
        except _DAMAGED:
            continue
        found = {name: value.shape for name, value in tensors.items()}
        shapes = shapes or found
        if not found or found != shapes:
            continue
        is_known = before and all(np.array_equal(before[name], tensors[name]) for name in before)
        if i < len(moments) - 1 or not is_known:
            yield moment.step, tensors
        before = tensors


def _flatten(table: object, prefix: str) -> list[Part]:
    if not isinstance(table, Mapping):
        return []
    parts = at(table, "parts")
    if not isinstance(parts, list):
        return [Part(table, prefix)]
    flat = [_flatten(part, f"{prefix}parts.{number}.") for number, part in enumerate(parts)]
    return [part for found in flat for part in found]


def _save_steps(record: Record) -> list[int]:
    """The step of each save: the start, and each end of an augmentor's turn that was kept."""
    keeps_all = at(record.config, "schedule", "on_timeout") in (None, "keep")
    ends = [row for row in record.rows["switch"] if at(row, "from") == Phase.AUGMENTOR.value]
    # A turn that ran out of steps is told only by its reason.
    kept = [row for row in ends if keeps_all or "not reached" not in str(at(row, "reason"))]
    return [0, *(int(row["step"]) for row in kept)]


def _from_bank(file: Path, step: int) -> Moment | None:
    def read(name: str) -> Tensor:
        with safe_open(file, framework="pt") as entry:
            return entry.get_tensor(name)

    try:
        with safe_open(file, framework="pt") as entry:
            return Moment(step, frozenset(entry.keys()), read)
    except _DAMAGED:
        return None


def _from_checkpoint(record: Record) -> Moment | None:
    """The newest checkpoint that can be read and is not beyond the run's steps."""
    files = sorted((record.folder / "checkpoints").glob("step_*.pt"), reverse=True)
    for file in files:
        number = file.stem.removeprefix("step_")
        if not number.isdecimal() or int(number) > record.num_steps:
            continue
        try:
            # Mapped, not read: a checkpoint is mostly the student and its optimizer.
            saved = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
            state = saved["augmentor"]
            return Moment(int(number), frozenset(state), state.__getitem__)
        except (*_DAMAGED, pickle.UnpicklingError):
            continue
    return None
