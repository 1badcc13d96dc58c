"""The whole state of a run in one file: atomic, checked, newest valid first."""

import hashlib
import io
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from hard_fast.runtime.configfile import Config
from hard_fast.runtime.files import write_atomic

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


class Checkpointer:
    """Saves named parts together and loads the newest checkpoint that is whole.

    A checkpoint is `step_N.pt` beside `step_N.json`, which holds its size and SHA-256 and is
    written last: without a matching note the file is not a checkpoint. Files are loaded with
    `weights_only`, so they cannot run code.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self._folder, self._keep = folder, keep

    def save(self, step: int, parts: Mapping[str, Stateful]) -> Path:
        """Write the state of all parts after `step` steps, then forget the oldest checkpoints."""
        buffer = io.BytesIO()
        torch.save({name: part.state_dict() for name, part in parts.items()}, buffer)
        payload = buffer.getvalue()
        path = self._folder / f"step_{step:09d}.pt"
        write_atomic(path, payload)
        note = {"step": step, "size": len(payload), "sha256": hashlib.sha256(payload).hexdigest()}
        write_atomic(path.with_suffix(".json"), json.dumps(note))
        for old in self.steps()[self._keep :]:
            old_path = self._folder / f"step_{old:09d}.pt"
            old_path.with_suffix(".json").unlink(missing_ok=True)
            old_path.unlink(missing_ok=True)
        return path

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, newest first."""
        notes = self._folder.glob("step_*.json")
        return sorted((int(note.stem.removeprefix("step_")) for note in notes), reverse=True)

    def newest(self) -> int | None:
        """The step of the newest checkpoint that is whole; a damaged one costs a warning."""
        return next((step for step in self.steps() if self._payload(step) is not None), None)

    def load(self, step: int, parts: Mapping[str, Stateful], device: torch.device) -> None:
        """Set every part to its state after `step`.

        Raises:  ValueError if the checkpoint is damaged or was saved with other parts.
        """
        payload = self._payload(step)
        path = self._folder / f"step_{step:09d}.pt"
        if payload is None:
            raise ValueError(f"{path}: damaged or missing")
        state = torch.load(io.BytesIO(payload), map_location=device, weights_only=True)
        if state.keys() != parts.keys():
            differing = ", ".join(sorted(state.keys() ^ parts.keys()))
            raise ValueError(f"{path}: saved with other parts than this run has ({differing})")
        for name, part in parts.items():
            part.load_state_dict(state[name])

    def _payload(self, step: int) -> bytes | None:
        path = self._folder / f"step_{step:09d}.pt"
        try:
            expected = json.loads(path.with_suffix(".json").read_text())["sha256"]
            payload = path.read_bytes()
        except (OSError, ValueError, KeyError, TypeError) as error:
            _log.warning("%s: skipped, not a whole checkpoint (%s)", path, error)
            return None
        if hashlib.sha256(payload).hexdigest() != expected:
            _log.warning("%s: skipped, it is torn or damaged (checksum differs)", path)
            return None
        return payload


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
