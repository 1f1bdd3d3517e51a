"""Signals that end training after the step at hand, their acknowledgement, and the step at which all hosts stop."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

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


class StopVote:
    """Whether to stop after a step: a process alone at once, several one step after one of them was asked to.

    Each step of several processes carries the signals along with it, and the answer is that of the step before, which
    has arrived: so all stop after the same step, and none waits for it.
    """

    def __init__(self):
        """No process was asked to stop yet."""
        self._several = jax.process_count() > 1
        if self._several:
            mesh = jax.make_mesh((jax.device_count(),), ("all",), (AxisType.Auto,))
            self._sharding = NamedSharding(mesh, P("all"))
            self._largest = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, P()))
            self._before = None

    def __call__(self, caught: Sequence[signal.Signals]) -> signal.Signals | None:
        """The signal by which to stop after this step, the same on all processes. All must call it once a step.

        Args:
          caught: by this process.
        """
        asked = caught[0] if caught else None
        if not self._several:
            return asked
        own = np.full(jax.local_device_count(), asked or 0, np.int32)
        before = self._before
        self._before = self._largest(jax.make_array_from_process_local_data(self._sharding, own))
        number = 0 if before is None else int(before)
        return signal.Signals(number) if number else None


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
