"""Errors as a person is told them: one line each."""

import sys


def printable(text: str) -> str:
    """The text as one line: line ends become spaces, other control characters are spelled out."""
    line = " ".join(text.splitlines())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def one_line(error: Exception) -> str:
    """What went wrong: the file and the cause where the system refused something."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return printable(f"{error.filename}: {error.strerror}")
    return printable(str(error))


def say(line: str) -> None:
    """Write a line to stderr at once: an unbuffered print writes parts, which processes mix."""
    print(f"{line}\n", end="", file=sys.stderr)
