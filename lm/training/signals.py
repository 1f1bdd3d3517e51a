"""Signals that end training after the step at hand, and their acknowledgement."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

# Shells start background jobs with SIGINT ignored.
_DEADLY: dict[signal.Signals, Any] = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
_ACKNOWLEDGEMENTS = {
    signal.SIGINT: "stopping after this step; press Ctrl-C again to stop now",
    signal.SIGTERM: "SIGTERM: stopping after this step; a second one stops now",
}
_END = b"\0"  # no signal has this number


@contextlib.contextmanager
def caught_signals(say: Callable[[str], None] = lambda text: None) -> Iterator[list[signal.Signals]]:
    """Records SIGTERM and SIGINT (Ctrl-C) instead of exiting; a second one ends the process immediately.

    Args:
      say: prints a line; it is called from another thread, as soon as the first signal arrives.
    """
    caught: list[signal.Signals] = []
    known: dict[signal.Signals, Any] = {}  # handlers

    def catch(number: int, _: Any) -> None:
        caught.append(signal.Signals(number))
        for each, handler in known.items():
            signal.signal(each, _DEADLY[each] if handler == signal.SIG_IGN else handler)

    with _acknowledged(say):
        for each in _DEADLY:
            known[each] = signal.signal(each, catch)
        try:
            yield caught
        finally:
            for each, handler in known.items():
                signal.signal(each, handler)


@contextlib.contextmanager
def _acknowledged(say: Callable[[str], None]) -> Iterator[None]:
    """Says at once that the first signal was noticed: a handler would wait for a compilation to end."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    known = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)  # the interpreter writes each signal's number
    thread = threading.Thread(target=_say_first, args=(reader, say), daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(known)
        os.write(writer, _END)  # closing would not do while a forked process has the pipe too
        thread.join()
        os.close(writer)
        os.close(reader)


def _say_first(reader: int, say: Callable[[str], None]) -> None:
    said = False
    while (number := os.read(reader, 1)) != _END:
        if number[0] in _ACKNOWLEDGEMENTS and not said:
            said = True
            say(_ACKNOWLEDGEMENTS[signal.Signals(number[0])])
