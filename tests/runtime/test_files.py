from pathlib import Path

import pytest

from hard_fast.runtime.files import named, write_atomic


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = write_atomic(tmp_path / "sub" / "a.txt", "old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_bytes_and_text_are_written_and_replaced(tmp_path):
    path = tmp_path / "a"
    write_atomic(path, b"\x00\x01")
    assert path.read_bytes() == b"\x00\x01"
    assert write_atomic(path, "text") == path
    assert path.read_text() == "text"
    assert path.stat().st_mode & 0o777 == 0o644


def test_what_the_system_refuses_is_told_with_the_name_of_the_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError) as caught:
        write_atomic(tmp_path / "file" / "a", "x")
    assert caught.value.filename == str(tmp_path / "file" / "a")
    with pytest.raises(FileNotFoundError, match="run/log"), named(Path("run/log")):
        raise FileNotFoundError(2, "No such file or directory")
