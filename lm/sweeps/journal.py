"""The journal of a sweep: Optuna's, whose lines carry checksums here.

A flipped bit in a number would otherwise be another result.
"""

import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend

from lm.locks import FileLock

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


def _checksum(log: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps({name: log[name] for name in log if name != _CHECKSUM}, sort_keys=True).encode())


def _drop_torn_line(journal: Path) -> None:
    """Truncates an incomplete last line, which would make the journal unreadable."""
    if not journal.exists():
        return
    content = journal.read_bytes()
    if content and not content.endswith(b"\n"):
        os.truncate(journal, content.rfind(b"\n") + 1)
