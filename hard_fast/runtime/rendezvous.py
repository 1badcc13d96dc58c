"""Where a process stands among the others, and how those of one start find each other."""

import json
import os
import time
import uuid
from collections.abc import Sequence
from typing import NamedTuple, Protocol

_POLL_S = 0.02


class Lost(RuntimeError):
    """Another process hangs, is gone, or does something else."""


def missing(ranks: Sequence[int], where: str, timeout_s: float, said: str = "") -> Lost:
    """What to raise where some ranks did not come; none where nobody knows which.

    Args:    where: for a person: "step 12 (student)". said: the system's own words.
    """
    names = "rank " + ", ".join(map(str, ranks)) if ranks else "a rank"
    why = f"distributed.timeout_s = {timeout_s:g}" + (f"; {said}" if said else "")
    return Lost(f"{names} did not answer at {where}: it hangs or is gone ({why})")


class Store(Protocol):
    """What `meet` needs of the key-value stores that torch has."""

    def set(self, key: str, value: str) -> None:
        """Write a value."""

    def get(self, key: str) -> bytes:
        """Wait for a key and read its value."""

    def check(self, keys: list[str]) -> bool:
        """Whether the keys are there now."""


class Place(NamedTuple):
    """Rank, number of processes and rank on this node, as the environment says."""

    rank: int
    size: int
    local_rank: int


class Meeting(NamedTuple):
    """What all processes of one start agree on.

    name:        no other start has it.
    is_restart:  whether the launcher had started them before.
    """

    name: str
    is_restart: bool


def read_place() -> Place:
    """The place that torchrun gave this process; alone where it gave none.

    Raises:  ValueError, one line, if the numbers make no sense.
    """
    size = _number("WORLD_SIZE", 1)
    if size < 1:
        raise ValueError(f"WORLD_SIZE = {size}: must be at least 1")
    # A default here would make every process rank 0, and each wait for the others for ever.
    if size > 1 and "RANK" not in os.environ:
        raise ValueError(f"WORLD_SIZE = {size}, but RANK is not set; start with torchrun")
    place = Place(_number("RANK", 0), size, _number("LOCAL_RANK", 0))
    for name, number in (("RANK", place.rank), ("LOCAL_RANK", place.local_rank)):
        if not 0 <= number < size:
            raise ValueError(
                f"{name} = {number}: must be from 0 to {size - 1}, since WORLD_SIZE = {size}"
            )
    return place


def check_gpu(local_rank: int, num_gpus: int) -> None:
    """Refuse a process that has no GPU of its own.

    Raises:  ValueError, one line, which says how many processes this node can hold.
    """
    if local_rank >= num_gpus:
        gpus = "1 GPU" if num_gpus == 1 else f"{num_gpus} GPUs"
        raise ValueError(
            f"LOCAL_RANK = {local_rank}: this is process {local_rank + 1} of its node, which has "
            f"{gpus}; start torchrun with --nproc-per-node={num_gpus}"
        )


def launch_id() -> str:
    """What a launch and its restarts share: torchrun's name of the run, empty without one."""
    return os.environ.get("TORCHELASTIC_RUN_ID", "")


def was_restarted() -> bool:
    """Whether torchrun says so; a node whose own processes were all well does not know."""
    return _number("TORCHELASTIC_RESTART_COUNT", 0) > 0


def meet(
    store: Store, rank: int, size: int, *, is_restart: bool = False, timeout_s: float
) -> Meeting:
    """Agree on a name for this start, under which its processes then exchange addresses.

    The store may hold what an earlier start left there: torchrun keeps its store over restarts,
    and a process that reads the addresses of the dead never finds the living. So rank 0 draws a
    name, the others answer to the newest name with a word of their own, and only who finds that
    word among the answers is at the right meeting.

    Args:    is_restart: what this process knows; one that knows tells all.
    Raises:  Lost if the others do not come.
    Source:  pytorch/pytorch#135712: since torch 2.5 processes share the launcher's store, and the
             keys of one attempt are not told from those of another.
    """
    deadline = time.monotonic() + timeout_s
    if rank == 0:
        is_restart = is_restart or store.check(["meeting"])
        name = uuid.uuid4().hex
        store.set("meeting", name)
        others = [f"{name}/{other}" for other in range(1, size)]
        while not store.check(others):
            if time.monotonic() > deadline:
                absent = [i for i, key in enumerate(others, 1) if not store.check([key])]
                raise missing(absent, "the start", timeout_s)
            time.sleep(_POLL_S)
        answers = [json.loads(store.get(key)) for key in others]
        is_restart = is_restart or any(answer["is_restart"] for answer in answers)
        words = [answer["word"] for answer in answers]
        store.set(f"{name}/all", json.dumps({"words": words, "is_restart": is_restart}))
        return Meeting(name, is_restart)
    word, name = uuid.uuid4().hex, ""
    while time.monotonic() < deadline:
        if store.check(["meeting"]) and (newest := store.get("meeting").decode()) != name:
            name = newest
            answer = {"word": word, "is_restart": is_restart}
            store.set(f"{name}/{rank}", json.dumps(answer))
        if name and store.check([f"{name}/all"]):
            found = json.loads(store.get(f"{name}/all"))
            if word in found["words"]:
                return Meeting(name, found["is_restart"])
        time.sleep(_POLL_S)
    # Rank 0 waits for answers too, so it is only missing where none of them is.
    others = [other for other in range(1, size) if name and not store.check([f"{name}/{other}"])]
    raise missing(others or [0], "the start", timeout_s)


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{name} = {text!r}: must be a whole number") from None
