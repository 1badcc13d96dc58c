"""What a study compares: its file, and the runs that it describes."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from hard_fast.config import RunConfig
from hard_fast.report.record import read_json
from hard_fast.runtime import signals
from hard_fast.runtime.configfile import (
    COMMAND_LINE,
    Config,
    ConfigError,
    Source,
    dotted,
    dump,
    merge,
    parse,
    read,
)
from hard_fast.runtime.files import write_atomic
from hard_fast.smoke import shrink

# How often a study looks whether it was asked to stop, s.
_POLL_S = 0.2


class RowConfig(Config):
    """One row of the table: what differs from the study's common run."""

    seeds: list[int] | None = None
    """Seeds of this row; None: the study's."""
    teacher_row: str | None = None
    """A row above whose student is this row's teacher: of the same seed, or of its first."""
    teacher_classes: int | None = Field(default=None, ge=1)
    """How many classes that row tells apart, where they are not this row's."""
    run: dict[str, Any] = {}
    """Sections of the run that differ from the common ones."""


class StudyConfig(Config):
    """What a study compares. The file's other sections are the common run."""

    title: str
    seeds: list[int] = Field(default=[0], min_length=1)
    metrics: list[str] = Field(min_length=1)
    """Final metrics of a run that become columns."""
    jobs: int = Field(default=1, ge=1)
    """Runs at a time; each gets an equal share of the machine's threads."""
    reach: str | None = None
    """A row: how many epochs and seconds all rows need to be as good as it is in the end."""
    paper: dict[str, dict[str, float]] = {}
    """Published numbers: row, metric, value."""


class Study(Config):
    """The whole file but for the common run."""

    study: StudyConfig
    rows: dict[str, RowConfig] = Field(min_length=1)

    @model_validator(mode="after")
    def _rows_fit(self) -> "Study":
        for name, row in self.rows.items():
            if "/" in name or name in ("", ".", "..") or not name.isprintable():
                raise ValueError(f"rows.{name!r}: names a folder of the study; use plain letters")
            taken = {"seed": "seeds", "run_dir": "the study's own run_dir"}
            taken |= {} if row.teacher_row is None else {"teacher": "teacher_row"}
            for key in taken.keys() & row.run.keys():
                raise ValueError(f"rows.{name}.run.{key}: is set by {taken[key]}; remove it")
            if row.teacher_classes is not None and row.teacher_row is None:
                raise ValueError(f"rows.{name}.teacher_classes: there is no teacher_row; remove it")
        for name in self.study.paper.keys() - self.rows.keys():
            raise ValueError(f"study.paper.{name}: there is no such row")
        if self.study.reach is not None and self.study.reach not in self.rows:
            raise ValueError(f"study.reach = {self.study.reach!r}: there is no such row")
        return self


class Run:
    """One row at one seed: its configuration and the directory named after both."""

    def __init__(
        self, row: str, seed: int, config: RunConfig, study_dir: Path, teacher: "Run | None"
    ) -> None:
        self.row, self.seed, self.teacher = row, seed, teacher
        self.depth: int = teacher.depth + 1 if teacher else 0
        self.run_dir = study_dir / row / f"seed{seed}-{config.fingerprint[:8]}"
        self.config = config.model_copy(update={"run_dir": str(self.run_dir)})

    @property
    def summary(self) -> dict[str, Any] | None:
        """What the finished run found; None before that."""
        path = self.run_dir / "summary.json"
        return read_json(path) if path.is_file() else None

    def start(self, num_threads: int, resume: str) -> None:
        """Run it to its end; its progress goes to log.txt. A signal that stops the study stops it.

        Raises:  RuntimeError with the end of the log if it failed; Stopped.
        """
        signals.stop_if_asked()
        if self.teacher and self.teacher.summary is None:
            raise RuntimeError(f"{self.row} seed {self.seed}: its teacher's run failed")
        file, log_path = self.run_dir / "config.toml", self.run_dir / "log.txt"
        write_atomic(file, dump(self.config.model_dump(mode="json")))
        command = [sys.executable, "-m", "hard_fast.train", "--config", str(file)]
        command += ["--resume", resume]
        threads = {"OMP_NUM_THREADS": str(num_threads), "MKL_NUM_THREADS": str(num_threads)}
        with log_path.open("a") as log:
            # A group of its own: ctrl-C reaches it once, from here.
            process = subprocess.Popen(
                command, stderr=log, stdout=log, env=os.environ | threads, start_new_session=True
            )
            code = _wait(process)
        signals.stop_if_asked()
        if code:
            last = "".join(log_path.read_text().strip().splitlines()[-1:])
            raise RuntimeError(f"{self.row} seed {self.seed}: {last} ({log_path})")


