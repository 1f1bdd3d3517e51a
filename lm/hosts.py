"""One job in several processes, usually one on each host: they begin together, agree, and end together.

JAX's distributed runtime connects the processes, moves arrays between them, and ends all of them when one is missing
for `HEARTBEAT_SECONDS`. A process that ends with an error says why before it goes, and the others, whatever they are
waiting for, end with that line and the same exit status within seconds. Without `--distributed` nothing here has an
effect.
"""

import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, NoReturn

from absl import flags

from lm.configuration import flatten
from lm.errors import UserError

# How long the processes wait for each other at the start.
JOIN_SECONDS = 300
# How long a process may be silent before the others give it up. JAX's runtime ends them then.
HEARTBEAT_SECONDS = 60
_LOOK_SECONDS = 1.0  # between two looks for a reason to end
_REASON_SECONDS = 2.0  # a process that lost the connection waits so long for the reason of the one that ended
_FAREWELL_SECONDS = 5.0  # process 0, through which the others talk, waits so long until they have heard the reason
_ENDLESS_MILLISECONDS = 10 * 24 * 3600 * 1000  # a dead process ends the wait sooner
_WHERE = ("coordinator", "processes", "process_id")
# They say where a process runs, not what the job is.
_OF_ONE_PROCESS = frozenset(("process_id", "workdir", "profile"))
# Keys of the store.
_REASON, _HEARD = "lm/reason", "lm/heard"
# What the errors of a collective operation say when a process is gone.
_LOST = ("Gloo", "Connection reset by peer", "Connection closed by peer", "Socket closed", "CoordinationService")

_LOST_ANOTHER = "another process was killed or cannot be reached any more"
_WHAT_TO_DO = "What was saved remains: run the same command on all hosts to go on"


class Reason(NamedTuple):
    """Why a process ends: one line and the exit status."""

    line: str
    status: int


# The line and the status of an error that is known to come from outside; None for any other.
Explain = Callable[[BaseException], tuple[str, int] | None]


def define_distributed(values: flags.FlagValues) -> None:
    """Defines --distributed and where this process is among the others."""
    text = (
        "Run one job in several processes, one per host, each started with this command. Under SLURM, on GKE and on "
        "Cloud TPUs they find each other; elsewhere the next three flags say where they are."
    )
    flags.DEFINE_bool("distributed", False, text, flag_values=values)
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, for --distributed.", flag_values=values)
    flags.DEFINE_integer("processes", None, "Number of processes, for --distributed.", flag_values=values)
    flags.DEFINE_integer("process_id", None, "Number of this process, from 0, for --distributed.", flag_values=values)


@contextlib.contextmanager
def joined(values: flags.FlagValues, explain: Explain, report: Callable[[str], None]) -> Iterator[None]:
    """A context in which the processes of a job are connected, if `--distributed` is among the flags and set.

    It ends when the work of all of them has. If one fails, none leaves it: all processes end.

    Args:
      values: the parsed flags.
      explain: gives the line and the exit status of an error.
      report: prints the line of an error.

    Raises:
      UserError: if the flags are not complete, or the processes cannot be connected.
    """
    global _together
    place = _place(values)
    if place is None:
        yield
        return
    _connect(*place)
    with _last_words(
        "error: JAX's runtime has ended this process for the reason above, most likely because "
        f"{_LOST_ANOTHER}. {_WHAT_TO_DO}"
    ):
        _together = together = _Together(explain, report)
        try:
            check_same(_settings(values), "start all processes with the same command")
            together.connect_devices()
            yield
        except BaseException as error:
            together.fail(error)
        together.part()
        _together = None


def meet() -> None:
    """Waits until all processes are here. All must call it equally often."""
    if _together is not None:
        _together.meet()


def check_same(found: Mapping[str, Any], instead: str) -> None:
    """Checks that all processes have the same values. All must call it equally often.

    Args:
      found: JSON by name.
      instead: what to do if they differ.

    Raises:
      UserError: on the processes that differ from process 0.
    """
    if _together is not None:
        _together.check_same(found, instead)


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """A context whose errors end all processes at once, before any cleaning up that would wait for the others."""
    try:
        yield
    except BaseException as error:
        if _together is None:
            raise
        _together.fail(error)


