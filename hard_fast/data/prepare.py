"""Fetch MNIST or CIFAR-10 from their public homes; find the unreadable files of a set of pictures.

    python -m hard_fast.data.prepare {mnist,cifar10} --root DIR
    python -m hard_fast.data.prepare check ROOT [ROOT ...] [--workers N]

Nothing is kept that does not have the published MD5. Files that verify are left alone, so the
command can be run again, also to unpack archives that were fetched by hand.
"""

import argparse
import gzip
import hashlib
import http.client
import shutil
import sys
import tarfile
import tempfile
import urllib.request
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from hard_fast.data.check import check
from hard_fast.data.readers import CIFAR10_FOLDERS, MNIST_FOLDERS, find_file
from hard_fast.runtime.files import write_atomic

_TIMEOUT_S = 30.0


class Archive(NamedTuple):
    """A file to fetch and what is in it.

    md5:   of the archive itself.
    urls:  the same file in several places, tried in turn.
    files: MD5 by name of what it unpacks to.
    """

    name: str
    md5: str
    urls: tuple[str, ...]
    files: Mapping[str, str]


class Source(NamedTuple):
    """A data set: its archives and the folders below the root in which the reader looks.

    Files that are not there yet go to the last of the folders.
    """

    archives: tuple[Archive, ...]
    folders: tuple[str, ...]


class PrepareError(Exception):
    """Something outside this program is in the way. Its message is ready for the person."""


def _mnist(name: str, md5: str, packed_md5: str) -> Archive:
    mirrors = (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    )
    packed = f"{name}.gz"
    return Archive(packed, packed_md5, tuple(m + packed for m in mirrors), {name: md5})


