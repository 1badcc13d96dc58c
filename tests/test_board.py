import os
import threading

import pytest

from hard_fast.board import Board


def test_a_disk_that_is_full_is_one_error_with_the_folder(tmp_path, monkeypatch):
    heard = []
    monkeypatch.setattr(threading, "excepthook", heard.append)
    board = Board(tmp_path / "tensorboard", 0)
    board.write({"kind": "train", "step": 1, "lr": 0.5})
    (path,) = (tmp_path / "tensorboard").iterdir()
    path.unlink()
    path.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device.*tensorboard'$"):
        for step in range(100):
            board.write({"kind": "train", "step": step, "lr": 0.5})
        board.close()
    assert not heard


def test_a_folder_that_cannot_be_made_leaves_other_threads_alone(tmp_path, monkeypatch):
    heard = []
    monkeypatch.setattr(threading, "excepthook", heard.append)
    before = threading.excepthook
    (tmp_path / "tensorboard").write_text("a file")
    with pytest.raises(OSError, match="tensorboard"):
        Board(tmp_path / "tensorboard", 0)
    assert threading.excepthook == before


def test_other_threads_are_heard_of_meanwhile_and_after(tmp_path, monkeypatch):
    heard = []
    monkeypatch.setattr(threading, "excepthook", heard.append)
    before, board = threading.excepthook, Board(tmp_path, 0)
    thread = threading.Thread(target=os.stat, args=("/none",))
    thread.start()
    thread.join()
    assert [failure.thread for failure in heard] == [thread]
    board.close()
    assert threading.excepthook == before
