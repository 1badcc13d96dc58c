import os
import subprocess
import tarfile

import pytest

from hard_fast.data.tar import read_members

LONG = "/".join(["a-folder-with-a-name"] * 12) + "/000.jpg"
FORMS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


def members(path) -> list[tuple[str, bytes]]:
    """Names and contents, the latter read where the index says."""
    payload = path.read_bytes()
    found = list(read_members(path))
    assert None not in found
    return [(m.name, payload[m.offset : m.offset + m.num_bytes]) for m in found]


@pytest.mark.parametrize("form", FORMS)
def test_members_are_found_as_tarfile_finds_them(tmp_path, write_tar, form):
    names = ["0.jpg", "0.cls", "./sub/1.jpg", "x" * 90 + "/" + "y" * 90 + ".jpg"]
    names += [] if form == tarfile.USTAR_FORMAT else [LONG, "\N{SNOWMAN}.jpg"]
    given = [(name, os.urandom(513 * i)) for i, name in enumerate(names)]
    path = write_tar(tmp_path / "a.tar", given, form)
    assert members(path) == given
    with tarfile.open(path) as tar:
        assert [(m.name, m.offset_data) for m in tar] == [
            (m.name, m.offset) for m in read_members(path)
        ]


def test_the_start_of_a_member_comes_with_it(tmp_path, write_tar):
    path = write_tar(tmp_path / "a.tar", [("0.cls", b"17\n"), ("0.jpg", b"j" * 2000)])
    assert [m.start for m in read_members(path)] == [b"17\n", b"j" * 512]


def test_a_tar_of_the_system_with_folders_and_links(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d/1.jpg").write_bytes(b"picture")
    (tmp_path / "d/2.jpg").hardlink_to(tmp_path / "d/1.jpg")
    (tmp_path / "d/3.jpg").symlink_to("1.jpg")
    subprocess.run(["tar", "cf", "a.tar", "d"], cwd=tmp_path, check=True)
    # Which of the two names becomes the link is up to tar.
    ((name, payload),) = members(tmp_path / "a.tar")
    assert name in ("d/1.jpg", "d/2.jpg") and payload == b"picture"


def test_sizes_beyond_octal_are_read(tmp_path, write_tar):
    path = write_tar(tmp_path / "a.tar", [("0.jpg", b"x" * 600), ("1.jpg", b"y")])
    raw = bytearray(path.read_bytes())
    # GNU's base 256, which 8 GiB and more need.
    raw[124:136] = b"\x80" + (600).to_bytes(11, "big")
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw[:512])
    path.write_bytes(raw)
    assert [m.num_bytes for m in read_members(path)] == [600, 1]


@pytest.mark.parametrize("keep", [0, 1500, 1600, 2048, 2600, 3072])
def test_a_cut_tar_gives_what_is_whole(tmp_path, write_tar, keep):
    path = write_tar(tmp_path / "a.tar", [(f"{i}.jpg", b"x" * 600) for i in range(3)])
    whole = path.read_bytes()
    path.write_bytes(whole[:keep])
    found = list(read_members(path))
    assert found[-1] is None
    # A header and two blocks each, of which the data fill 600 bytes.
    num = sum(1536 * i + 512 + 600 <= keep for i in range(3))
    assert [m.name for m in found[:-1]] == [f"{i}.jpg" for i in range(num)]


def test_a_damaged_header_ends_the_list(tmp_path, write_tar):
    path = write_tar(tmp_path / "a.tar", [(f"{i}.jpg", b"x") for i in range(3)])
    raw = bytearray(path.read_bytes())
    raw[1024 + 3] ^= 1
    path.write_bytes(raw)
    first, end = read_members(path)
    assert (first.name, end) == ("0.jpg", None)


def test_a_damaged_pax_header_ends_the_list(tmp_path, write_tar):
    path = write_tar(tmp_path / "a.tar", [(LONG, b"x")], tarfile.PAX_FORMAT)
    raw = path.read_bytes()
    for damaged in (raw.replace(b" path=", b"9path="), raw.replace(b" path=", b"99999999999path=")):
        path.write_bytes(damaged)
        assert list(read_members(path)) == [None]


def test_a_pax_size_that_is_no_number_ends_the_list(tmp_path, write_tar):
    path = write_tar(tmp_path / "a.tar", [(LONG, b"x")], tarfile.PAX_FORMAT)
    raw = path.read_bytes()
    record = f"{len(LONG) + 10} path={LONG}\n".encode()
    assert raw.count(record) == 1
    # A superscript is a digit to Python and no number.
    size = "11 size=\N{SUPERSCRIPT TWO}\n".encode()
    path.write_bytes(raw.replace(record, size.ljust(len(record), b"\0")))
    assert list(read_members(path)) == [None]


@pytest.mark.parametrize("payload", [b"<html>" * 200, b"short", b"\xff" * 512])
def test_what_is_no_tar_is_refused(tmp_path, payload):
    (tmp_path / "a.tar").write_bytes(payload)
    with pytest.raises(ValueError, match=r"a\.tar: no tar \(starts with"):
        list(read_members(tmp_path / "a.tar"))


def test_a_compressed_tar_is_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("0.jpg"))
    with pytest.raises(ValueError, match=r"a\.tar: a compressed tar; unpack it"):
        list(read_members(tmp_path / "a.tar"))


@pytest.mark.parametrize(
    "size", [b"-0000001000\0", b"+0000000005\0", b"0000_000005\0", b"00000000009\0"]
)
def test_a_size_that_is_no_octal_number_ends_the_tar(tmp_path, write_tar, size):
    path = write_tar(tmp_path / "a.tar", [("0.jpg", b"x")])
    raw = bytearray(path.read_bytes())
    raw[124:136] = size
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw[:512])
    path.write_bytes(raw)
    assert list(read_members(path)) == [None]


def test_a_pax_header_with_a_number_of_thousands_of_digits_ends_the_tar(tmp_path, write_tar):
    path = write_tar(tmp_path / "a.tar", [("\N{SNOWMAN}.jpg", b"x")], tarfile.PAX_FORMAT)
    raw = bytearray(path.read_bytes())
    record = b"5013 size=" + b"9" * 5002 + b"\n"
    raw[124:136] = b"%011o\0" % len(record)
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw[:512])
    path.write_bytes(raw[:512] + record.ljust(5120, b"\0") + raw[1024:])
    assert list(read_members(path)) == [None]