SOURCES: dict[str, Source] = {
    "mnist": Source(
        archives=(
            _mnist(
                "train-images-idx3-ubyte",
                "6bbc9ace898e44ae57da46a324031adb",
                "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            ),
            _mnist(
                "train-labels-idx1-ubyte",
                "a25bea736e30d166cdddb491f175f624",
                "d53e105ee54ea40749a09fcbcd1e9432",
            ),
            _mnist(
                "t10k-images-idx3-ubyte",
                "2646ac647ad5339dbf082846283269ea",
                "9fb629c4189551a2d022fa330f9573f3",
            ),
            _mnist(
                "t10k-labels-idx1-ubyte",
                "27ae3e4e09519cfbb04c329615203637",
                "ec29112dd5afa0611ce80d1b7f02629c",
            ),
        ),
        folders=MNIST_FOLDERS,
    ),
    "cifar10": Source(
        archives=(
            Archive(
                "cifar-10-binary.tar.gz",
                "c32a1d4ab5d03f1284b67883e8d87530",
                ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
                {
                    "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
                    "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
                    "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
                    "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
                    "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
                    "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
                },
            ),
        ),
        folders=CIFAR10_FOLDERS,
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 once every file is in place, 1 with a plain line on stderr otherwise.

    That of `check` is 1 as well if some pictures cannot be decoded, and 130 after a Ctrl-C.
    """
    chosen = _parser().parse_args(arguments)
    if chosen.name == "check":
        return check(chosen.root, chosen.workers)
    root, source = chosen.root.expanduser(), SOURCES[chosen.name]
    try:
        prepare(source, root)
    except (PrepareError, OSError) as error:
        wanted = ", ".join(f"{a.urls[0]} (MD5 {a.md5})" for a in source.archives)
        print(
            f"{chosen.name} is not ready: {error}. By hand: download {wanted} into {root} and "
            "run this command again, which needs no network then.",
            file=sys.stderr,
        )
        return 1
    print(f"{chosen.name} is ready: set data.root to {root}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m hard_fast.data.prepare",
        description="Get a data set ready to learn from.",
    )
    commands = parser.add_subparsers(dest="name", required=True)
    for name in sorted(SOURCES):
        what = f"fetch {name} from its public home, verify it, and unpack it"
        command = commands.add_parser(name, help=what, description=what)
        command.add_argument("--root", required=True, type=Path, help="folder to use as data.root")
    what = "decode every picture once and list those that cannot be; the loader leaves them out"
    command = commands.add_parser("check", help=what, description=what)
    command.add_argument(
        "root", nargs="+", metavar="ROOT", help="folder of train/ and val/, or shards, as data.root"
    )
    command.add_argument("--workers", type=_positive, help="decoding processes; default: all cores")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1")
    return number


def prepare(source: Source, root: Path) -> None:
    """Put every file of a data set where the reader finds it first, verified.

    Raises:  PrepareError if an archive cannot be fetched or holds something else.
    """
    root.mkdir(parents=True, exist_ok=True)
    for archive in source.archives:
        _put(archive, source.folders, root)


def _put(archive: Archive, folders: Sequence[str], root: Path) -> None:
    places = {name: _place(name, archive, folders, root) for name in archive.files}
    if all(_is_verified(places[name], md5) for name, md5 in archive.files.items()):
        print(f"{', '.join(archive.files)}: verified, left alone")
        return
    with tempfile.TemporaryDirectory(dir=root, prefix=".prepare.") as folder:
        packed = find_file(root, folders, (archive.name,))
        if packed is not None and (found := _md5(packed)) != archive.md5:
            print(f"{packed}: not used, its MD5 is {found}, expected {archive.md5}")
            packed = None
        packed = packed or _download(archive, Path(folder))
        payloads = _unpack(archive, packed, Path(folder))
    for name, payload in payloads.items():
        if _is_verified(places[name], archive.files[name]):
            continue
        place = places[name].with_name(name)
        if place.exists():
            print(f"{place}: not the published file, kept as {name}.old")
            place.replace(place.with_name(f"{name}.old"))
        write_atomic(place, payload)
        print(f"{place}: unpacked and verified")


def _place(name: str, archive: Archive, folders: Sequence[str], root: Path) -> Path:
    """The file that the reader would open, or where it goes if there is none."""
    names = (name, f"{name}.gz") if archive.name == f"{name}.gz" else (name,)
    return find_file(root, folders, names) or root / folders[-1] / name


def _is_verified(path: Path, md5: str) -> bool:
    """Whether the file has the published contents, however it was gzipped."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return _digest(file) == md5
    except (OSError, EOFError, zlib.error):
        return False


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return _digest(file)


def _digest(file: BinaryIO) -> str:
    return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _download(archive: Archive, folder: Path) -> Path:
    """The verified archive, streamed into the folder from the first place that has it."""
    target = folder / archive.name
    reasons = []
    for url in archive.urls:
        print(f"fetching {url}", flush=True)
        try:
            with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as reply, target.open("wb") as out:
                shutil.copyfileobj(reply, out, 1 << 20)
        except (OSError, http.client.HTTPException) as error:
            reasons.append(f"{url}: {error}")
            continue
        if (found := _md5(target)) == archive.md5:
            return target
        reasons.append(f"{url}: MD5 is {found}, expected {archive.md5}")
    raise PrepareError(f"{archive.name} could not be fetched ({'; '.join(reasons)})")


def _unpack(archive: Archive, packed: Path, folder: Path) -> dict[str, bytes]:
    """The contents of the archive's files by name, each with the MD5 it should have."""
    payloads: dict[str, bytes] = {}
    try:
        if tarfile.is_tarfile(packed):
            with tarfile.open(packed) as tar:
                # Refuses members that would land outside the folder.
                tar.extractall(folder, filter="data")
            found = {path.name: path for path in folder.rglob("*") if path.is_file()}
            payloads = {name: found[name].read_bytes() for name in archive.files if name in found}
        else:
            (name,) = archive.files
            payloads = {name: gzip.decompress(packed.read_bytes())}
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise PrepareError(f"{packed} cannot be unpacked ({error})") from None
    for name, wanted in archive.files.items():
        if name not in payloads:
            raise PrepareError(f"{packed} does not hold {name}")
        if hashlib.md5(payloads[name], usedforsecurity=False).hexdigest() != wanted:
            raise PrepareError(f"{packed}: its {name} is not the published file")
    return payloads


if __name__ == "__main__":
    raise SystemExit(main())
