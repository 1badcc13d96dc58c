"""Runs as processes of their own, which start at once: what all of them import is imported once."""

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, set_num_threads
from torch.distributed import TCPStore

from hard_fast.runtime import dist
from hard_fast.runtime.configfile import merge
from hard_fast.runtime.rows import read_rows
from hard_fast.train import main
from tests.tiny import TREE

STEPS, LOG_EVERY, SAVE_EVERY, EPOCH = 60, 4, 6, 4
RUN = merge(
    TREE,
    {
        "student": {"name": "cnn", "options": {"widths": [4, 4, 4], "batch_norm": True}},
        "average": {"decay": 0.9},
        "train": {"steps": STEPS, "log_every": LOG_EVERY, "eval_every_epochs": 3},
        "checkpoint": {"every_steps": SAVE_EVERY},
    },
)

# The process that is copied has imported all this, has one thread, and has run nothing.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    [
        *("tests.faults.runs", "torch._inductor.compile_fx", "nvidia.dali.fn", "tensorboard"),
        *("matplotlib.figure", "matplotlib.backends.backend_agg", "jinja2"),
    ]
)
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
TORCHRUN += ["--signals-to-handle", "SIGTERM,SIGINT,SIGUSR1"]


class Run:
    """`hard_fast.train` as one process or as two ranks, just started.

    Args:    arguments: of the command.
             said: file that gets what it says.
             by_torchrun: have torchrun start the ranks, which takes much longer.
             before: called with the rank, in its process, before the command.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        said: Path,
        *,
        ranks: int = 1,
        by_torchrun: bool = False,
        before: Callable[[int], None] | None = None,
    ) -> None:
        self.ranks, self._said, self._torchrun, self._forks = ranks, said, None, []
        if by_torchrun:
            self._torchrun = spawn([*TORCHRUN, "-m", "hard_fast.train", *arguments], said)
            return
        environment = {}
        if ranks > 1:
            # As torchrun's process does, this one keeps the store, so that no rank takes it away.
            self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
            environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self._store.port)}
            environment |= {"WORLD_SIZE": str(ranks), "TORCHELASTIC_USE_AGENT_STORE": "True"}
        for rank in range(ranks):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if environment else {}
            given = (list(arguments), said, environment | own, rank, before)
            self._forks.append(_FORKS.Process(target=_be, args=given))
            self._forks[-1].start()

    def pid(self, rank: int | None) -> int:
        """The process of a rank; None: of what was started, if that is torchrun.

        Raises:  ProcessLookupError if there is none.
        """
        if self._torchrun is None:
            return self._forks[rank or 0].pid
        parent = self._torchrun.pid
        if rank is None:
            return parent
        with contextlib.suppress(FileNotFoundError):
            for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
                environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
                if f"RANK={rank}".encode() in environment:
                    return int(child)
        raise ProcessLookupError(f"rank {rank} is gone")

    def codes(self) -> list[int | None]:
        """What each process ended with: minus the signal that killed it; None while it runs."""
        if self._torchrun is not None:
            return [self._torchrun.poll()]
        return [fork.exitcode for fork in self._forks]

    def is_over(self) -> bool:
        """Whether all processes have ended."""
        return None not in self.codes()

    def wait(self, timeout_s: float = 180.0) -> list[int]:
        """What the processes ended with, once all have."""
        deadline = time.monotonic() + timeout_s
        while not self.is_over():
            assert time.monotonic() < deadline, f"still running:\n{self.said()}"
            time.sleep(0.02)
        return self.codes()

    def said(self) -> str:
        """What it has said so far."""
        return self._said.read_text() if self._said.is_file() else ""

    def end(self) -> None:
        """Kill all of it at once, as when the power goes."""
        pids = [fork.pid for fork in self._forks]
        if self._torchrun is not None:
            for rank in range(self.ranks):
                with contextlib.suppress(ProcessLookupError):
                    pids.append(self.pid(rank))
            # First, so that it does not see the ranks go.
            self._torchrun.kill()
            self._torchrun.wait()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        while any(state(pid) not in (None, "Z") for pid in pids):
            time.sleep(0.005)


def state(pid: int) -> str | None:
    """What a process does: R runs, S sleeps, T is stopped, Z has ended; None if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return None


def spawn(arguments: Sequence[str], said: Path) -> subprocess.Popen:
    """A Python process that imports what it needs, as a person starts it."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=said.open("a"),
        start_new_session=True,
    )


def finish(arguments: Sequence[str], said: Path, ranks: int = 1) -> None:
    """The run to its end, which must be a good one."""
    run = Run(arguments, said, ranks=ranks)
    try:
        assert run.wait() == [0] * ranks, run.said()
    finally:
        run.end()


def _be(
    arguments: list[str],
    said: Path,
    environment: dict[str, str],
    rank: int,
    before: Callable[[int], None] | None,
) -> None:
    os.setsid()
    os.environ.update(environment)
    set_num_threads(1)
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    if before is not None:
        before(rank)
    dist.end(main(arguments))


def outcome(run_dir: Path) -> tuple[dict[str, Tensor], list[dict]]:
    """Final weights, and the rows without what depends on the clock."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    rows = [{key: value for key, value in row.items() if key != "timing"} for row in rows]
    return load_file(run_dir / "student.safetensors"), rows


def saved_steps(run_dir: Path) -> list[int]:
    """The steps that have a checkpoint."""
    notes = (run_dir / "checkpoints").glob("step_*.json")
    return sorted(int(note.stem.removeprefix("step_")) for note in notes)


def last_step(run_dir: Path) -> int:
    """The step of the last row told so far."""
    return max((row["step"] for row in read_rows(run_dir / "metrics.jsonl")), default=0)
