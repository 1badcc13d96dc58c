"""The list of pictures that cannot be decoded: a text file that a person can read and edit.

One name per line, relative to the folder of the list (shard.tar/member for shards), with the reason
behind a tab; lines that start with # are comments.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from hard_fast.runtime.files import write_atomic

LIST_NAME = "unreadable.txt"

_ESCAPES = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r", "#": "\\#"}
_CHARACTERS = {escape: character for character, escape in _ESCAPES.items()}


def read_unreadable(folder: Path) -> dict[str, str]:
    """The reason by name of the pictures listed in a folder; nothing where there is no list.

    Raises:  ValueError if the list is there and cannot be read.
    """
    path = folder / LIST_NAME
    if not path.exists():
        return {}
    try:
        text = path.read_bytes().decode("utf-8", "surrogateescape")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    # Not splitlines: a name may hold what Unicode takes for the end of a line.
    lines = [line.rstrip("\r") for line in text.split("\n")]
    rows = [line.partition("\t") for line in lines if line.strip() and not line.startswith("#")]
    return {_unescape(name.rstrip(" ")): reason for name, _, reason in rows}


def write_unreadable(folder: Path, reasons: Mapping[str, str], command: str) -> Path:
    """Write the list, sorted by name, whole or not at all; its path.

    Args:    command: what made it, told in its first line.
    """
    lines = [f"# Left out of training and evaluation. Made by: {command}"]
    for name in sorted(reasons):
        reason = " ".join(reasons[name].split())
        lines.append(f"{_escape(name)}\t{reason}")
    text = "".join(f"{line}\n" for line in lines)
    return write_atomic(folder / LIST_NAME, text.encode("utf-8", "surrogateescape"))


def _escape(name: str) -> str:
    return name.translate(str.maketrans(_ESCAPES))


def _unescape(name: str) -> str:
    return re.sub(r"\\[\\tnr#]", lambda found: _CHARACTERS[found[0]], name)
