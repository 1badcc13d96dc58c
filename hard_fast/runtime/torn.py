"""Compiled libraries that were cut off: torch takes them for whole, and loading one is the end."""

import fcntl
import struct
from pathlib import Path

# The header and, right after it, the list of what is loaded.
_HEADER_BYTES = 4096


def remove_torn_libraries(cache: Path) -> None:
    """Remove what a kill or a full disk left half written of libraries, so that it is made again.

    A compiler writes its library under its last name and its first bytes last, and torch compiles
    nothing that is there already. A library that is cut off ends the process which loads it
    (SIGBUS), as often as it is started; one that tells what the processor can do makes another
    code of all that follows. Those that some process is compiling now are left to it.

    Args:    cache: torch.compile's folder.
    """
    for path in cache.rglob("*.so"):
        if not _is_whole(path):
            _remove_unless_locked(path, cache / "locks" / f"{path.name.split('.')[0]}.lock")


def _is_whole(path: Path) -> bool:
    """Whether the file is as long as its table of sections, which stands last, and segments say."""
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
            size = file.seek(0, 2)
    except FileNotFoundError:
        # Another process has removed it.
        return True
    if len(header) < 64 or not any(header[:4]):
        return False
    if header[:4] != b"\x7fELF":
        # Of a system with another format, of which nothing is known here.
        return True
    segments, sections = struct.unpack_from("<QQ", header, 0x20)
    segment_bytes, num_segments, section_bytes, num_sections = struct.unpack_from("<4H", header, 54)
    ends = [sections + section_bytes * num_sections]
    for place in range(segments, segments + segment_bytes * num_segments, segment_bytes):
        if place + segment_bytes > len(header):
            break
        start, length = struct.unpack_from("<Q16xQ", header, place + 8)
        ends.append(start + length)
    return size >= max(ends)


def _remove_unless_locked(path: Path, lock: Path) -> None:
    """Remove the file while its lock is held, unless somebody else holds that."""
    lock.parent.mkdir(exist_ok=True)
    with lock.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        path.unlink(missing_ok=True)
