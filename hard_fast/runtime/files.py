"""Files that are either whole or not there."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


def write_atomic(path: Path, payload: bytes | str) -> Path:
    """Write a file so that its name never stands for anything but the whole payload.

    The bytes reach the disk under a temporary name in the same folder before the name changes
    hands, so a kill or a power cut leaves the old file or the new one.

    Raises:  OSError that names the file, not the temporary one.
    """
    data = payload.encode() if isinstance(payload, str) else payload
    with named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        _sync_names(path.parent)
    return path


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """While it lasts, what the system refuses is told with this name."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _sync_names(folder: Path) -> None:
    """Bring the names in a folder to the disk: what is deleted next must not go before them."""
    # Some file systems cannot.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
