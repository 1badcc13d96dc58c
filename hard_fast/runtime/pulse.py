"""The processes of a run tell each other where they are, so that who does not come is named.

Wherever one process waits for others on the host, it meets them here first, or the error of what
it waited in is explained here. A device may wait for another by itself: that is not seen here, but
the next meeting is.
"""

import re
import time
import zlib
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist

from hard_fast.runtime import signals
from hard_fast.runtime.rendezvous import Lost, missing

LOST = 75
"""What a process exits with that misses others; the system's headers call it a temporary failure:
try again."""
# How long those who came wait to hear who else did, s: at least, and where several are missing, of
# whom some may only have come later and wait still. Both together end before a device's own clock
# and before torchrun kills.
_ROLL_CALL_S = 3.0
_LATEST_S = 20.0
_POLL_S = 1.0


class _Place(NamedTuple):
    """This process among those of one start, and the key-value store that they share, once open."""

    rank: int
    size: int
    timeout_s: float
    store: dist.Store | None


_place: _Place | None = None
_group: dist.ProcessGroup | None = None
_work: dist.Work | None = None
_message = torch.zeros(3, dtype=torch.int64)
_where = "the start"


def begin(rank: int, size: int, timeout_s: float, store: dist.Store | None = None) -> None:
    """From now on this process has others to meet.

    Args:    timeout_s: how long it waits for them at any one place, s.
             store: where they hear of each other; again with it as soon as it is there.
    """
    global _place
    _place = _Place(rank, size, timeout_s, store)
    at("the start")


def end() -> None:
    """From now on this process is alone."""
    global _place, _group, _work
    _place, _group, _work = None, None, None


def at(where: str) -> None:
    """Say where this process is from now on, for a person: "step 12 (evaluation)"."""
    global _where
    _where = where


def beat(place: int, wish: int) -> None:
    """Tell the others, without waiting for them.

    Args:    place: where this process is; the same number in every process.
             wish: what one process wants of all; the highest number counts.
    """
    global _message, _work
    _message = torch.tensor([place, -place, wish])
    if _place is not None:
        # Over the host, where no device waits for it.
        _work = dist.all_reduce(_message, op=dist.ReduceOp.MAX, group=_hosts(), async_op=True)


def agreed(where: str) -> int:
    """The highest wish of all processes, once all have told; this process is now there.

    Raises:  Lost, one line, if some process did not come in time or is in another place.
    """
    global _work
    at(where)
    if _work is not None:
        try:
            _work.wait()
        except RuntimeError as error:
            raise _missed(error) from None
        finally:
            _work = None
    highest, negated_lowest, wish = _message.tolist()
    if highest != -negated_lowest:
        raise Lost(
            f"the processes are not at the same place: this one is at {where}; start again, it "
            "goes on from the last checkpoint"
        )
    return wish


def meet() -> None:
    """Wait until all processes are where this one is; does nothing in a single process.

    Raises:  Lost, one line, if some process did not come in time or is in another place.
    """
    if _place is not None:
        beat(zlib.crc32(_where.encode()), 0)
        agreed(_where)


def explained(error: Exception) -> Lost | None:
    """Who is missing, where an error of torch's says that it waited in vain; None for others."""
    if isinstance(error, Lost):
        return error
    is_ours = isinstance(error, dist.DistError) or "gloo" in str(error)
    return _missed(error) if _place is not None and is_ours else None


def _hosts() -> dist.ProcessGroup:
    """The group of all processes over the host, made when the first of them meet."""
    global _group
    if _group is None:
        _group = dist.new_group(backend="gloo", timeout=timedelta(seconds=_place.timeout_s))
    return _group


def _missed(error: Exception) -> Lost:
    said = re.sub(r"^\[\S+\] ", "", str(error).splitlines()[0]).split(". ")[0][:120]
    return missing(_absent(), _where, _place.timeout_s, said)


def _absent() -> list[int]:
    """Who does not answer a roll call, asked by all who came; nobody where none can be held."""
    store = _place.store
    absent = list(range(_place.size))
    try:
        if store is None:
            return []
        store.set(f"roll call/{_where}/{_place.rank}", "here")
        latest = time.monotonic() + min(_place.timeout_s, _LATEST_S)
        time.sleep(_ROLL_CALL_S)
        while True:
            absent = [rank for rank in absent if not store.check([f"roll call/{_where}/{rank}"])]
            if len(absent) <= 1 or time.monotonic() > latest or signals.asked():
                return absent
            time.sleep(_POLL_S)
    except RuntimeError:
        # The store is gone with the process that kept it.
        return []
