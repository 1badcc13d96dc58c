"""The whole state of a run in one file: atomic, checked, newest valid first."""

import hashlib
import io
import itertools
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from hard_fast.runtime.archive import load_plain
from hard_fast.runtime.configfile import Config
from hard_fast.runtime.files import write_atomic
from hard_fast.runtime.messages import printable

_log = logging.getLogger(__name__)


class CheckpointConfig(Config):
    """When the state of a run is saved."""

    every_epochs: float = Field(default=1.0, gt=0.0)
    every_steps: int | None = Field(default=None, ge=1)
    """Overrides `every_epochs`."""
    keep: int = Field(default=2, ge=1)
    """How many of the newest checkpoints stay on disk."""


class Stateful(Protocol):
    """A part of the run that a checkpoint saves: networks, optimizers, controller, loader."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """Continue from them."""


class Entries(Protocol):
    """Numbered files beside the checkpoints, which name them instead of holding them: the bank."""

    @property
    def numbers(self) -> list[int]:
        """Of the files that a checkpoint made now needs."""

    def keep(self, numbers: set[int]) -> None:
        """Remove the files that no checkpoint needs: all but these."""


class Checkpointer:
    """Saves named parts together and loads the newest checkpoint that is whole.

    A checkpoint is `step_N.pt` beside `step_N.json`, which holds its size and SHA-256 and is
    written last: without a matching note the file is not a checkpoint. None is removed before
    enough newer ones have been read back. Files are loaded with `weights_only`, so they cannot
    run code. Each of `entries` goes with the last checkpoint that names it.
    """

    def __init__(self, folder: Path, keep: int = 2, entries: Entries | None = None) -> None:
        self._folder, self._keep, self._entries = folder, keep, entries

    def save(self, step: int, parts: Mapping[str, Stateful]) -> Path:
        """Write the state of all parts after `step` steps, then forget the oldest checkpoints."""
        buffer = io.BytesIO()
        torch.save({name: part.state_dict() for name, part in parts.items()}, buffer)
        payload = buffer.getvalue()
        path = self._path(step)
        note = {"step": step, "size": len(payload), "sha256": hashlib.sha256(payload).hexdigest()}
        if self._entries is not None:
            note["entries"] = self._entries.numbers
        if step in self.steps() and (before := self._digest(step)) is not None:
            # Saved again: until its successor is there, the file that is there stays good.
            write_atomic(path.with_suffix(".json"), json.dumps(note | {"before": before}))
        write_atomic(path, payload)
        write_atomic(path.with_suffix(".json"), json.dumps(note))
        self._forget()
        if self._entries is not None:
            self._release(self._entries)
        return path

    def _forget(self) -> None:
        """Remove what is older than the newest `keep` that are whole, as they are on disk."""
        whole = (step for step in self.steps() if self._digest(step) is not None)
        kept = list(itertools.islice(whole, self._keep))
        for old in self.steps():
            if len(kept) == self._keep and old < kept[-1]:
                # Its note last: a kill in between leaves what the next call still finds.
                self._path(old).unlink(missing_ok=True)
                self._path(old).with_suffix(".json").unlink(missing_ok=True)
        # What a kill left behind of files that were never whole.
        for torn in self._folder.glob(".step_*"):
            torn.unlink(missing_ok=True)

    def _release(self, entries: Entries) -> None:
        """Remove the entries that no checkpoint on disk names, be it whole or not."""
        notes = [self._path(step).with_suffix(".json") for step in self.steps()]
        try:
            named = {number for note in notes for number in json.loads(note.read_text())["entries"]}
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            # Torn, or of an earlier version: what it needs is not known.
            return
        entries.keep(named)

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, newest first."""
        numbers = (note.stem.removeprefix("step_") for note in self._folder.glob("step_*.json"))
        return sorted((int(number) for number in numbers if number.isdecimal()), reverse=True)

    def newest(self, before: int | None = None) -> int | None:
        """The step of the newest checkpoint that is whole; a damaged one costs a warning.

        Args:    before: of those of earlier steps than this.
        """
        asked = (step for step in self.steps() if before is None or step < before)
        return next((step for step in asked if self._digest(step) is not None), None)

    def to_resume(self) -> int | None:
        """The step to continue from, None for a new run; one that `load` refuses if none is whole.

        A run that has lost all its checkpoints must not begin anew by itself, over what is left.
        """
        newest = self.newest()
        return next(iter(self.steps()), None) if newest is None else newest

    def load(self, step: int, parts: Mapping[str, Stateful], device: torch.device) -> None:
        """Set every part to its state after `step`.

        Raises:  ValueError if the checkpoint is damaged or was saved with other parts.
        """
        path = self._path(step)
        if self._digest(step) is None:
            raise ValueError(
                f"{path}: damaged or missing; restore it from a copy, or start anew with --resume "
                "never"
            )
        restore(load_plain(path, path, device), parts, path)

    def _path(self, step: int) -> Path:
        return self._folder / f"step_{step:09d}.pt"

    def _digest(self, step: int) -> str | None:
        """The checksum of a checkpoint that is whole, else None and a warning."""
        path = self._path(step)
        try:
            note = json.loads(path.with_suffix(".json").read_text())
            known = {note["sha256"], *([note["before"]] if "before" in note else [])}
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            _log.warning("%s: skipped, not a whole checkpoint (%s)", path, error)
            return None
        if found in known:
            return found
        _log.warning("%s: skipped, it is torn or damaged (checksum differs)", path)
        return None


def restore(state: Any, parts: Mapping[str, Stateful], place: object) -> None:
    """Set every part to what a state holds of it.

    Args:    place: where the state is from, for a person.
    Raises:  ValueError, one line, if it was saved with other parts.
    """
    saved = state.keys() if isinstance(state, dict) else set()
    if saved != parts.keys():
        differing = ", ".join(sorted(map(str, saved ^ parts.keys())))
        raise ValueError(f"{place}: saved with other parts than this run has ({differing})")
    for name, part in parts.items():
        try:
            part.load_state_dict(state[name])
        except ValueError:
            raise
        except Exception as error:
            raise ValueError(
                f"{place}: its {name} does not fit this run ({printable(str(error))}); was it "
                "saved by another version?"
            ) from error


class BestWeights:
    """A copy of the weights that scored best so far, for a schedule that goes back to them."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._weights: dict[str, Tensor] = {}
        self.step = 0

    def remember(self, step: int) -> None:
        """Keep the weights as they are now, after `step` steps."""
        self._weights = {k: v.detach().clone() for k, v in self._module.state_dict().items()}
        self.step = step

    def restore(self) -> None:
        """Go back to the weights kept; without any, nothing changes."""
        if self._weights:
            self._module.load_state_dict(self._weights)

    def state_dict(self) -> dict[str, Any]:
        """The kept weights and their step."""
        return {"weights": self._weights, "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""
        self._weights, self.step = state["weights"], state["step"]
