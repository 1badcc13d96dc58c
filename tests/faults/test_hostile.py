"""Files that somebody made on purpose: refused in one line, quickly, and without their harm."""

import gzip
import hashlib
import io
import json
import os
import pickle
import resource
import struct
import tarfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from hard_fast.checkpoint import Checkpointer
from hard_fast.data import prepare
from hard_fast.data.npz import NpzConfig, read_npz
from hard_fast.data.readers import read_idx
from hard_fast.data.sources import list_shards
from hard_fast.evals.suites.stored import open_images
from hard_fast.models.weights import load_weights
from hard_fast.runtime.configfile import dump
from hard_fast.train import main
from tests.faults.runs import RUN

CPU = torch.device("cpu")


class Payload:
    """What a pickle runs when it is read without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.fixture(scope="module")
def bomb() -> bytes:
    """A zip of five small files that claims that each has almost 4 GiB."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("images.npy", "labels.npy", "x/data.pkl", "x/data/0", "x/version"):
            archive.writestr(name, bytes(10**6))
    zipped = bytearray(buffer.getvalue())
    # Readers believe the directory at the end.
    place = zipped.find(b"PK\1\2")
    while place >= 0:
        zipped[place + 24 : place + 28] = struct.pack("<I", 0xFFFFFFF0)
        place = zipped.find(b"PK\1\2", place + 4)
    return bytes(zipped)


@pytest.fixture
def thrifty() -> Iterator[None]:
    """What happens meanwhile takes little time and memory."""
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert time.monotonic() - start < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 * 1024


def huge_safetensors() -> bytes:
    header = {"weight": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 2**62]}}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(64)


def huge_npy() -> bytes:
    buffer = io.BytesIO()
    shape = {"descr": "|u1", "fortran_order": False, "shape": (2**40, 4, 4, 3)}
    np.lib.format.write_array_header_1_0(buffer, shape)
    return buffer.getvalue() + bytes(100)


def test_pickles_are_not_run(tmp_path, faults, thrifty):
    flag = tmp_path / "flag"
    for suffix, save in ((".pth", torch.save), (".pt", torch.save), (".bin", _save_pickle)):
        with faults.tried("hostile weights, pickle"):
            path = tmp_path / f"net{suffix}"
            save({"weight": Payload(flag)}, path)
            with pytest.raises(ValueError, match=rf"^{path}: [^\n]*$"):
                load_weights(nn.Linear(1, 1), path)
            assert not flag.exists()
    with faults.tried("hostile checkpoint, pickle"):
        checkpointer = Checkpointer(tmp_path / "run")
        checkpointer.save(1, {"net": nn.Linear(1, 1)})
        _replace(tmp_path / "run", (tmp_path / "net.pt").read_bytes())
        with pytest.raises(ValueError, match=r"step_000000001.pt: holds a Python object"):
            checkpointer.load(1, {"net": nn.Linear(1, 1)}, CPU)
        assert not flag.exists()
    with faults.tried("hostile arrays, pickle"):
        np.savez(tmp_path / "a.npz", images=np.array([Payload(flag)]), labels=np.zeros(1))
        with pytest.raises(ValueError, match=r"a.npz: damaged, or no plain arrays"):
            read_npz(NpzConfig(root=str(tmp_path), train="a.npz"))
        assert not flag.exists()


def _save_pickle(tree: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(tree))


def _replace(folder: Path, payload: bytes) -> None:
    """Put something else into a checkpoint, with a note that vouches for it."""
    (folder / "step_000000001.pt").write_bytes(payload)
    note = {"step": 1, "sha256": hashlib.sha256(payload).hexdigest()}
    (folder / "step_000000001.json").write_text(json.dumps(note))


