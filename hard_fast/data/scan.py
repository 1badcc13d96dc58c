"""Pictures probed by several processes; one that ends or hangs its process is found, not fatal."""

import contextlib
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from multiprocessing import connection, forkserver, get_context
from multiprocessing.context import BaseContext
from pathlib import Path

from hard_fast.data.probe import Finding, Place, answer

# Pictures sent to a process at once, and how long one of them may take.
CHUNK = 32
_PATIENCE_S = 120.0

# What tells one picture from all others: the folder of its list, and its name there.
Key = tuple[Path, str]


class Scan:
    """Findings for many pictures, in the order in which they come."""

    def __init__(self, places: Iterable[tuple[Key, Place]], num_workers: int) -> None:
        self.decoder = ""
        """What decodes, once the first finding is there."""
        self._places = iter(places)
        self._again: deque[tuple[Key, Place]] = deque()
        self._suspects: set[Key] = set()
        self._num_workers = num_workers

    def findings(self) -> Iterator[tuple[Key, Finding]]:
        """Each picture's key and what was found; the processes end with the iteration.

        Raises:  OSError if a process ends before it has a decoder.
        """
        # Not fork: torch and the progress bar have threads. Imports happen once, in the server.
        context = get_context("forkserver")
        context.set_forkserver_preload([answer.__module__])
        # What starts while SIGINT is ignored ignores it from its first moment: a ctrl-C that falls
        # into a process's birth is answered by this one alone.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            forkserver.ensure_running()
        finally:
            signal.signal(signal.SIGINT, before)
        workers = {worker.pipe: worker for worker in map(_Worker, [context] * self._num_workers)}
        try:
            while workers:
                for pipe in connection.wait(list(workers), timeout=0.2):
                    worker = workers[pipe]
                    try:
                        said = pipe.recv()
                    except (EOFError, OSError):
                        yield from self._bury(worker)
                        del workers[pipe]
                        worker = _Worker(context)
                        workers[worker.pipe] = worker
                        continue
                    if isinstance(said, Finding):
                        yield worker.pending.popleft()[0], said
                    else:
                        self.decoder = said
                        worker.is_ready = True
                    if not worker.give(self._next_chunk):
                        del workers[pipe]
                        worker.end()
                for worker in workers.values():
                    worker.end_if_hanging()
        finally:
            for worker in workers.values():
                worker.end()

    def _next_chunk(self) -> list[tuple[Key, Place]]:
        if self._again:
            chunk, self._again = list(self._again), deque()
            return chunk
        return list(islice(self._places, CHUNK))

    def _bury(self, worker: "_Worker") -> Iterator[tuple[Key, Finding]]:
        """Blame the picture that ended a process for the second time; all others get a new one."""
        code = worker.end()
        if not worker.is_ready:
            raise OSError(f"a decoding process ended at its start (exit code {code})")
        if worker.pending:
            key, _ = worker.pending[0]
            if key in self._suspects:
                worker.pending.popleft()
                yield key, Finding(f"ends or hangs the decoder (exit code {code})")
            # Once may be chance, such as want of memory.
            self._suspects.add(key)
            self._again.extend(worker.pending)


class _Worker:
    """A decoding process and the pictures it has not answered for yet."""

    def __init__(self, context: BaseContext) -> None:
        self.pipe, other = context.Pipe()
        self._process = context.Process(target=answer, args=(other,), daemon=True)
        self._process.start()
        other.close()
        self.pending: deque[tuple[Key, Place]] = deque()
        self.is_ready = False
        self._since = time.monotonic()

    def give(self, next_chunk: Callable[[], list[tuple[Key, Place]]]) -> bool:
        """Whether the process has something to do, after it was given more where it had not."""
        self._since = time.monotonic()
        if not self.pending:
            self.pending.extend(next_chunk())
            # Where the process is gone, reading from it says so next.
            with contextlib.suppress(OSError):
                self.pipe.send([place for _, place in self.pending])
        return bool(self.pending)

    def end_if_hanging(self) -> None:
        """Kill the process if it takes too long over one picture, which closes its pipe."""
        if self.pending and time.monotonic() - self._since > _PATIENCE_S:
            self._process.kill()

    def end(self) -> int | None:
        """End the process; its exit code."""
        self.pipe.close()
        self._process.join(0.5)
        self._process.kill()
        self._process.join()
        return self._process.exitcode
