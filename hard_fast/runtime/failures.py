"""What ends a process though its code is right: too little memory, or others that are gone."""

import re

from hard_fast.runtime import dist, pulse, signals
from hard_fast.runtime.messages import say

_MISTAKE = 2
_COMPILERS = ("torch._dynamo", "torch._inductor")
# The last is how oneDNN says it; where it speaks of a descriptor, it was given what it cannot do.
_SHORT = re.compile(
    r"out of memory|(?:n't|tried to|unable to) allocate|bad_alloc"
    r"|could not create a primitive(?! desc)",
    re.IGNORECASE,
)
_AMOUNT = re.compile(r"(?:tried to|unable to) allocate ([\d.]+) ?(\w+)", re.IGNORECASE)


def tell(error: Exception) -> int:
    """Say in one line what happened; returns the exit code.

    Raises:  the error itself if it is of another kind, since then its place in the code matters.
    """
    # A compiler that got the same signal as this process, from a terminal or Slurm.
    if signals.asked() and type(error).__module__.startswith(_COMPILERS):
        stopped = signals.Stopped(signals.asked())
        say(f"{stopped} while it compiled; the same command goes on")
        return stopped.code
    if (text := _shortage(error)) is not None:
        code = _MISTAKE
    elif (text := pulse.explained(error)) is not None:
        code = pulse.LOST
    else:
        raise error
    say(f"error{dist.who()}: {text}")
    return code


def _shortage(error: Exception) -> str | None:
    """What to do about memory, if that is what was short."""
    if not isinstance(error, MemoryError) and not _SHORT.search(str(error)):
        return None
    wanted = ""
    if amount := _AMOUNT.search(str(error)):
        number, unit = float(amount.group(1)), amount.group(2)
        if unit == "bytes":
            number, unit = number / 2**30, "GiB"
        wanted = f" ({number:,.2f} {unit} wanted at once)"
    return (
        f"out of memory{wanted}: lower train.batch_size, or keep it and raise train.accumulate; "
        "teacher.precision = 'bf16', and teacher.checkpointing or student.checkpointing = true, "
        "save memory too"
    )
