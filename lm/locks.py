"""Locks between processes on one machine, or on several that share a file system."""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import platform
import threading
import time
from pathlib import Path
from typing import IO, Any

# A holder on another machine signals that it is alive by touching its file. Clocks may differ by minutes.
HEARTBEAT_SECONDS = 30
STALE_SECONDS = 600
# On some network file systems the kernel cannot lock: there only other machines are noticed.
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


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


class ProcessLock:
    """Held by the one process that works on something, such as a trial or a run.

    The kernel knows whether a holder on this machine is alive: after a kill or a reboot the lock is free at once, and
    another process with the same number does not hold it. Network file systems do not always share locks, so a holder
    on another machine counts as dead when it has not touched the file for ten minutes.
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
        if not _lock(file, fcntl.LOCK_EX):
            file.close()
            return False
        self._path.write_text(json.dumps(_this_process()) + "\n")
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
        self._file = None

    def holder(self) -> str | None:
        """The live process that holds the lock, in words; None if it is free. Changes nothing."""
        record = self._record()
        if not record:
            return None
        if not self._held_elsewhere():
            with contextlib.suppress(OSError), self._path.open() as file:
                if _lock(file, fcntl.LOCK_SH):
                    return None
        return f"process {record.get('process')} on {record.get('host')} since {record.get('began')}"

    def _record(self) -> dict[str, Any]:
        try:
            record = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}

    def _held_elsewhere(self) -> bool:
        machine = self._record().get("machine")
        try:
            touched = self._path.stat().st_mtime
        except OSError:
            return False
        # A time far in the future is as wrong as one long past.
        return machine not in (None, _machine()) and abs(time.time() - touched) < STALE_SECONDS

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(self._path)


def _lock(file: IO[str], kind: int) -> bool:
    """Locks an open file without waiting; False if another process holds it."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    return True


def _this_process() -> dict[str, Any]:
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    return {"machine": _machine(), "host": platform.node(), "process": os.getpid(), "began": now}


def _machine() -> str:
    """The running kernel, which containers on one machine share, as they share its locks; or the name of the host."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text().strip() if boot.exists() else platform.node()
