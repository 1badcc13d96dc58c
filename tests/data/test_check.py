import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hard_fast.data.check import check, find_targets
from hard_fast.data.shards import read_index
from hard_fast.data.sources import PicturesConfig, read_pictures
from hard_fast.data.unreadable import LIST_NAME, read_unreadable, write_unreadable


def spoil(folder, encode) -> None:
    """Four bad files, and four that are only odd."""
    jpeg = encode(size=(96, 64))
    (folder / "train/cat/0.jpg").write_bytes(b"")
    (folder / "train/cat/1.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "train/dog/2.jpg").write_bytes(b"<html>404</html>")
    (folder / "val/dog/more.jpg").write_bytes(jpeg[:40])
    (folder / "train/cat/2.jpg").write_bytes(encode(mode="CMYK"))
    (folder / "train/cat/3.jpg").write_bytes(encode(mode="L"))
    (folder / "train/dog/0.jpg").write_bytes(encode("PNG", "I;16"))
    (folder / "train/dog/1.jpg").write_bytes(encode(orientation=6))


def cells(table: str) -> dict[str, str]:
    rows = [line.split("\u2502")[1:3] for line in table.splitlines() if "\u2502" in line]
    return {name.strip(): num.strip() for name, num in rows}


def test_bad_files_are_listed_and_left_out(folder, encode, capsys):
    spoil(folder, encode)
    assert check([str(folder)], 1) == 1
    said = capsys.readouterr().out
    assert "11 pictures, decoded by " in said
    found = cells(said)
    assert found["unreadable"] == "4" and found["CMYK"] == found["EXIF orientation"] == "1"
    assert found["grey"] == "2" and found["16 bits"] == "1"
    reasons = read_unreadable(folder)
    assert list(reasons) == [
        "train/cat/0.jpg", "train/cat/1.jpg", "train/dog/2.jpg", "val/dog/more.jpg"
    ]  # fmt: skip
    assert reasons["train/cat/0.jpg"] == "empty file"
    assert "truncated" in reasons["train/cat/1.jpg"]
    assert f"{folder}/train/dog/2.jpg: no picture (starts with b'<html>" in said
    assert f"{folder / LIST_NAME}: 4 unreadable pictures, left out from now on" in said
    left = read_pictures(PicturesConfig(root=str(folder), val_share=0.0))
    assert (len(left.train.label), len(left.test.label)) == (5, 2)


def test_a_good_set_gets_no_list(folder, capsys):
    assert check([str(folder)], 1) == 0
    assert sorted(p.name for p in folder.iterdir()) == ["train", "val"]
    assert cells(capsys.readouterr().out)["unreadable"] == "0"


def test_a_mended_file_comes_off_the_list(folder):
    write_unreadable(folder, {"train/cat/0.jpg": "torn", "elsewhere/0.jpg": "mine"}, "check")
    assert check([str(folder)], 1) == 0
    assert read_unreadable(folder) == {"elsewhere/0.jpg": "mine"}


def test_shards_have_their_list_beside_them(tmp_path, write_shard, write_tar, encode, capsys):
    jpeg = encode(size=(96, 64))
    write_shard(tmp_path / "a/0.tar", [0, 1])
    write_tar(
        tmp_path / "a/1.tar",
        [("0.jpg", jpeg), ("0.cls", b"0"), ("1.jpg", jpeg[:500]), ("1.cls", b"1")],
    )
    write_tar(tmp_path / "b/0.tar", [("x.jpg", b""), ("x.cls", b"0"), ("y.jpg", jpeg)])
    write_unreadable(tmp_path / "a", {"0.tar/9.jpg": "old", "2.tar/1.jpg": "not scanned"}, "check")
    assert check([f"{tmp_path}/a/{{0..1}}.tar", f"{tmp_path}/b/0.tar"], 1) == 1
    assert list(read_unreadable(tmp_path / "a")) == ["1.tar/1.jpg", "2.tar/1.jpg"]
    assert read_unreadable(tmp_path / "b") == {"0.tar/x.jpg": "empty file"}
    assert cells(capsys.readouterr().out)["unreadable"] == "2"
    config = PicturesConfig(root=f"{tmp_path}/a/{{0..1}}.tar", num_classes=2, val_share=0.0)
    with pytest.raises(ValueError, match="val_share = 0"):
        read_pictures(config)
    config = config.model_copy(update={"root": f"{tmp_path}/a/0.tar"})
    config = config.model_copy(update={"val_root": f"{tmp_path}/a/1.tar"})
    assert len(read_pictures(config).test.label) == 1


def test_a_cut_shard_is_not_fine(tmp_path, write_shard, capsys):
    path = write_shard(tmp_path / "0.tar", [0, 1, 0])
    os.truncate(path, read_index(path).offset[2] + 5)
    (target,) = find_targets([str(path)])
    assert target.cut == [path]
    assert check([str(path)], 1) == 1
    assert f"{path}: cut short or damaged; fetch it again" in capsys.readouterr().out
    assert not (tmp_path / LIST_NAME).exists()


def test_a_set_that_is_not_one_is_a_plain_line(folder, tmp_path, capsys):
    (folder / "train/emu").mkdir()
    assert check([str(folder)], 1) == 1
    assert check([f"{tmp_path}/{{0..2}}.tar"], 1) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and all(line.startswith("check is not done: ") for line in said)


def descendants(pid: int) -> list[int]:
    """The processes below one, as long as it lives."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [found for child in map(int, children) for found in (child, *descendants(child))]


def is_silent(pid):
    try:
        return os.readlink(f"/proc/{pid}/fd/2") == os.devnull
    except OSError:
        return False


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_behind(folder, encode):
    (folder / "train/cat/0.jpg").write_bytes(b"")
    (folder / "train/cat/1.jpg").write_bytes(encode(size=(2000, 2000)))
    for i in range(1000):
        (folder / f"train/cat/large-{i}.jpg").hardlink_to(folder / "train/cat/1.jpg")
    command = [sys.executable, "-m", "hard_fast.data.prepare", "check", str(folder)]
    with subprocess.Popen(
        [*command, "--workers", "1"], stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        # The scan has begun once the server of processes has one that no longer writes warnings.
        while not any(map(is_silent, descendants(process.pid))):
            assert process.poll() is None
            time.sleep(0.05)
        below = descendants(process.pid)
        # As a terminal does it: to all of them.
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert said == "stopped: no list was written\n"
    assert sorted(path.name for path in folder.iterdir()) == ["train", "val"]
    end = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in below):
        assert time.monotonic() < end
        time.sleep(0.05)
