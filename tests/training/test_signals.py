"""The first signal is acknowledged at once and ends training after its step; the second ends it."""

import hashlib
import os
import signal
import threading
import time

import pytest

from lm.training.signals import caught_signals


@pytest.mark.parametrize("before", [signal.default_int_handler, signal.SIG_IGN], ids=["foreground", "background"])
def test_a_second_signal_is_not_held_back(before):
    """A process that a shell put in the background was started with SIGINT ignored."""
    outer = signal.signal(signal.SIGINT, before)
    try:
        with caught_signals() as caught:
            os.kill(os.getpid(), signal.SIGINT)
            assert caught == [signal.SIGINT]
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == before
    finally:
        signal.signal(signal.SIGINT, outer)


@pytest.mark.parametrize(("number", "part"), [(signal.SIGINT, "press Ctrl-C again"), (signal.SIGTERM, "SIGTERM: ")])
def test_the_first_signal_is_acknowledged_once(number, part):
    outer, said = signal.signal(number, lambda *_: None), []
    try:
        with caught_signals(said.append):
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)
    finally:
        signal.signal(number, outer)
    (line,) = said
    assert "stopping after this step" in line
    assert part in line


def test_other_signals_are_not_acknowledged_and_nothing_stays_behind():
    said, wakeup = [], signal.set_wakeup_fd(-1)
    outer = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        with caught_signals(said.append):
            os.kill(os.getpid(), signal.SIGUSR1)
        assert signal.set_wakeup_fd(wakeup) == -1
    finally:
        signal.signal(signal.SIGUSR1, outer)
    assert said == []


def test_the_acknowledgement_does_not_wait_for_a_long_call():
    """A handler runs only when the main thread is back in Python, as after a compilation."""
    said_at, outer = [], signal.signal(signal.SIGINT, lambda *_: None)
    try:
        with caught_signals(lambda _: said_at.append(time.monotonic())) as caught:
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
            hashlib.pbkdf2_hmac("sha256", b"word", b"salt", 3_000_000)  # about a second, without the interpreter's lock
            returned_at = time.monotonic()
        assert caught == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, outer)
    assert said_at[0] < returned_at - 0.1
