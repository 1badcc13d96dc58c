"""The processes of a run tell each other, before each step, where they are."""

import time
from datetime import timedelta

import torch
import torch.distributed as dist

from hard_fast.runtime.dist import World, meeting_store

# How long those who came wait to hear who else did, s.
_ROLL_CALL_S = 3.0


class Lost(Exception):
    """Another process hangs, is gone, or does something else."""


class Pulse:
    """One small message among the processes per step, on the host: no device waits for it.

    Args:    timeout_s: how long a process waits for the others, s.
    """

    def __init__(self, world: World, timeout_s: float) -> None:
        self._world, self._timeout_s = world, timeout_s
        self._group = self._work = None
        self._message = torch.zeros(3, dtype=torch.int64)
        if world.size > 1:
            timeout = timedelta(seconds=timeout_s)
            self._group = dist.new_group(backend="gloo", timeout=timeout)

    def beat(self, place: int, wish: int) -> None:
        """Tell the others, without waiting for them.

        Args:    place: where this process is; the same number in every process.
                 wish: what one process wants of all; the highest number counts.
        """
        self._message = torch.tensor([place, -place, wish])
        if self._group is not None:
            self._work = dist.all_reduce(
                self._message, op=dist.ReduceOp.MAX, group=self._group, async_op=True
            )

    def agreed(self, where: str) -> int:
        """The highest wish of all processes, once all have told.

        Args:    where: for a person: "step 12 (student)".
        Raises:  Lost, one line, if some process did not come in time or is in another place.
        """
        if self._work is not None:
            self._await(where)
        highest, negated_lowest, wish = self._message.tolist()
        if highest != -negated_lowest:
            raise Lost(
                f"the processes are not at the same place: this one is at {where}; start again, it "
                "goes on from the last checkpoint"
            )
        return wish

    def _await(self, where: str) -> None:
        try:
            self._work.wait()
        except RuntimeError as error:
            absent = self._absent(where)
            names = "rank " + ", ".join(map(str, absent)) if absent else "a rank"
            raise Lost(
                f"{names} did not come to {where} within {self._timeout_s:g} s: it hangs or is "
                f"gone ({str(error).splitlines()[0][:120]})"
            ) from None
        finally:
            self._work = None

    def _absent(self, where: str) -> list[int]:
        """Who does not answer a roll call, asked by all who came."""
        store = meeting_store()
        key = f"roll call/{where}"
        store.set(f"{key}/{self._world.rank}", "here")
        time.sleep(_ROLL_CALL_S)
        return [rank for rank in range(self._world.size) if not store.check([f"{key}/{rank}"])]
