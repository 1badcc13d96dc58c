"""The scan behind `python -m hard_fast.data.prepare check ROOT`: decode every picture once.

What cannot be decoded is listed in unreadable.txt, and the loader leaves it out from then on.
"""

import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from hard_fast.data.probe import Place
from hard_fast.data.scan import CHUNK, Key, Scan
from hard_fast.data.shards import find_shards, read_index
from hard_fast.data.sources import Listing, find_folder, list_parts, list_shards
from hard_fast.data.unreadable import LIST_NAME, read_unreadable, write_unreadable

_ODDITIES = {
    "grey": "decoded to RGB",
    "CMYK": "decoded to RGB",
    "palette or alpha": "decoded to RGB",
    "16 bits": "decoded to 8",
    "EXIF orientation": "not applied, as in timm",
}
_NUM_SHOWN = 20


class Target(NamedTuple):
    """A folder that keeps a list of unreadable pictures, and what is scanned for it.

    listings: parts of a data set whose names are relative to the folder.
    heads:    first parts of those names: train and val, or the shards.
    cut:      shards that are cut short.
    """

    folder: Path
    listings: list[Listing]
    heads: list[str]
    cut: list[Path]


def check(roots: Sequence[str], num_workers: int | None = None) -> int:
    """Scan folders or shards and write their lists; the exit code.

    Returns: 0 = every picture can be decoded, 1 = some cannot and are listed now, or the set itself
             is not as the loader wants it (one line on stderr), 130 = stopped by Ctrl-C.
    """
    try:
        targets = find_targets(roots)
        num = sum(len(listing.names) for target in targets for listing in target.listings)
        num_workers = num_workers or len(os.sched_getaffinity(0))
        scan = Scan(_places(targets), min(num_workers, -(-num // CHUNK)))
        unreadable, odd = _run(scan, num)
        _show(scan.decoder, targets, unreadable, odd)
        command = f"python -m hard_fast.data.prepare check {shlex.join(roots)}"
        for target in targets:
            _write(target, unreadable, command)
    except KeyboardInterrupt:
        print("stopped: no list was written", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"check is not done: {error}", file=sys.stderr)
        return 1
    return 1 if unreadable or any(target.cut for target in targets) else 0


def find_targets(roots: Sequence[str]) -> list[Target]:
    """What to scan: each root is a folder of train/ and val/, a shard, or a pattern of shards.

    Raises:  ValueError if a root, or what is in it, is not as the loader wants it.
    """
    targets, patterns = [], []
    for root in roots:
        folder = find_folder(root, "ROOT")
        if folder is None:
            patterns.append(root)
            continue
        _, train, test = list_parts(folder)
        listings = [train] if test is None else [train, test]
        targets.append(Target(folder, listings, ["train", "val"], []))
    by_folder: dict[Path, list[Path]] = {}
    for path in find_shards(patterns, "ROOT") if patterns else []:
        by_folder.setdefault(path.parent, []).append(path)
    for folder, paths in by_folder.items():
        listing = list_shards([str(path) for path in paths], "ROOT")
        cut = [path for path in paths if read_index(path).is_cut]
        targets.append(Target(folder, [listing], [path.name for path in paths], cut))
    return targets


def _places(targets: list[Target]) -> Iterator[tuple[Key, Place]]:
    """Where each picture is, by its folder and name."""
    for target in targets:
        for samples, names, _ in target.listings:
            columns = zip(samples.file_of, samples.offset, samples.num_bytes, strict=True)
            for name, (file, offset, num_bytes) in zip(names, columns, strict=True):
                place = Place(samples.files[file], int(offset), int(num_bytes))
                yield (target.folder, name), place


def _run(scan: Scan, num: int) -> tuple[dict[Key, str], Counter[str]]:
    """Why each unreadable picture is that, and how many others are odd, by oddity."""
    unreadable: dict[Key, str] = {}
    odd: Counter[str] = Counter()
    progress = Progress(
        TextColumn("check"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[bad]} unreadable"),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )
    with progress, closing(scan.findings()) as findings:
        task = progress.add_task("check", total=num, bad=0)
        for key, finding in findings:
            if finding.reason is not None:
                unreadable[key] = finding.reason
            odd.update(finding.odd)
            progress.update(task, advance=1, bad=len(unreadable))
    return unreadable, odd


def _show(
    decoder: str, targets: list[Target], unreadable: dict[Key, str], odd: Counter[str]
) -> None:
    num = sum(len(listing.names) for target in targets for listing in target.listings)
    table = Table(title=f"{num} pictures, decoded by {escape(decoder)}")
    table.add_column("found")
    table.add_column("pictures", justify="right")
    table.add_column("in training and evaluation")
    for oddity, meaning in _ODDITIES.items():
        table.add_row(oddity, str(odd[oddity]), meaning)
    table.add_row("unreadable", str(len(unreadable)), "left out")
    Console().print(table)
    for key in sorted(unreadable)[:_NUM_SHOWN]:
        # A name may hold bytes that no terminal takes.
        line = f"{key[0]}/{key[1]}: {unreadable[key]}"
        print(line.encode("utf-8", "backslashreplace").decode())
    if len(unreadable) > _NUM_SHOWN:
        print(f"and {len(unreadable) - _NUM_SHOWN} more")
    for path in (path for target in targets for path in target.cut):
        print(f"{path}: cut short or damaged; fetch it again, for what came after that is lost")


def _write(target: Target, unreadable: dict[Key, str], command: str) -> None:
    """Write a folder's list, with what an older one says of shards that were not scanned now."""
    before = read_unreadable(target.folder)
    rows = {name: why for name, why in before.items() if name.split("/")[0] not in target.heads}
    rows |= {name: why for (folder, name), why in unreadable.items() if folder == target.folder}
    if rows != before:
        # Otherwise left alone: the folder may be read-only.
        write_unreadable(target.folder, rows, command)
    if rows:
        print(f"{target.folder / LIST_NAME}: {len(rows)} unreadable pictures, left out from now on")
