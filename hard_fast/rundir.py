"""A run's directory: one run at a time, one configuration, and nothing overwritten."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

from hard_fast.config import RunConfig
from hard_fast.runtime import dist
from hard_fast.runtime.dist import World
from hard_fast.runtime.files import write_atomic
from hard_fast.runtime.rendezvous import launch_id

_LAUNCH_FILE = ".launch"
_LOCK_FILE = ".lock"


class RunDir:
    """The directory as long as this process has it; only rank 0 touches it.

    Args:    resume: go on with the run that is there; else it is moved aside.
             fingerprint_of: of a configuration in a file.
    Raises:  ValueError, one line and in every process, where this run must not go on there.
    """

    def __init__(
        self,
        config: RunConfig,
        world: World,
        *,
        resume: bool,
        fingerprint_of: Callable[[Path], str],
    ) -> None:
        self.path = Path(config.run_dir)
        self.config_file = self.path / "config.toml"
        # A group that torchrun started again goes on with what its first start began.
        self.resume = resume or (world.is_restart and self._launched_by() == launch_id())
        self._lock: IO[str] | None = None
        mistake = self._claim(config.fingerprint, fingerprint_of) if world.is_main else None
        if mistake := dist.broadcast_object(mistake):
            raise ValueError(f"run_dir = {str(self.path)!r} {mistake}")

    def _launched_by(self) -> str | None:
        path = self.path / _LAUNCH_FILE
        return path.read_text() if path.is_file() else None

    def _claim(self, fingerprint: str, fingerprint_of: Callable[[Path], str]) -> str | None:
        """Make the directory ready; what stands against it, or None."""
        try:
            if (holder := self._locked()) is not None:
                return f"is in use by process {holder}; wait for it, or choose another run_dir"
            if self.config_file.is_file() and not self.resume:
                self._move_aside()
                self._locked()
            write_atomic(self.path / _LAUNCH_FILE, launch_id())
            if self.config_file.is_file() and fingerprint_of(self.config_file) != fingerprint:
                return (
                    "holds a run of another configuration; choose another run_dir, or --resume "
                    "never to move that one aside"
                )
        except OSError as error:
            return f"cannot be used: {error.strerror}"
        except ValueError as error:
            return (
                f"holds a run whose configuration cannot be read ({error}); restore the file, or "
                "--resume never to move the run aside"
            )
        return None

    def _locked(self) -> str | None:
        """Lock the directory until this process ends; who has it, if another does."""
        self.path.mkdir(parents=True, exist_ok=True)
        # A lock of the system's, which no crash leaves behind.
        lock = open(self.path / _LOCK_FILE, "a+", encoding="utf-8")  # noqa: SIM115
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "?"
            lock.close()
            return holder
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        self._lock = lock
        return None

    def _move_aside(self) -> None:
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.old-{number}")).exists():
            number += 1
        self.path.rename(aside)
        if self._lock is not None:
            self._lock.close()

    def release(self) -> None:
        """Let other processes have it."""
        if self._lock is not None:
            self._lock.close()


def agree_on(config: RunConfig) -> None:
    """See that every process was given the same run.

    Raises:  ValueError, one line and in every process.
    """
    trees = dist.gather_objects(config.model_dump(mode="json"))
    for rank, tree in enumerate(trees):
        if differing := [name for name in tree if tree[name] != trees[0][name]]:
            raise ValueError(
                f"{', '.join(differing)}: not the same on rank {rank} as on rank 0; start every "
                "process with the same configuration"
            )
