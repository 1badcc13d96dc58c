"""Bytes that were changed as a bad disk, a broken download or a bad person changes them."""

import random
import struct

_WORDS = (
    b"\0",
    b"\xff",
    b"-",
    b"9" * 20,
    b"(" * 200,
    b"{}",
    b"nan",
    b"'",
    b"\n",
    b"PK\5\6",
    b"\x80",
)
_NUMBERS = (0, 1, 2**7, 2**15, 2**31 - 1, 2**31, 2**32 - 1)


def damage(chance: random.Random, payload: bytes) -> bytes:
    """The payload with one to four changes."""
    changed = bytearray(payload)
    for _ in range(chance.choice((1, 1, 2, 4))):
        if not changed:
            break
        # Headers are at the start and, of a zip, at the end.
        size = len(changed)
        place = chance.choice((chance.randrange(size), chance.randrange(min(size, 128))))
        place = chance.choice((place, place, max(0, size - 1 - chance.randrange(256))))
        match chance.randrange(8):
            case 0:
                changed[place] ^= 1 << chance.randrange(8)
            case 1:
                changed[place] = chance.randrange(256)
            case 2:
                del changed[place:]
            case 3:
                del changed[place : place + chance.randrange(1, 40)]
            case 4:
                changed[place:place] = chance.choice(_WORDS)
            case 5:
                word = chance.choice(_WORDS)
                changed[place : place + len(word)] = word
            case 6:
                form = chance.choice(("<I", ">I", "<H", "<Q"))
                number = chance.choice(_NUMBERS) % 2 ** (8 * struct.calcsize(form))
                changed[place : place + struct.calcsize(form)] = struct.pack(form, number)
            case 7:
                start = chance.randrange(size)
                changed[place:place] = changed[start : start + chance.randrange(1, 600)]
    return bytes(changed)


def with_checksums(tar: bytes) -> bytes:
    """A tar whose headers are believed: the checksum of each block that looks like one is right."""
    mended = bytearray(tar)
    for start in range(0, len(mended) - 511, 512):
        if mended[start + 257 : start + 262] == b"ustar":
            mended[start + 148 : start + 156] = b" " * 8
            mended[start + 148 : start + 156] = b"%06o\0 " % sum(mended[start : start + 512])
    return bytes(mended)
