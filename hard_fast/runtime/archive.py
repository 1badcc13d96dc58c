"""Files of tensors and arrays from anywhere: nothing in them runs, and none unpacks without end."""

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

# No real numbers unpack to so many times their size; a zip bomb unpacks to a thousand times.
_MOST_TIMES = 100
_ALWAYS_FINE = 1 << 28


def check_unpacked_size(file: Path | BinaryIO, name: object) -> None:
    """See that a zip does not claim to unpack to far more than its size; other files pass.

    Args:    name: of the file, for a person.
    Raises:  ValueError that names the file. OSError if it cannot be read.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
            size = archive.fp.seek(0, 2)
    except OSError:
        raise
    except Exception:
        # No zip, or a damaged one, which makes zipfile raise almost anything: its reader says so.
        return
    if unpacked > max(_ALWAYS_FINE, _MOST_TIMES * size):
        raise ValueError(
            f"{name}: {size:,} bytes that claim to unpack to {unpacked:,}: no real data do, so it "
            "was not opened"
        )


def load_plain(file: Path | BinaryIO, name: object, device: torch.device | str = "cpu") -> Any:
    """What torch.save wrote, if that is tensors and plain values; nothing in the file is executed.

    Args:    name: of the file, for a person.
    Raises:  ValueError, one line, if it is anything else.
    """
    check_unpacked_size(file, name)
    try:
        if not isinstance(file, Path):
            file.seek(0)
        return torch.load(file, map_location=device, weights_only=True)
    except Exception as error:
        # A file that is no checkpoint makes the unpickler raise almost anything.
        raise ValueError(f"{name}: {reading_failure(error)}") from error


def reading_failure(error: Exception) -> str:
    """What is wrong with a file of weights, without torch's advice to load it unsafely."""
    if (refused := re.search(r"GLOBAL (\S+)", str(error))) is not None:
        return (
            f"holds a Python object beside tensors ({refused.group(1)}), so it was not loaded: "
            "such files can run code; save the network's state_dict alone"
        )
    kind, said = type(error).__name__, ""
    if not isinstance(error, pickle.UnpicklingError):
        said = ": " + " ".join(str(error).split(". ")[0].split())
    return f"damaged, or not a file of weights ({kind}{said})"
