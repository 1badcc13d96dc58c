import os
import signal

import numpy as np
import pytest
import torch

from hard_fast.runtime import failures, signals

ADVICE = ("train.batch_size", "train.accumulate", "teacher.precision", "student.checkpointing")


def fill_the_gpu() -> None:
    torch.empty(1 << 50, device="cuda")


@pytest.mark.parametrize(
    ("demand", "amount"),
    [
        (lambda: torch.empty(1 << 45), "131,072.00 GiB"),
        (lambda: torch.nn.Linear(1 << 22, 1 << 22), "65,536.00 GiB"),
        (lambda: np.empty(1 << 58), "2.00 EiB"),
        (lambda: bytearray(1 << 60), ""),
        pytest.param(fill_the_gpu, "GiB", marks=pytest.mark.gpu),
    ],
)
def test_a_lack_of_memory_is_one_line_with_what_to_do(demand, amount, capsys):
    with pytest.raises((RuntimeError, MemoryError)) as found:
        demand()
    assert failures.tell(found.value) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: out of memory") and said.count("\n") == 1
    assert amount in said and all(key in said for key in ADVICE)


def misshape_for_onednn() -> None:
    """Says "could not create a primitive descriptor"."""
    weight = torch.zeros(4, 5)
    torch.ops.mkldnn._linear_pointwise(torch.zeros(2, 3), weight, None, "none", [], None)


@pytest.mark.parametrize("misshape", [lambda: torch.zeros(2) @ torch.zeros(3), misshape_for_onednn])
def test_errors_of_the_code_stay_what_they_are(misshape, capsys):
    with pytest.raises(RuntimeError) as found:
        misshape()
    with pytest.raises(RuntimeError) as told:
        failures.tell(found.value)
    assert told.value is found.value and not capsys.readouterr().err


def broken_backend(graph, example):
    raise RuntimeError("the compiler was ended")


def test_a_compiler_that_a_signal_ended_is_no_error(capsys):
    with pytest.raises(RuntimeError) as found:
        torch.compile(torch.sin, backend=broken_backend)(torch.zeros(2))
    with signals.noted():
        with pytest.raises(RuntimeError):
            failures.tell(found.value)
        os.kill(os.getpid(), signal.SIGUSR1)
    assert failures.tell(found.value) == 128 + signal.SIGUSR1
    assert capsys.readouterr().err == "SIGUSR1 while it compiled; the same command goes on\n"
    # What comes next was asked nothing.
    with signals.noted():
        assert not signals.asked()
