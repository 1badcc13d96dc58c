import errno
import shlex
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


def test_lines_of_processes_that_share_a_pipe_stay_whole():
    script = "from hard_fast.runtime.messages import say\nfor _ in range(5000): say('error: rank')"
    code = f"{sys.executable} -u -c {shlex.quote(script)}"
    done = subprocess.run(f"({code} & {code}; wait) 2>&1", shell=True, capture_output=True)
    assert done.stdout.splitlines() == [b"error: rank"] * 10_000


def test_a_process_without_stderr_says_nothing():
    script = "from hard_fast.runtime.messages import say; say('error'); raise SystemExit(7)"
    code = f"{sys.executable} -c {shlex.quote(script)} 2>&-"
    assert subprocess.run(code, shell=True).returncode == 7
