import gzip
import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from hard_fast.data import prepare
from hard_fast.data.prepare import Archive, Source
from hard_fast.data.readers import CIFAR10_FOLDERS, MNIST_FOLDERS

CONTENT = b"sixteen tons of data"


def md5(payload: bytes) -> str:
    return hashlib.md5(payload).hexdigest()


def packed_tar(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, payload in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            tar.addfile(info, io.BytesIO(payload))
    return buffer.getvalue()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The folder that plays the part of the public servers."""
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


def serve(monkeypatch, home: Path, *urls: str) -> Archive:
    """A one-file "mnist" whose archive lies at home/data.gz; the archive."""
    payload = gzip.compress(CONTENT)
    (home / "data.gz").write_bytes(payload)
    places = urls or ((home / "data.gz").as_uri(),)
    archive = Archive("data.gz", md5(payload), places, {"data": md5(CONTENT)})
    monkeypatch.setitem(prepare.SOURCES, "mnist", Source((archive,), MNIST_FOLDERS))
    return archive


def serve_tar(monkeypatch, home: Path, members: dict[str, bytes]) -> Archive:
    payload = packed_tar(members)
    (home / "data.tar.gz").write_bytes(payload)
    files = {name: md5(CONTENT + name.encode()) for name in ("a.bin", "b.bin")}
    archive = Archive("data.tar.gz", md5(payload), ((home / "data.tar.gz").as_uri(),), files)
    monkeypatch.setitem(prepare.SOURCES, "cifar10", Source((archive,), CIFAR10_FOLDERS))
    return archive


def run(root: Path, name: str = "mnist") -> int:
    return prepare.main([name, "--root", str(root)])


def left_in(root: Path) -> list[str]:
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())


def test_a_gzip_is_fetched_verified_and_unpacked(monkeypatch, home, root, capsys):
    serve(monkeypatch, home)
    assert run(root) == 0
    assert (root / "mnist/raw/data").read_bytes() == CONTENT
    assert left_in(root) == ["mnist/raw/data"]
    assert f"set data.root to {root}" in capsys.readouterr().out


def test_a_tar_is_fetched_verified_and_unpacked(monkeypatch, home, root):
    members = {f"top/{n}": CONTENT + n.encode() for n in ("a.bin", "b.bin")}
    serve_tar(monkeypatch, home, {"top/readme.html": b"hello", **members})
    assert run(root, "cifar10") == 0
    folder = root / "cifar10/cifar-10-batches-bin"
    assert (folder / "b.bin").read_bytes() == CONTENT + b"b.bin"
    assert left_in(root) == [f"cifar10/cifar-10-batches-bin/{n}.bin" for n in "ab"]


@pytest.mark.parametrize("place", ["data", "raw/data", "MNIST/raw/data", "raw/data.gz"])
def test_verified_files_are_left_alone_wherever_they_are(monkeypatch, home, root, place, capsys):
    serve(monkeypatch, home, (home / "gone.gz").as_uri())
    path = root / place
    path.parent.mkdir(parents=True)
    # Packed anew, so the archive differs from the published one and its contents do not.
    path.write_bytes(gzip.compress(CONTENT, 1, mtime=1) if place.endswith("gz") else CONTENT)
    before = path.stat()
    assert run(root) == 0
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert left_in(root) == [place]
    assert "left alone" in capsys.readouterr().out


def test_the_next_mirror_is_tried(monkeypatch, home, root):
    (home / "bad.gz").write_bytes(b"an error page")
    urls = [(home / name).as_uri() for name in ("gone.gz", "bad.gz", "data.gz")]
    serve(monkeypatch, home, *urls)
    assert run(root) == 0
    assert (root / "mnist/raw/data").read_bytes() == CONTENT


@pytest.mark.parametrize("name", ["gone.gz", "bad.gz"])
def test_a_failed_download_says_what_to_do(monkeypatch, home, root, name, capsys):
    (home / "bad.gz").write_bytes(b"an error page")
    archive = serve(monkeypatch, home, (home / name).as_uri())
    assert run(root) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "data.gz could not be fetched" in said
    assert f"download {archive.urls[0]} (MD5 {archive.md5}) into {root}" in said
    assert ("MD5 is" in said) == (name == "bad.gz")
    assert left_in(root) == []


def test_an_archive_fetched_by_hand_needs_no_network(monkeypatch, home, root):
    members = {f"top/{n}": CONTENT + n.encode() for n in ("a.bin", "b.bin")}
    archive = serve_tar(monkeypatch, home, members)
    root.mkdir()
    (home / archive.name).rename(root / archive.name)
    assert run(root, "cifar10") == 0
    assert (root / "cifar10/cifar-10-batches-bin/a.bin").is_file()


def test_a_damaged_archive_fetched_by_hand_is_not_used(monkeypatch, home, root, capsys):
    serve(monkeypatch, home, (home / "gone.gz").as_uri())
    root.mkdir()
    (root / "data.gz").write_bytes(gzip.compress(CONTENT)[:-1])
    assert run(root) == 1
    assert f"{root / 'data.gz'}: not used, its MD5 is" in capsys.readouterr().out


def test_a_damaged_gzip_gives_way_to_the_file_itself(monkeypatch, home, root):
    serve(monkeypatch, home)
    (root / "raw").mkdir(parents=True)
    (root / "raw/data.gz").write_bytes(gzip.compress(CONTENT)[:-9])
    assert run(root) == 0
    assert (root / "raw/data").read_bytes() == CONTENT


def test_a_damaged_file_is_replaced_where_the_reader_looks_first(monkeypatch, home, root):
    serve(monkeypatch, home)
    (root / "raw").mkdir(parents=True)
    (root / "raw/data").write_bytes(b"half of it")
    assert run(root) == 0
    assert (root / "raw/data").read_bytes() == CONTENT
    assert (root / "raw/data.old").read_bytes() == b"half of it"


def test_a_member_outside_the_folder_is_refused(monkeypatch, home, root, capsys):
    names = {f"top/{n}": CONTENT + n.encode() for n in ("a.bin", "b.bin")}
    serve_tar(monkeypatch, home, {**names, "../../escaped": b"gotcha"})
    assert run(root, "cifar10") == 1
    assert "cannot be unpacked" in capsys.readouterr().err
    assert not list(root.parent.rglob("escaped"))
    assert left_in(root) == []


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"top/a.bin": CONTENT + b"a.bin"}, "does not hold b.bin"),
        ({"top/a.bin": CONTENT + b"a.bin", "top/b.bin": b"?"}, "its b.bin is not the published"),
    ],
)
def test_an_archive_of_something_else_is_refused(monkeypatch, home, root, members, said, capsys):
    serve_tar(monkeypatch, home, members)
    assert run(root, "cifar10") == 1
    assert said in capsys.readouterr().err
    assert left_in(root) == []


def test_a_root_that_cannot_be_made_is_a_plain_line(monkeypatch, home, capsys):
    serve(monkeypatch, home)
    assert run(home / "data.gz") == 1
    assert capsys.readouterr().err.startswith("mnist is not ready: ")


def test_the_table_of_sources_is_complete():
    assert set(prepare.SOURCES) == {"mnist", "cifar10"}
    for source in prepare.SOURCES.values():
        for archive in source.archives:
            assert all(url.startswith("https://") for url in archive.urls)
            assert all(url.endswith(f"/{archive.name}") for url in archive.urls)
            assert all(len(m) == 32 for m in (archive.md5, *archive.files.values()))
    assert sum(len(a.files) for a in prepare.SOURCES["mnist"].archives) == 4
    assert all(len(a.urls) == 2 for a in prepare.SOURCES["mnist"].archives)


def test_real_files_verify(monkeypatch, real_data, capsys):
    monkeypatch.setattr(prepare.urllib.request, "urlopen", lambda *a, **k: pytest.fail("network"))
    for name in ("mnist", "cifar10"):
        assert run(real_data, name) == 0
    assert capsys.readouterr().out.count("left alone") == 5


def test_check_scans_a_folder(folder, capsys):
    assert prepare.main(["check", str(folder), "--workers", "1"]) == 0
    (folder / "train/cat/0.jpg").write_bytes(b"<html>")
    assert prepare.main(["check", str(folder), "--workers", "1"]) == 1
    assert "train/cat/0.jpg: no picture" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "required: name"),
        (["imagenet"], "choose from"),
        (["mnist"], "required: --root"),
        (["check"], "required: ROOT"),
        (["check", "x", "--workers", "0"], "0: must be at least 1"),
    ],
)
def test_a_wrong_command_is_explained(arguments, said, capsys):
    with pytest.raises(SystemExit, match="2"):
        prepare.main(arguments)
    assert said in capsys.readouterr().err
