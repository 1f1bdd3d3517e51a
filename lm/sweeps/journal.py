"""A study in a journal: Optuna's, whose lines carry checksums here.

A flipped bit in a number would otherwise be another result.

    study.journal   the study, in the format of Optuna's journal storage (optuna-dashboard reads it)
    study.lock      held while a process takes a trial
    workers/        one file per trial, locked while a live process works on it

The kernel releases the locks of a process that dies, however it dies.
"""

import json
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import FrozenTrial

from lm.errors import UserError
from lm.locks import FileLock, ProcessLock

_CHECKSUM = "crc32"


class CheckedJournal(JournalFileBackend):
    """Lines without a checksum, as earlier versions wrote them, are accepted."""

    def __init__(self, path: Path, lock: FileLock):
        """Opens a journal, without an incomplete last line that a crash may have left."""
        locks_like_optuna: Any = lock  # the base class of Optuna's locks is private
        with lock:
            _drop_torn_line(path)
        super().__init__(str(path), locks_like_optuna)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Writes entries."""
        super().append_logs([{**log, _CHECKSUM: _checksum(log)} for log in logs])

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:  # type: ignore[override]  # a generator
        """Reads entries from a number on.

        Raises:
          ValueError: if one differs from what was written.
        """
        for number, log in enumerate(super().read_logs(log_number_from), log_number_from + 1):
            if not isinstance(log, dict) or log.pop(_CHECKSUM, None) not in (None, _checksum(log)):
                raise ValueError(f"line {number} differs from what was written")
            yield log


class Journal:
    """The study of a directory, shared by processes on one machine or one file system; see `lm.sweeps.study.Home`."""

    def __init__(self, directory: Path):
        """Opens nothing yet."""
        self._directory, self._lock = directory, FileLock(directory / "study.lock")

    def lock(self) -> FileLock:
        """Held while a process takes a trial."""
        return self._lock

    def open(self, **how: Any) -> optuna.Study:
        """Opens or creates the study.

        Raises:
          UserError: if the journal cannot be read.
        """
        (self._directory / "workers").mkdir(exist_ok=True)
        journal, journal_lock = self._directory / "study.journal", FileLock(self._directory / "study.journal.lock")
        with self._lock:
            try:
                self.storage = JournalStorage(CheckedJournal(journal, journal_lock))
                return optuna.create_study(storage=self.storage, study_name="sweep", load_if_exists=True, **how)
            except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
                raise UserError(f"{journal} is damaged ({error}): use another --workdir") from error

    def hold(self, number: int) -> ProcessLock:
        """Makes a new trial that of this process."""
        lock = self._worker_lock(number)
        lock.acquire()
        return lock

    def abandoned(self, running: Sequence[FrozenTrial]) -> Iterator[tuple[int, ProcessLock]]:
        """Those of the running trials that no live process holds, each held by this one from then on."""
        for trial in running:
            lock = self._worker_lock(trial.number)
            if lock.acquire():
                yield trial.number, lock

    def _worker_lock(self, number: int) -> ProcessLock:
        return ProcessLock(self._directory / "workers" / f"{number}.lock")


def _checksum(log: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps({name: log[name] for name in log if name != _CHECKSUM}, sort_keys=True).encode())


def _drop_torn_line(journal: Path) -> None:
    """Truncates an incomplete last line, which would make the journal unreadable."""
    if not journal.exists():
        return
    content = journal.read_bytes()
    if content and not content.endswith(b"\n"):
        os.truncate(journal, content.rfind(b"\n") + 1)
