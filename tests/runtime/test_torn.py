import fcntl
from pathlib import Path

import pytest
import torch

from hard_fast.runtime.torn import remove_torn_libraries


@pytest.fixture
def library(tmp_path) -> Path:
    path = tmp_path / "ab" / "cabc.main.so"
    path.parent.mkdir()
    path.write_bytes(Path(torch._C.__file__).read_bytes())
    return path


def test_a_whole_library_stays(library, tmp_path):
    whole = library.read_bytes()
    remove_torn_libraries(tmp_path)
    assert library.read_bytes() == whole


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_a_library_that_was_cut_off_goes(library, tmp_path, share):
    whole = library.read_bytes()
    library.write_bytes(whole[: int(share * len(whole))])
    remove_torn_libraries(tmp_path)
    assert not library.exists()


def test_a_library_whose_first_bytes_were_to_come_last_goes(library, tmp_path):
    whole = library.read_bytes()
    library.write_bytes(bytes(64) + whole[64:])
    remove_torn_libraries(tmp_path)
    assert not library.exists()


def test_a_library_that_is_being_made_is_left_alone(library, tmp_path):
    library.write_bytes(b"")
    (tmp_path / "locks").mkdir()
    with (tmp_path / "locks" / "cabc.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        remove_torn_libraries(tmp_path)
        assert library.exists()
    remove_torn_libraries(tmp_path)
    assert not library.exists()


def test_a_library_of_another_system_is_left_alone(library, tmp_path):
    library.write_bytes(b"\xcf\xfa\xed\xfe" + bytes(100))
    remove_torn_libraries(tmp_path)
    assert library.exists()
