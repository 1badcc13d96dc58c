"""Signals that ask a run to end: noted, so that it ends where nothing is lost."""

import contextlib
import os
import signal
import stat
import threading
from collections.abc import Iterator
from types import FrameType

_STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
_noted: list[signal.Signals] = []


class Stopped(Exception):
    """A run that a signal has ended. `code` is what its process exits with: 128 + the signal's."""

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        super().__init__(self.signal.name)

    @property
    def code(self) -> int:
        """143 for SIGTERM, 138 for SIGUSR1 (Slurm's warning), 130 for SIGINT (ctrl-C), 129 for
        SIGHUP (its terminal is gone)."""
        return 128 + self.signal


@contextlib.contextmanager
def noted() -> Iterator[None]:
    """While it lasts, the first of the signals is noted; after it ctrl-C acts as ever.

    A SIGHUP that is ignored, as nohup has it, stays so. Launchers send SIGTERM once more to
    processes that are about to end, which must not hurt them.

    In a thread other than the main one nothing changes, since Python has no handlers there.
    """
    _noted.clear()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _STOPPING}
    if before[signal.SIGHUP] is signal.SIG_IGN:
        del before[signal.SIGHUP]

    def note(number: int, _: FrameType | None) -> None:
        _noted.append(signal.Signals(number))
        _restore({signal.SIGINT: before[signal.SIGINT]})
        if number == signal.SIGHUP:
            _forget_terminal()

    for number in before:
        signal.signal(number, note)
    try:
        yield
    finally:
        _restore(before)


def asked() -> int:
    """The number of the signal that came, 0 if none has."""
    return int(_noted[0]) if _noted else 0


def stop_if_asked() -> None:
    """Where long work may be left: raise Stopped if a signal has come."""
    if number := asked():
        raise Stopped(number)


def _forget_terminal() -> None:
    """Say no more to a terminal that is gone, or will be, since each word would be an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for said in (1, 2):
        # One that is closed stays so.
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(said).st_mode):
                os.dup2(nowhere, said)


def _restore(handlers: dict[signal.Signals, object]) -> None:
    for number, handler in handlers.items():
        # None: a handler that was not installed from Python, which Python cannot put back.
        if handler is not None:
            signal.signal(number, handler)