def _place(values: flags.FlagValues) -> tuple[Any, Any, Any] | None:
    """The values of the flags that say where this process is, each None to detect it; None for a process alone."""
    if "distributed" not in values:
        return None
    place: tuple[Any, Any, Any] = (values["coordinator"].value, values["processes"].value, values["process_id"].value)
    coordinator, processes, process_id = place
    missing = [f"--{name}" for name, value in zip(_WHERE, place, strict=True) if value is None]
    if not values["distributed"].value:
        if len(missing) < len(_WHERE):
            raise UserError("--coordinator, --processes and --process_id have no effect without --distributed: add it")
        return None
    if len(missing) == len(_WHERE):
        return place
    if missing:
        raise UserError(f"--coordinator, --processes and --process_id go together: add {' and '.join(missing)}")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--coordinator={coordinator} must be HOST:PORT of process 0, such as 10.0.0.1:8476")
    if processes < 1 or not 0 <= process_id < processes:
        raise UserError(f"--process_id={process_id} must be from 0 to --processes - 1, and --processes={processes}")
    return place


def _connect(coordinator: str | None, processes: int | None, process_id: int | None) -> None:
    import jax

    where = f"--coordinator={coordinator}" if coordinator else "the coordinator that the cluster names"
    all_of_them = f"all {processes} processes" if processes else "all processes"
    if coordinator and process_id:
        _wait_for(coordinator)
    # The training loop itself decides at which step all processes stop after a signal.
    jax.config.update("jax_enable_preemption_service", False)
    with _last_words(
        f"error: not {all_of_them} could be connected through {where} in {JOIN_SECONDS} s: start {all_of_them}, each "
        "with a --process_id of its own"
    ):
        try:
            jax.distributed.initialize(
                coordinator,
                processes,
                process_id,
                initialization_timeout=JOIN_SECONDS,
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            )
        except ValueError as error:
            raise UserError(
                "--distributed finds no SLURM, Kubernetes, MPI or Cloud TPU job here: add --coordinator=HOST:PORT, "
                "--processes=N and --process_id=I"
            ) from error
        except (RuntimeError, OSError) as error:
            first_line = str(error).partition("\n")[0]
            raise UserError(f"--distributed: cannot connect through {where}: {first_line}") from error


def _wait_for(coordinator: str) -> None:
    """Waits until process 0 listens. JAX would abort instead of raising an error."""
    host, _, port = coordinator.rpartition(":")
    until = time.monotonic() + JOIN_SECONDS
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except (OSError, OverflowError) as error:
            if time.monotonic() > until:
                raise UserError(
                    f"--coordinator={coordinator} could not be reached in {JOIN_SECONDS} s ({error}): start the "
                    "process with --process_id=0 there, and open the port"
                ) from error
            time.sleep(0.5)


