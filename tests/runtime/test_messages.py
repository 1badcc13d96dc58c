import errno
import subprocess
import sys

from hard_fast.runtime.messages import one_line, printable


def test_a_text_is_one_line_without_control_characters():
    assert printable("a\nb\r\nc\td\x1b[31m\0 \udcff") == r"a b c\td\x1b[31m\x00 \udcff"


def test_what_the_system_refused_names_the_file_and_the_cause():
    error = OSError(errno.ENOSPC, "No space left on device", "/run/step.pt")
    assert one_line(error) == "/run/step.pt: No space left on device"
    assert one_line(OSError("torn")) == "torn"
    assert one_line(ValueError("first\nsecond")) == "first second"


def test_lines_of_processes_that_share_a_file_stay_whole(tmp_path):
    script = "from hard_fast.runtime.messages import say\nfor _ in range(5000): say('error: rank')"
    shared = tmp_path / "log"
    with shared.open("a") as log:
        both = [subprocess.Popen([sys.executable, "-u", "-c", script], stderr=log) for _ in "ab"]
    assert [one.wait() for one in both] == [0, 0]
    assert shared.read_text().splitlines() == ["error: rank"] * 10_000
