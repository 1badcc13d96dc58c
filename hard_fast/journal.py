"""What a run tells: rows in metrics.jsonl, TensorBoard, a progress line."""

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from hard_fast.board import Board
from hard_fast.runtime.files import named, write_atomic
from hard_fast.runtime.rows import as_json, read_rows


class MetricsLog:
    """metrics.jsonl and TensorBoard of one run directory. Only rank 0 has one.

    Args:    resume_step: keep the rows up to this step and drop what came after it; the run writes
                 those again. 0 for a new run.
    """

    def __init__(self, run_dir: Path, *, resume_step: int, use_tensorboard: bool) -> None:
        self.path = run_dir / "metrics.jsonl"
        self._board, self._has_board = None, use_tensorboard
        self._open(resume_step, is_new=not resume_step)

    def _open(self, step: int, *, is_new: bool = False) -> None:
        kept = [row for row in read_rows(self.path) if row["step"] <= step and not is_new]
        write_atomic(self.path, "".join(map(_line, kept)))
        self._file = self.path.open("a", encoding="utf-8")
        if self._has_board:
            self._board = Board(self.path.parent / "tensorboard", step)

    def cut(self, step: int) -> None:
        """Drop the rows after a step that the run goes back to."""
        self.close()
        self._open(step)

    def write(self, row: dict[str, Any]) -> None:
        """Append one row, {"kind", "step", ...}; what depends on the clock stands under timing."""
        with named(self.path):
            self._file.write(_line(row))
            self._file.flush()
        if self._board is not None:
            self._board.write(row)

    def picture(self, name: str, path: Path, step: int) -> None:
        """Show a picture file in TensorBoard."""
        if self._board is not None:
            self._board.picture(name, path, step)

    def close(self) -> None:
        """Flush and close both."""
        with named(self.path):
            self._file.close()
        if self._board is not None:
            self._board.close()


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Go on without a word where the pipe of what is said is closed; rich ends the process."""
        self.quiet = True


class ProgressLine:
    """One live line on a terminal; elsewhere a plain line at each evaluation."""

    def __init__(self, num_steps: int, *, is_shown: bool, first_step: int = 0) -> None:
        self.console = _Console(stderr=True, quiet=not is_shown)
        self._progress = Progress(
            TextColumn("{task.fields[phase]:>9}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self.console,
            disable=not (is_shown and sys.stderr.isatty()),
        )
        self._task = self._progress.add_task(
            "run", total=num_steps, completed=first_step, phase="", text=""
        )
        self._shown: dict[str, str] = {}

    def __enter__(self) -> "ProgressLine":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        # Its terminal may be gone, and nothing is lost with it.
        with contextlib.suppress(OSError):
            self._progress.stop()

    def update(self, row: dict[str, Any]) -> None:
        """Show the newest training or evaluation row; other kinds change nothing."""
        if row["kind"] == "train":
            self._show_training(row)
        elif row["kind"] == "eval":
            shown = ("top1", "mse", "bound")
            scores = [f"{k} {v:.4g}" for k, v in row.items() if k.endswith(shown)]
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
        """A line that stays, above the live one, if there is still somebody to read it."""
        with contextlib.suppress(OSError):
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)


class Journal:
    """Everything that a run writes down while it goes on; on ranks above 0 it keeps silent.

    Args:    first_step: where the run continues; what was written after it is cut.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        num_steps: int,
        first_step: int,
        use_tensorboard: bool,
        is_main: bool = True,
    ) -> None:
        self.is_main = is_main
        self._log = None
        if is_main:
            self._log = MetricsLog(run_dir, resume_step=first_step, use_tensorboard=use_tensorboard)
        self._progress = ProgressLine(num_steps, is_shown=is_main, first_step=first_step)

    def __enter__(self) -> "Journal":
        self._progress.__enter__()
        return self

    def __exit__(self, *reason: object) -> None:
        self._progress.__exit__(*reason)
        if self._log:
            self._log.close()

    def write(self, kind: str, step: int, epoch: float, row: dict[str, Any]) -> None:
        """Append a row and show it."""
        full = {"kind": kind, "step": step, "epoch": epoch, **row}
        if self._log:
            self._log.write(full)
        self._progress.update(full)
        if kind == "warning":
            self._progress.say(f"warning, step {step}: {row['text']}")

    def cut(self, step: int) -> None:
        """Drop the rows after a step that the run goes back to."""
        if self._log:
            self._log.cut(step)

    def say(self, text: str) -> None:
        """A line for the person alone."""
        self._progress.say(text)

    def picture(self, name: str, path: Path, step: int) -> None:
        """Show a picture file in TensorBoard."""
        if self._log:
            self._log.picture(name, path, step)


def _line(row: dict[str, Any]) -> str:
    return json.dumps(as_json(row), allow_nan=False) + "\n"
