"""The members of a plain tar, found by reading its headers and seeking over the data."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_BLOCK = 512
# Links, devices and folders: whatever their header says, no data follow.
_NO_DATA = b"123456"
# Of a long name or a pax header; real ones have some hundred.
_MOST_BYTES = 1 << 20
_LENGTH = re.compile(rb"\d{1,9} ")


class Member(NamedTuple):
    """A regular file in a tar; `start` is its first bytes, at most 512 of them."""

    name: str
    offset: int
    num_bytes: int
    start: bytes


class _CutError(Exception):
    """The tar ends, or is damaged, before its end mark."""


def read_members(path: Path) -> Iterator[Member | None]:
    """The regular files of a tar, in order; then None if it is cut short or damaged.

    Raises:  ValueError if it does not start as a plain tar does.
    Source:  POSIX.1-2001 pax Interchange Format (ustar and pax headers); GNU tar manual,
             "Basic Tar Format" (types L and K, sizes in base 256).
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        yield from _members(handle, os.fstat(handle).st_size, path)
    except _CutError:
        yield None
    finally:
        os.close(handle)


def _members(handle: int, num_total: int, path: Path) -> Iterator[Member]:
    position, name, size = 0, None, None
    while True:
        # The block after the header as well: it holds a whole .cls entry.
        blocks = os.pread(handle, 2 * _BLOCK, position)
        header = blocks[:_BLOCK]
        if not _is_header(header):
            if position == 0 and header.strip(b"\0"):
                raise ValueError(_not_a_tar(path, header))
            if len(header) == _BLOCK and not header.strip(b"\0"):
                return
            raise _CutError
        kind = header[156:157]
        is_extra = kind in b"xgLK"
        num_bytes = size if size is not None and not is_extra else _number(header[124:136])
        if kind in _NO_DATA:
            num_bytes = 0
        offset = position + _BLOCK
        if offset + num_bytes > num_total:
            raise _CutError
        if kind in b"xL":
            if num_bytes > _MOST_BYTES:
                raise _CutError
            payload = os.pread(handle, num_bytes, offset)
            if kind == b"L":
                name = _text(payload.rstrip(b"\0"))
            else:
                fields = _pax_fields(payload)
                name = fields["path"] if "path" in fields else name
                size = int(fields["size"]) if "size" in fields else size
        elif not is_extra:
            member_name = _header_name(header) if name is None else name
            if kind in b"0\x007" and not member_name.endswith("/"):
                start = blocks[_BLOCK : _BLOCK + min(num_bytes, _BLOCK)]
                yield Member(member_name, offset, num_bytes, start)
            name = size = None
        position = offset + -(-num_bytes // _BLOCK) * _BLOCK


def _is_header(header: bytes) -> bool:
    if len(header) < _BLOCK or not header.strip(b"\0"):
        return False
    digits = header[148:156].strip(b" \0")
    # The checksum is taken with its own field as eight spaces.
    total = sum(header) - sum(header[148:156]) + 8 * 32
    return digits.isdigit() and digits == b"%0*o" % (len(digits), total)


def _number(field: bytes) -> int:
    """A number of a header: octal digits or, where the first bit is set, base 256."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    # Not all that int() takes: a size below zero would lead back to the same header for ever.
    if not re.fullmatch(rb"[0-7]*", digits := field.strip(b" \0")):
        raise _CutError
    return int(digits or b"0", 8)


def _header_name(header: bytes) -> str:
    name = _text(header[:100].partition(b"\0")[0])
    # GNU's older format keeps other things where POSIX has the prefix.
    prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return f"{_text(prefix)}/{name}" if prefix else name


def _text(name: bytes) -> str:
    # Bytes that are no UTF-8 survive, as they do in Python's file names.
    return name.decode("utf-8", "surrogateescape")


def _pax_fields(payload: bytes) -> dict[str, str]:
    """The records "LENGTH key=value\\n" of a pax header; what is damaged raises _CutError."""
    fields, start, payload = {}, 0, payload.rstrip(b"\0")
    while start < len(payload):
        length = _LENGTH.match(payload, start)
        end = start + int(length[0]) if length else 0
        if not (length and length.end() <= end <= len(payload)):
            raise _CutError
        record, start = payload[length.end() : end - 1], end
        key, _, value = record.partition(b"=")
        fields[_text(key)] = _text(value)
    if "size" in fields and not re.fullmatch(r"[0-9]{1,18}", fields["size"]):
        raise _CutError
    return fields


def _not_a_tar(path: Path, header: bytes) -> str:
    if header.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        return f"{path}: a compressed tar; unpack it, since pictures are read at their offsets"
    return f"{path}: no tar (starts with {header[:8]!r}); fetch it again, or leave it out"
