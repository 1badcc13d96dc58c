"""What WebDataset tar shards hold: where each picture lies in its shard, and its class.

A shard is read header by header, over the data, once; the result is kept beside it as
NAME.tar.index.json, which serves until the shard's size or time of change differs.
"""

import hashlib
import json
import logging
import math
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from hard_fast.data.folders import PICTURE_SUFFIXES
from hard_fast.data.tar import Member, read_members
from hard_fast.runtime.files import write_atomic

_log = logging.getLogger(__name__)

_RANGE = re.compile(r"([0-9]{1,18})\.\.([0-9]{1,18})")
_NUM_THREADS = 8
# Raise it whenever the meaning of an index changes, so that older ones are made anew.
_VERSION = 2
# Names that one pattern may stand for.
_MOST_NAMES = 1_000_000


class ShardIndex(NamedTuple):
    """The pictures of one shard, in the order of the tar.

    names:     of the members that hold the pictures.
    offset:    of the encoded pictures in the tar, bytes.
    num_bytes: of the encoded pictures.
    label:     the number in the .cls entry beside each.
    no_picture, no_label: how many keys were left out for want of one.
    is_cut:    whether the tar ends, or is damaged, before its end mark.
    """

    names: list[str]
    offset: list[int]
    num_bytes: list[int]
    label: list[int]
    no_picture: int
    no_label: int
    is_cut: bool


def expand_braces(pattern: str) -> list[str]:
    """What a shell makes of {000..146} and {a,b}, several to a pattern, without looking at files.

    A range keeps the width of a start or an end that is padded with zeros.

    Raises:  ValueError if they would be more than any set has.
    """
    sizes = (_num_choices(group) for group in re.findall(r"\{([^{}]*)\}", pattern))
    if math.prod(sizes) > _MOST_NAMES:
        raise ValueError(f"{pattern!r}: stands for more than {_MOST_NAMES:,} names; name fewer")
    for group in re.finditer(r"\{([^{}]*)\}", pattern):
        choices = _choices(group[1])
        if choices is not None:
            before, after = pattern[: group.start()], pattern[group.end() :]
            expanded = [name for c in choices for name in expand_braces(before + c + after)]
            # Nested groups come out more than once.
            return list(dict.fromkeys(expanded))
    return [pattern]


def find_shards(patterns: Sequence[str], key: str) -> list[Path]:
    """The shards that a list of paths and brace patterns names, in its order.

    Raises:  ValueError naming the key if one does not exist or is named twice.
    """
    names = [name for pattern in patterns for name in expand_braces(pattern)]
    paths = [Path(name).expanduser() for name in names]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise ValueError(
            f"{key}: {missing[0]}: no such file ({len(missing)} of {len(paths)} shards are "
            f"missing); correct {key}, for example DIR/train-{{000..146}}.tar"
        )
    if not paths:
        raise ValueError(f"{key} = []: names no shards; give paths or a brace pattern")
    for path, count in Counter(paths).items():
        if count > 1:
            raise ValueError(f"{key}: {path} is named {count} times; name each shard once")
    return paths


def read_indices(paths: Sequence[Path]) -> list[ShardIndex]:
    """The index of each shard, with one warning for each shard that is not whole.

    Raises:  ValueError if a file is no plain tar.
    """
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        indices = list(pool.map(read_index, paths))
    for path, index in zip(paths, indices, strict=True):
        if index.is_cut:
            _log.warning(
                "%s: cut short or damaged; the %d pictures before that are used",
                path,
                len(index.names),
            )
        if index.no_picture or index.no_label:
            _log.warning(
                "%s: left out: %d keys without a picture, %d without a number in a .cls entry",
                path,
                index.no_picture,
                index.no_label,
            )
    return indices


def read_index(path: Path) -> ShardIndex:
    """The index of one shard: the one kept beside it if it still fits, else made and kept.

    Raises:  ValueError if the file is no plain tar.
    """
    kept = path.with_name(f"{path.name}.index.json")
    try:
        status = path.stat()
        stamp = [_VERSION, status.st_size, status.st_mtime_ns]
        index = _load(kept, stamp)
        if index is None:
            index = _build(path)
            _keep(kept, {"stamp": stamp, "sha256": _checksum(index), **index._asdict()})
        return index
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None


def _build(path: Path) -> ShardIndex:
    """The index of a shard: consecutive members of one key make one sample, as in webdataset."""
    samples: list[dict[str, Member]] = []
    key, is_cut = None, False
    for member in read_members(path):
        if member is None:
            is_cut = True
            break
        folder, slash, name = member.name.rpartition("/")
        base, dot, suffix = name.partition(".")
        if not base or not dot:
            continue
        suffix = suffix.lower()
        if key != (folder, slash, base) or suffix in samples[-1]:
            key = (folder, slash, base)
            samples.append({})
        samples[-1][suffix] = member
    index = ShardIndex([], [], [], [], 0, 0, is_cut)
    no_picture = no_label = 0
    for entries in samples:
        picture = next((entries[s] for s in PICTURE_SUFFIXES if s in entries), None)
        label = _label(entries["cls"]) if "cls" in entries else None
        no_picture += picture is None
        no_label += picture is not None and label is None
        if picture is not None and label is not None:
            index.names.append(picture.name)
            index.offset.append(picture.offset)
            index.num_bytes.append(picture.num_bytes)
            index.label.append(label)
    return index._replace(no_picture=no_picture, no_label=no_label)


def _label(member: Member) -> int | None:
    """The number in a .cls entry, if it is one."""
    text = member.start.strip()
    return int(text) if re.fullmatch(rb"-?\d{1,9}", text) else None


def _load(path: Path, stamp: list[int]) -> ShardIndex | None:
    """The kept index, if it is whole and was made from the shard as it is now."""
    try:
        tree = json.loads(path.read_bytes())
        kept_stamp, checksum = tree.pop("stamp"), tree.pop("sha256")
        index = ShardIndex(**tree)
        return index if (kept_stamp, checksum) == (stamp, _checksum(index)) else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _checksum(index: ShardIndex) -> str:
    return hashlib.sha256(json.dumps(index).encode()).hexdigest()


def _keep(path: Path, tree: dict) -> None:
    try:
        # Surrogates, which stand for bytes that are no UTF-8, survive as escapes.
        write_atomic(path, json.dumps(tree))
    except OSError as error:
        _log.info("%s: the index is not kept (%s)", path, error.strerror)


def _num_choices(group: str) -> int:
    """How many names one brace group stands for, without making them."""
    found = _RANGE.fullmatch(group)
    return abs(int(found[1]) - int(found[2])) + 1 if found else group.count(",") + 1


def _choices(group: str) -> list[str] | None:
    """What one brace group stands for; None if it is plain text."""
    if "," in group:
        return group.split(",")
    found = _RANGE.fullmatch(group)
    if found is None:
        return None
    first, last = int(found[1]), int(found[2])
    is_padded = any(len(end) > 1 and end[0] == "0" for end in found.groups())
    width = max(map(len, found.groups())) if is_padded else 1
    step = 1 if first <= last else -1
    return [f"{number:0{width}d}" for number in range(first, last + step, step)]
