import errno

from hard_fast.runtime.messages import one_line, printable


def test_a_text_is_one_line_without_control_characters():
    assert printable("a\nb\r\nc\td\x1b[31m\0 \udcff") == r"a b c\td\x1b[31m\x00 \udcff"


def test_what_the_system_refused_names_the_file_and_the_cause():
    error = OSError(errno.ENOSPC, "No space left on device", "/run/step.pt")
    assert one_line(error) == "/run/step.pt: No space left on device"
    assert one_line(OSError("torn")) == "torn"
    assert one_line(ValueError("first\nsecond")) == "first second"
