"""The first signal is noted, the second acts as usual."""

import os
import signal
import threading

import pytest

from utilities.interrupt import IMPATIENT, SIGNALS, Interruption


@pytest.fixture(autouse=True)
def _in_the_foreground():
    """Ctrl-C raises; a job that a shell starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def _not_under_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_only_noted(number):
    before = [signal.getsignal(other) for other in SIGNALS]
    with Interruption() as interruption:
        assert interruption.signal is None
        os.kill(os.getpid(), number)
        assert interruption.signal == number.name
        for impatient in IMPATIENT:
            assert signal.getsignal(impatient) is before[SIGNALS.index(impatient)]
    assert [signal.getsignal(other) for other in SIGNALS] == before


@pytest.mark.parametrize("number", sorted({*SIGNALS} - {*IMPATIENT}))
def test_signals_that_come_repeatedly_are_noted_once(number):
    """SIGXCPU comes every second; SIGHUP from the shell and from the terminal."""
    with Interruption() as interruption:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        assert interruption.signal == number.name


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_that_is_ignored_stays_so(number):
    """As SIGHUP under nohup, and Ctrl-C in a background job."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            os.kill(os.getpid(), number)
            assert interruption.signal is None
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_a_thread_catches_no_signal():
    noted = []

    def work():
        with Interruption() as interruption:
            noted.append(interruption.signal)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert noted == [None] and signal.getsignal(signal.SIGTERM) is before


def test_the_second_ctrl_c_acts_as_always():
    with pytest.raises(KeyboardInterrupt), Interruption():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_handlers_are_put_back_after_an_error():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="inside"), Interruption():
        assert signal.getsignal(signal.SIGTERM) is not before
        raise ValueError("inside")
    assert signal.getsignal(signal.SIGTERM) is before
