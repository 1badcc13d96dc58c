import signal
import threading

import pytest

from hard_fast.runtime import signals


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138), (signal.SIGINT, 130)]
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


def test_elsewhere_than_in_the_main_thread_nothing_is_installed():
    found = []

    def work() -> None:
        with signals.noted():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGTERM)]