def _wait(process: subprocess.Popen) -> int:
    """Its exit code; the signal that the study was sent is passed on."""
    while not signals.asked():
        try:
            return process.wait(_POLL_S)
        except subprocess.TimeoutExpired:
            continue
    process.send_signal(signals.asked())
    return process.wait()


def load_study(name: str, overrides: list[str]) -> tuple[Study, list[Run], Path]:
    """The study of a file, its runs, and its directory.

    Raises:  ConfigError, one line, for a mistake in any of its runs.
    """
    source = read(name, overrides)
    if "study" not in source.tree:
        raise ConfigError(f"{name} is one run: python -m hard_fast.train --config {name}")
    common = {key: value for key, value in source.tree.items() if key not in ("study", "rows")}
    own = {key: value for key, value in source.tree.items() if key not in common}
    study = parse(Study, Source(own, source.origin))
    if "seed" in common:
        raise ConfigError(f"{source.origin['seed']}: seed: a study has study.seeds instead")
    _check_overrides(study, common, source)
    study_dir = Path(common.pop("run_dir", f"runs/{study.study.title}"))
    runs: dict[tuple[str, int], Run] = {}
    for row, row_config in study.rows.items():
        for seed in row_config.seeds or study.study.seeds:
            tree = merge(merge(common, row_config.run), {"seed": seed, "run_dir": str(study_dir)})
            teacher = _teacher(row, row_config, seed, runs)
            if teacher:
                tree["teacher"] = teacher.config.student.model_dump(mode="json") | {
                    "checkpoint": str(teacher.run_dir / "student.safetensors"),
                    # Where its own training began is no concern of those it teaches.
                    "pretrained": False,
                    "new_head": False,
                    "num_classes": row_config.teacher_classes,
                }
            try:
                config = parse(RunConfig, shrink(Source(tree, source.origin)))
            except ConfigError as error:
                raise ConfigError(f"rows.{row}: {error}") from None
            runs[row, seed] = Run(row, seed, config, study_dir, teacher)
    return study, list(runs.values()), study_dir


def _check_overrides(study: Study, common: dict[str, Any], source: Source) -> None:
    """Refuse an override of the common run that some rows would ignore."""
    given = {key for key in dotted(common) if source.origin.get(key) == COMMAND_LINE}
    # A row's own epochs would replace these steps, and the other way round.
    length = {"train.steps": "train.epochs", "train.epochs": "train.steps"}
    given |= {length[key] for key in given & length.keys()}
    for row, config in study.rows.items():
        for key in sorted(given & set(dotted(config.run))):
            if not any(other.startswith(f"{key}.") for other in given):
                raise ConfigError(
                    f"{COMMAND_LINE}: {key}: row {row} sets its own; add rows.{row}.run.{key}=..."
                )


def _teacher(
    row: str, config: RowConfig, seed: int, runs: dict[tuple[str, int], Run]
) -> Run | None:
    if config.teacher_row is None:
        return None
    found = {s: run for (name, s), run in runs.items() if name == config.teacher_row}
    if not found:
        raise ConfigError(f"rows.{row}.teacher_row = {config.teacher_row!r}: no such row above it")
    return found[seed] if seed in found else next(iter(found.values()))