def test_zip_bombs_and_huge_shapes(tmp_path, bomb, faults, thrifty):
    for name in ("net.pt", "net.pth"):
        with faults.tried("hostile weights, zip bomb"):
            (tmp_path / name).write_bytes(bomb)
            with pytest.raises(ValueError, match=rf"{name}: .* claim to unpack to 21,"):
                load_weights(nn.Linear(1, 1), tmp_path / name)
    with faults.tried("hostile checkpoint, zip bomb"):
        (tmp_path / "run").mkdir()
        _replace(tmp_path / "run", bomb)
        with pytest.raises(ValueError, match="claim to unpack to 21,"):
            Checkpointer(tmp_path / "run").load(1, {}, CPU)
    with faults.tried("hostile arrays, zip bomb"):
        (tmp_path / "a.npz").write_bytes(bomb)
        with pytest.raises(ValueError, match=r"a.npz: .* claim to unpack to 21,"):
            read_npz(NpzConfig(root=str(tmp_path), train="a.npz"))
    with faults.tried("hostile arrays, gzip bomb"):
        header = b"\0\0\x08\3" + struct.pack(">3I", 1000, 28, 28)
        with gzip.open(tmp_path / "a.gz", "wb", compresslevel=1) as file:
            file.write(header)
            for _ in range(600):
                file.write(bytes(10**6))
        with pytest.raises(ValueError, match="a.gz: trailing bytes"):
            read_idx(tmp_path / "a.gz", 3)
    with faults.tried("hostile arrays, huge shape"):
        header = b"\0\0\x08\3" + struct.pack(">3I", 2**31, 2**20, 28)
        (tmp_path / "b.gz").write_bytes(gzip.compress(header + bytes(100)))
        with pytest.raises(ValueError, match="b.gz: .* gzip cannot pack so much"):
            read_idx(tmp_path / "b.gz", 3)
    with faults.tried("hostile weights, huge shape"):
        (tmp_path / "net.safetensors").write_bytes(huge_safetensors())
        with pytest.raises(ValueError, match=r"net.safetensors: damaged[^\n]*$"):
            load_weights(nn.Linear(1, 1), tmp_path / "net.safetensors")
    with faults.tried("hostile arrays, huge shape"):
        (tmp_path / "a.npy").write_bytes(huge_npy())
        with pytest.raises(ValueError, match=r"a.npy: truncated[^\n]*$"):
            open_images(tmp_path / "a.npy", (4, 4, 3))
    with faults.tried("hostile arrays, huge shape"):
        with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
            archive.writestr("images.npy", huge_npy())
            archive.writestr("labels.npy", huge_npy())
        with pytest.raises(ValueError, match=r"b.npz: damaged, or no plain arrays[^\n]*$"):
            read_npz(NpzConfig(root=str(tmp_path), train="b.npz"))


OUTSIDE = ("../../outside.jpg", "/tmp/outside-of-a-tar.jpg", "a/../../../outside.jpg")


def test_names_in_a_tar_lead_nowhere(tmp_path, faults):
    place = tmp_path / "a" / "b"
    place.mkdir(parents=True)
    with tarfile.open(place / "0.tar", "w") as tar:
        for name in OUTSIDE:
            for suffix, payload in ((".jpg", b"picture"), (".cls", b"0")):
                member = tarfile.TarInfo(name.removesuffix(".jpg") + suffix)
                member.size = len(payload)
                tar.addfile(member, io.BytesIO(payload))
    with faults.tried("hostile tar, names that lead outside"):
        listing = list_shards([str(place / "0.tar")], "data.root")
        assert len(listing.names) == len(OUTSIDE) and set(listing.samples.files) == {
            str(place / "0.tar")
        }
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert all(path.parent == place for path in files)
    with faults.tried("hostile archive, names that lead outside"):
        packed = place / "0.tar"
        md5 = hashlib.md5(packed.read_bytes(), usedforsecurity=False).hexdigest()
        archive = prepare.Archive("0.tar", md5, (), {"outside.jpg": "0" * 32})
        with pytest.raises(prepare.PrepareError, match="cannot be unpacked"):
            prepare.prepare(prepare.Source((archive,), ("",)), place)
        assert {p for p in tmp_path.rglob("*") if p.is_file()} == set(files)
        assert not Path(OUTSIDE[1]).exists()


@pytest.mark.slow
def test_names_of_classes_are_no_markup(tmp_path, faults):
    evil = "<script>alert('x')<&>\N{SNOWMAN}"
    for part in ("train", "val"):
        for i, name in enumerate(
            (evil.replace("/", ""), "..dots", '"><img src=x onerror=alert(1)>')
        ):
            folder = tmp_path / "pictures" / part / name.lstrip(".").replace("/", "")
            folder.mkdir(parents=True)
            for number in range(6):
                noise = np.random.default_rng(i + number).integers(0, 256, (20, 20, 3), np.uint8)
                Image.fromarray(noise).save(folder / f"{number}.jpg")
    pictures = {"kind": "pictures", "root": str(tmp_path / "pictures"), "size": 16, "threads": 1}
    train = {**RUN["train"], "steps": 4, "batch_size": 8}
    tree = {**RUN, "data": {**pictures, "val_share": 0.0}, "train": train}
    tree["run_dir"] = str(tmp_path / "run <b>bold</b>")
    (tmp_path / "a.toml").write_text(dump(tree))
    with faults.tried("hostile names of classes and folders"):
        assert main(["--config", str(tmp_path / "a.toml")]) == 0
        page = (Path(tree["run_dir"]) / "report.html").read_text()
        assert "<script" not in page and "<img src=x" not in page and "<b>bold" not in page
        assert "&lt;b&gt;bold" in page
