"""Whether a picture can be decoded by what the loader decodes with, and what is odd about it."""

import io
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import NamedTuple

import numpy as np
from PIL import Image

# What a payload is decoded with, and why that failed; None if it did not.
Decoder = Callable[[bytes], str | None]

_ORIENTATION = 0x0112
_PNG = b"\x89PNG\r\n\x1a\n"


class Place(NamedTuple):
    """Where the bytes of a picture lie."""

    path: str
    offset: int
    num_bytes: int


class Finding(NamedTuple):
    """What was found out about a picture; `reason` says why it is unreadable, None = it is not."""

    reason: str | None
    odd: tuple[str, ...] = ()


def probe(place: Place, decode: Decoder) -> Finding:
    """Read and decode one picture whole."""
    if not place.num_bytes:
        return Finding("empty file" if os.path.exists(place.path) else "link to nowhere")
    try:
        with open(place.path, "rb") as file:
            file.seek(place.offset)
            payload = file.read(place.num_bytes)
    except OSError as error:
        return Finding(f"cannot be read ({error.strerror})")
    reason = decode(payload)
    return Finding(None, _oddities(payload)) if reason is None else Finding(reason)


def build_decoder() -> tuple[str, Decoder]:
    """The name of the decoder, DALI's or else Pillow's, and the decoder."""
    # Whatever the size, the loader decodes it.
    Image.MAX_IMAGE_PIXELS = None
    try:
        from nvidia import dali
        from nvidia.dali import fn, pipeline_def
    except (ImportError, OSError) as error:
        return f"Pillow {Image.__version__}, for want of DALI ({error})", _pillow_reason

    @pipeline_def(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
    def decoding() -> object:
        encoded = fn.external_source(name="encoded", dtype=dali.types.UINT8, ndim=1)
        return fn.decoders.image(
            encoded, device="cpu", output_type=dali.types.RGB, adjust_orientation=False
        )

    pipeline = decoding()

    def decode(payload: bytes) -> str | None:
        nonlocal pipeline
        try:
            pipeline.feed_input("encoded", [np.frombuffer(payload, np.uint8)])
            pipeline.run()
        except RuntimeError as error:
            # After an error a pipeline is no longer valid; a new one costs milliseconds.
            pipeline = decoding()
            said = str(error).partition("encountered:")[2].split()
            return _pillow_reason(payload) or f"not decoded by DALI ({' '.join(said[:6])})"
        return None

    return f"DALI {dali.__version__}", decode


def answer(pipe: Connection) -> None:
    """Probe the pictures of each list that comes through the pipe, until it is closed.

    What goes back: first the decoder's name, then one Finding after the other, so that after a
    crash the other side knows at which picture it happened.
    """
    # The parent ends this process; a Ctrl-C reaches both.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Decoders write warnings past Python; they would tear the progress bar.
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 2)
    name, decode = build_decoder()
    pipe.send(name)
    while True:
        try:
            places = pipe.recv()
        except EOFError:
            return
        for place in places:
            pipe.send(probe(place, decode))


def _pillow_reason(payload: bytes) -> str | None:
    """Why Pillow cannot decode it, in one line; None if it can."""
    try:
        with Image.open(io.BytesIO(payload)) as picture:
            picture.convert("RGB")
    except Image.UnidentifiedImageError:
        return f"no picture (starts with {payload[:16]!r})"
    except Exception as error:  # Its plugins raise almost anything on damaged files.
        return " ".join(str(error).split()) or type(error).__name__
    return None


def _oddities(payload: bytes) -> tuple[str, ...]:
    """What a person may want to know of a picture that decodes."""
    odd = []
    try:
        with Image.open(io.BytesIO(payload)) as picture:
            mode, orientation = picture.mode, picture.getexif().get(_ORIENTATION)
    except Exception:  # DALI decodes it; that Pillow cannot even look at it is no fault.
        return ()
    if mode in ("1", "L", "LA") or mode.startswith("I"):
        odd.append("grey")
    if mode in ("CMYK", "YCCK"):
        odd.append("CMYK")
    if mode in ("P", "PA", "LA", "RGBA"):
        odd.append("palette or alpha")
    # Pillow opens a 16-bit colour PNG as 8-bit: the depth is the 25th byte of the file.
    if mode.startswith("I;16") or (payload.startswith(_PNG) and payload[24] == 16):
        odd.append("16 bits")
    if orientation not in (None, 1):
        odd.append("EXIF orientation")
    return tuple(odd)
