"""The augmentors of a run so far; each student step draws one, so old ones are not forgotten."""

import hashlib
import random
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from hard_fast.runtime.configfile import Config
from hard_fast.runtime.files import write_atomic
from hard_fast.runtime.seed import derive_seed


class BankConfig(Config):
    """The memory of HARD: "save the augmentor at every switch, draw one at each student step"."""

    capacity: int = Field(default=64, ge=0)
    """Entries at most; 0: no bank, the student always sees the newest augmentor."""


class AugmentorBank:
    """Trainable tensors of saved augmentors, a uniform sample of all that were ever saved.

    Beyond `capacity` a new entry replaces a random one (reservoir sampling), so memory is bounded
    and every augmentor of the run had the same chance to stay. Each entry is written once, to a
    file of its own that later saves never touch; when it is replaced, the file stays until `keep`
    says that no checkpoint needs it.

    Args:    augmentor: the learner, as yet untouched; an entry holds its trainable parameters.
             folder: where entries live; written by rank 0, read by all.
             seed: of the run; draws and replacements are functions of it and the step.
             is_main: whether this process writes.
    """

    def __init__(
        self,
        augmentor: nn.Module,
        folder: Path,
        config: BankConfig,
        *,
        seed: int,
        is_main: bool = True,
    ) -> None:
        self._augmentor, self._folder, self._seed = augmentor, folder, seed
        self._names = [name for name, p in augmentor.named_parameters() if p.requires_grad]
        self._capacity, self._is_main = config.capacity, is_main
        self._entries: list[tuple[int, dict[str, Tensor]]] = []
        self._checksums: dict[int, str] = {}
        self._num_seen = 0
        self._first = self._snapshot()

    def __len__(self) -> int:
        return len(self._entries)

    def save(self) -> None:
        """Add the augmentor as it is now."""
        number, tensors = self._num_seen, self._snapshot()
        self._num_seen += 1
        place = number
        if number >= self._capacity:
            chance = random.Random(derive_seed(self._seed, "bank-replace", number))
            place = chance.randrange(number + 1)
        if place >= self._capacity:
            return
        self._write(number, tensors)
        if place < len(self._entries):
            self._entries[place] = (number, tensors)
        else:
            self._entries.append((number, tensors))

    @torch.no_grad()
    def draw_into(self, target: nn.Module, step: int) -> None:
        """Give `target`, a copy of the augmentor, the tensors of the entry drawn for this step."""
        if not self._entries:
            self._load(target, dict(self._augmentor.named_parameters()))
            return
        chosen = random.Random(derive_seed(self._seed, "bank-draw", step)).randrange(len(self))
        self._load(target, self._entries[chosen][1])

    @torch.no_grad()
    def restart(self, step: int, *, untouched: bool) -> None:
        """Set the learner back to the untouched augmentor, or to the entry drawn for this step."""
        if untouched:
            self._load(self._augmentor, self._first)
        else:
            self.draw_into(self._augmentor, step)

    @property
    def numbers(self) -> list[int]:
        """Of the entries kept, in their places."""
        return [number for number, _ in self._entries]

    def keep(self, numbers: set[int]) -> None:
        """Remove the files of other entries; not the first, the untouched one, for the report."""
        kept = {self._path(number) for number in numbers | {0}}
        for path in self._folder.glob("entry_*.safetensors"):
            if path not in kept:
                path.unlink(missing_ok=True)
        # What a kill left behind of files that were never whole.
        for torn in self._folder.glob(".entry_*"):
            torn.unlink(missing_ok=True)

    def state_dict(self) -> dict[str, Any]:
        """Numbers and checksums of the entries kept, in their places; how many were ever saved."""
        checksums = [self._checksums[number] for number in self.numbers]
        return {"entries": self.numbers, "checksums": checksums, "num_seen": self._num_seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Read the entries of a saved state, or of a list of numbers alone, from their files.

        Raises:  ValueError that names a file which is missing or damaged.
        """
        self._num_seen = state["num_seen"]
        known = state["checksums"] if "checksums" in state else ()
        self._checksums = dict(zip(state["entries"], known, strict=False))
        self._entries = [(number, self._read(number)) for number in state["entries"]]

    def _write(self, number: int, tensors: dict[str, Tensor]) -> None:
        payload = save({k: v.cpu().contiguous() for k, v in tensors.items()})
        self._checksums[number] = _checksum(payload)
        if self._is_main:
            write_atomic(self._path(number), payload)

    def _read(self, number: int) -> dict[str, Tensor]:
        path, device = self._path(number), next(self._augmentor.parameters()).device
        try:
            payload = path.read_bytes()
            # safetensors sees that a file is cut, not that numbers in it have changed.
            if self._checksums.setdefault(number, _checksum(payload)) != _checksum(payload):
                raise SafetensorError("damaged: its checksum differs")
            return {name: tensor.to(device) for name, tensor in load(payload).items()}
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"{path}: an augmentor of the bank cannot be read ({error}); restore the file, or "
                "start anew with --resume never"
            ) from None

    def _path(self, number: int) -> Path:
        return self._folder / f"entry_{number:06d}.safetensors"

    def _snapshot(self) -> dict[str, Tensor]:
        parameters = dict(self._augmentor.named_parameters())
        return {name: parameters[name].detach().clone() for name in self._names}

    def _load(self, target: nn.Module, tensors: dict[str, Tensor]) -> None:
        parameters = dict(target.named_parameters())
        torch._foreach_copy_(
            [parameters[name] for name in self._names], [tensors[name] for name in self._names]
        )


def _checksum(payload: bytes) -> str:
    return hashlib.sha256(payload).hexdigest()
