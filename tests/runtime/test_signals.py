import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import threading

import pytest

from hard_fast.runtime import signals
from hard_fast.runtime.configfile import dump, merge
from tests.tiny import TREE


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), (signal.SIGUSR1, 138), (signal.SIGINT, 130), (signal.SIGHUP, 129)],
)
def test_the_first_signal_is_noted_and_names_the_exit_code(number, code):
    before = signal.getsignal(number)
    with signals.noted():
        assert signals.asked() == 0
        signals.stop_if_asked()
        signal.raise_signal(number)
        assert signals.asked() == number
        with pytest.raises(signals.Stopped, match=number.name) as stopped:
            signals.stop_if_asked()
    assert stopped.value.code == code and signal.getsignal(number) is before


def test_after_the_first_signal_ctrl_c_acts_as_ever_and_another_sigterm_does_nothing():
    came = []
    before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    try:
        with signals.noted():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            assert signals.asked() == signal.SIGTERM and not came
        with signals.noted():
            assert signals.asked() == 0
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_hangup_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.noted():
            signal.raise_signal(signal.SIGHUP)
            assert not signals.asked()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
def test_a_run_whose_terminal_goes_away_saves_and_ends(tmp_path):
    run_dir = tmp_path / "run"
    config = tmp_path / "run.toml"
    config.write_text(dump(merge(TREE, {"train": {"steps": 5000}, "run_dir": str(run_dir)})))
    ours, its = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "hard_fast.train", "--config", str(config)],
        stdin=its,
        stdout=its,
        stderr=its,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    os.close(its)
    while not (run_dir / "metrics.jsonl").is_file():
        assert process.poll() is None
        os.read(ours, 1000)
    os.close(ours)
    assert process.wait(60) == 129
    notes = [int(note.stem[5:]) for note in run_dir.glob("checkpoints/step_*.json")]
    assert 0 < max(notes) < 5000


def test_elsewhere_than_in_the_main_thread_nothing_is_installed():
    found = []

    def work() -> None:
        with signals.noted():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGTERM)]
