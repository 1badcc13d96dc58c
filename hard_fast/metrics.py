"""What a run tells: sums on the device, rows in metrics.jsonl, TensorBoard, a progress line."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from hard_fast.runtime import dist
from hard_fast.runtime.files import write_atomic
from hard_fast.types import Phase

# Which entry of a row is a sentence, by the row's kind.
_TEXTS = {"warning": "text", "switch": "reason"}


class Meter:
    """Sums of what the losses logged, per phase. Adding never leaves the device."""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}
        self._sums: dict[str, Tensor] = {}
        self._steps: dict[str, int] = {}

    def add(self, phase: Phase, logs: dict[str, Tensor]) -> None:
        """Count one step of a phase with its logs, [] fp32 each."""
        values = torch.stack(list(logs.values()))
        key = phase.value
        if key in self._sums:
            self._sums[key] += values
            self._steps[key] += 1
        else:
            self._names[key], self._sums[key], self._steps[key] = list(logs), values, 1

    def means(self) -> dict[str, dict[str, float]]:
        """Per phase its number of steps and the means over steps and ranks; starts anew.

        Waits for the device: call it every `log_every` steps, not every step.
        """
        dist.mean_(list(self._sums.values()))
        found = {}
        for key, sums in self._sums.items():
            num = self._steps[key]
            values = (sums / num).tolist()
            found[key] = {"steps": num, **dict(zip(self._names[key], values, strict=True))}
        self._names, self._sums, self._steps = {}, {}, {}
        return found

    def state_dict(self) -> dict[str, Any]:
        """The sums not yet reported; a resumed run reports the same rows."""
        return {"names": dict(self._names), "sums": dict(self._sums), "steps": dict(self._steps)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from saved sums."""
        self._names, self._sums = dict(state["names"]), dict(state["sums"])
        self._steps = dict(state["steps"])


class MetricsLog:
    """metrics.jsonl and TensorBoard of one run directory. Only rank 0 has one.

    Args:    resume_step: keep the rows up to this step and drop what came after it; the run writes
                 those again. 0 for a new run.
    """

    def __init__(self, run_dir: Path, *, resume_step: int, use_tensorboard: bool) -> None:
        self.path = run_dir / "metrics.jsonl"
        kept = [row for row in read_rows(self.path) if row["step"] <= resume_step]
        write_atomic(self.path, "".join(_line(row) for row in kept if resume_step))
        self._file = self.path.open("a", encoding="utf-8")
        self._board = None
        if use_tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=resume_step + 1)

    def write(self, row: dict[str, Any]) -> None:
        """Append one row, {"kind", "step", ...}; what depends on the clock stands under timing."""
        self._file.write(_line(row))
        self._file.flush()
        if self._board is None:
            return
        if row["kind"] in _TEXTS:
            self._board.add_text(row["kind"], row[_TEXTS[row["kind"]]], row["step"])
            return
        for name, value in _scalars(row):
            self._board.add_scalar(name, value, row["step"])

    def picture(self, name: str, path: Path, step: int) -> None:
        """Show a picture file in TensorBoard."""
        if self._board is not None:
            pixels = np.asarray(Image.open(path).convert("RGB"))
            self._board.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Flush and close both."""
        self._file.close()
        if self._board is not None:
            self._board.close()


class ProgressLine:
    """One live line on a terminal; elsewhere a plain line at each evaluation."""

    def __init__(self, num_steps: int, *, is_shown: bool) -> None:
        self.console = Console(stderr=True, quiet=not is_shown)
        self._progress = Progress(
            TextColumn("{task.fields[phase]:>9}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self.console,
            disable=not (is_shown and sys.stderr.isatty()),
        )
        self._task = self._progress.add_task("run", total=num_steps, phase="", text="")
        self._shown: dict[str, str] = {}

    def __enter__(self) -> "ProgressLine":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, row: dict[str, Any]) -> None:
        """Show the newest training or evaluation row; other kinds change nothing."""
        if row["kind"] == "train":
            self._show_training(row)
        elif row["kind"] == "eval":
            scores = [f"{k} {v:.4g}" for k, v in row.items() if k.endswith(("top1", "mse"))]
            self._shown["scores"] = " ".join(scores)
        else:
            return
        text = "  ".join(value for value in self._shown.values() if value)
        self._progress.update(self._task, completed=row["step"], text=text)
        if row["kind"] == "eval" and self._progress.disable:
            self.say(f"step {row['step']}  epoch {row['epoch']:.4g}  {text}")

    def _show_training(self, row: dict[str, Any]) -> None:
        phase, timing = row["phase"], row["timing"]
        logs = row[phase] if phase in row else {}
        self._shown |= {key: f"{key} {logs[key]:.3g}" for key in ("loss", "error") if key in logs}
        wait = timing["data_wait"]
        share = f" ({wait:.0%} waiting for data)" if wait >= 0.005 else ""
        self._shown["speed"] = f"{timing['images_per_s']:,.0f} images/s{share}"
        self._progress.update(self._task, phase=phase)

    def say(self, text: str) -> None:
        """A line that stays, above the live one."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; a last line torn by a kill is left out, no file is no rows."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def _line(row: dict[str, Any]) -> str:
    return json.dumps(_finite(row), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    # JSON has no NaN; null says "no number" to every reader.
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _scalars(row: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    found = []
    for key, value in row.items():
        if isinstance(value, dict):
            found += _scalars(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and key not in ("step", "epoch"):
            found.append((f"{prefix}{key}", float(value)))
    return found
