"""Locks between processes on one machine, or on several that share a file system."""

import contextlib
import fcntl
import json
import os
import platform
import threading
import time
from pathlib import Path
from typing import IO

# A worker on another machine signals that it is alive by touching its file. Clocks may differ by minutes.
_HEARTBEAT_SECONDS = 30
_STALE_SECONDS = 600


class FileLock:
    """A lock between processes that the kernel releases when its holder ends, however it ends.

    Optuna's own locks are files that remain when their holder is killed, and then delay everyone by half a minute.
    """

    def __init__(self, path: Path):
        """Does not lock yet."""
        self._path = path
        self._file: IO[str] | None = None

    def acquire(self) -> bool:
        """Waits for the lock."""
        self._file = self._path.open("a")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        return True

    def release(self) -> None:
        """Releases it, if it is held."""
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_) -> None:
        self.release()


class WorkerLock:
    """Held by the process that works on a trial.

    On one machine the kernel knows whether the holder is alive. Network file systems do not always share locks, so a
    holder on another machine counts as dead when it has not touched the file for ten minutes.
    """

    def __init__(self, path: Path):
        """Does not lock yet."""
        self._path, self._ended = path, threading.Event()
        self._file: IO[str] | None = None

    def acquire(self) -> bool:
        """Takes the lock unless a live process holds it; returns whether it was taken."""
        if self._held_elsewhere():
            return False
        file = self._path.open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        self._path.write_text(json.dumps({"machine": _machine(), "process": os.getpid()}) + "\n")
        self._file = file
        threading.Thread(target=self._beat, daemon=True).start()
        return True

    def release(self) -> None:
        """Releases it, if it is held, for other machines at once."""
        if self._file is None:
            return
        self._ended.set()
        self._path.write_text("")
        self._file.close()

    def _held_elsewhere(self) -> bool:
        try:
            machine = json.loads(self._path.read_text())["machine"]
            touched = self._path.stat().st_mtime
        except (OSError, ValueError):
            return False
        return machine != _machine() and time.time() - touched < _STALE_SECONDS

    def _beat(self) -> None:
        while not self._ended.wait(_HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(self._path)


def _machine() -> str:
    """This machine and its boot: two containers may share a host name."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{platform.node()} {boot.read_text().strip() if boot.exists() else ''}"