@contextlib.contextmanager
def _last_words(line: str) -> Iterator[None]:
    """Makes a line the last one if JAX's runtime aborts the process inside, which it does without raising an error."""

    def say(_: int) -> None:
        if _together is None or not _together.ending.locked():  # the reason is not told yet
            os.write(2, f"{line}\n".encode())
        os._exit(1)

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(say)
    handle = ctypes.CDLL(None).signal  # Python's own handlers run too late
    handle.argtypes, handle.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    before = handle(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
    try:
        yield
    finally:
        handle(signal.SIGABRT, before)


def _settings(values: flags.FlagValues) -> dict[str, Any]:
    """The flags and the config as text by name, which must be the same in all processes."""
    given = {f"--{name}": str(values[name].value) for name in values if name not in (*_OF_ONE_PROCESS, "config")}
    config = values["config"].value if "config" in values else None
    return given | ({} if config is None else {f"config.{name}": repr(each) for name, each in flatten(config).items()})


class _Together:
    """This process among the others, which talk through the key-value store of JAX's distributed runtime."""

    def __init__(self, explain: Explain, report: Callable[[str], None]):
        import jax
        from jax._src import distributed  # the only way to the store

        self._client: Any = distributed.global_state.client
        self._index, self._count = jax.process_index(), jax.process_count()
        self._explain, self._report = explain, report
        self._met = self._compared = 0
        self._over, self.ending = threading.Event(), threading.Lock()
        threading.Thread(target=self._watch, daemon=True).start()

    def connect_devices(self) -> None:
        """Moves the first array between all devices while all processes are here.

        On CPUs JAX gives up when they come to the first one more than 30 s apart, as after reading a large corpus.
        """
        from jax.experimental import multihost_utils

        self.meet()
        multihost_utils.sync_global_devices("lm")

    def meet(self) -> None:
        self._met += 1
        self._client.wait_at_barrier(f"lm/meet/{self._met}", _ENDLESS_MILLISECONDS)

    def check_same(self, found: Mapping[str, Any], instead: str) -> None:
        self._compared += 1
        key = f"lm/compared/{self._compared}"
        if self._index == 0:
            self._client.key_value_set(key, json.dumps(found))
            return
        first = json.loads(self._client.blocking_key_value_get(key, _ENDLESS_MILLISECONDS))
        own = json.loads(json.dumps(found))
        differing = [
            f"{name} is {own.get(name)} on process {self._index} and {first.get(name)} on process 0"
            for name in first | own
            if first.get(name) != own.get(name)
        ]
        if differing:
            raise UserError(f"{'; '.join(differing[:3])}: {instead}")

    def part(self) -> None:
        """Ends the connection once all processes have done their work."""
        import jax

        self.meet()
        self._over.set()
        jax.distributed.shutdown()

    def fail(self, error: BaseException) -> NoReturn:
        """Ends this process and, with its reason, the others; or with the reason of the one that ended first."""
        explained = self._explain(error)
        first_line = str(error).partition("\n")[0]
        if explained is not None:
            self._end_all(Reason(*explained), f"process {self._index}: ")
        if not any(sign in str(error) for sign in _LOST):
            traceback.print_exception(error)
            self._end_all(Reason(f"{type(error).__name__}: {first_line}", 1), f"process {self._index}: ")
        if (known := self._reason_within(_REASON_SECONDS)) is not None:
            self._end(known)
        self._end_all(Reason(f"{_LOST_ANOTHER} ({first_line}). {_WHAT_TO_DO}", 1), "")

    def _end_all(self, reason: Reason, whose: str) -> NoReturn:
        with contextlib.suppress(Exception):  # another one may have been first, or process 0 be gone
            self._client.key_value_set(f"{_REASON}/first", json.dumps((whose + reason.line, reason.status)))
        self._end(reason)

    def _reason_within(self, seconds: float) -> Reason | None:
        until = time.monotonic() + seconds
        with contextlib.suppress(Exception):  # process 0 may be gone
            while (known := self._reason()) is None and time.monotonic() < until:
                time.sleep(0.1)
            return known
        return None

    def _reason(self) -> Reason | None:
        """Why a process ended; None while all go on."""
        found = self._client.key_value_dir_get(_REASON)
        return Reason(*json.loads(found[0][1])) if found else None

    def _watch(self) -> None:
        """Ends the process when another one has said why it ended, even while it waits for that one's arrays."""
        while not self._over.wait(_LOOK_SECONDS):
            try:
                reason = self._reason()
            except Exception:  # JAX's runtime ends the process now
                return
            if reason is not None:
                self._end(reason)

    def _end(self, reason: Reason) -> NoReturn:
        if not self.ending.acquire(blocking=False):
            threading.Event().wait()  # until the other thread has ended the process
        self._report(reason.line)
        with contextlib.suppress(Exception):
            self._client.key_value_set(f"{_HEARD}/{self._index}", "")
            until = time.monotonic() + _FAREWELL_SECONDS
            while self._index == 0 and time.monotonic() < until:
                if len(self._client.key_value_dir_get(_HEARD)) >= self._count:
                    break
                time.sleep(0.1)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(reason.status)  # JAX's own way out waits for the other processes


_together: _Together | None = None
