"""The rows of a run as TensorBoard's curves, texts and pictures."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hard_fast.runtime.files import named

# Which entry of a row is a sentence, by the row's kind.
_TEXTS = {"warning": "text", "switch": "reason"}


class Board:
    """TensorBoard's files in a folder; what the system refuses is told with the folder's name.

    Args:    step: after which a run continues; what was written after it is hidden.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder, self._hook = folder, threading.excepthook
        threading.excepthook = self._skip_own
        try:
            with named(folder):
                self._writer = SummaryWriter(str(folder), purge_step=step + 1)
        except BaseException:
            threading.excepthook = self._hook
            raise

    def _skip_own(self, failure: threading.ExceptHookArgs) -> None:
        # What its thread could not write, the next call raises here.
        if not type(failure.thread).__module__.startswith("tensorboard."):
            self._hook(failure)

    def write(self, row: dict[str, Any]) -> None:
        """Append the numbers of a row, or its sentence."""
        with named(self._folder):
            if row["kind"] in _TEXTS:
                self._writer.add_text(row["kind"], row[_TEXTS[row["kind"]]], row["step"])
                return
            for name, value in _scalars(row):
                self._writer.add_scalar(name, value, row["step"])

    def picture(self, name: str, path: Path, step: int) -> None:
        """Show a picture file."""
        pixels = np.asarray(Image.open(path).convert("RGB"))
        with named(self._folder):
            self._writer.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Bring everything to the disk."""
        try:
            with named(self._folder):
                self._writer.close()
        finally:
            threading.excepthook = self._hook


def _scalars(row: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    found = []
    for key, value in row.items():
        if isinstance(value, dict):
            found += _scalars(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and key not in ("step", "epoch"):
            found.append((f"{prefix}{key}", float(value)))
    return found
