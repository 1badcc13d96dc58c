import argparse

import pytest

from hard_fast.runtime.arguments import at_least


def test_a_number_is_read_and_one_too_small_or_none_is_named(capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=at_least(2))
    assert parser.parse_args(["--steps", "2"]).steps == 2
    for text, message in [("1", "1: must be 2 or more"), ("two", "invalid number value: 'two'")]:
        with pytest.raises(SystemExit):
            parser.parse_args(["--steps", text])
        assert message in capsys.readouterr().err
