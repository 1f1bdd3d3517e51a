"""What an error says about a checkpoint: its files are damaged, or the machine cannot read or write them now."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from lm.errors import UserError

# A file that is missing, or is a folder, is damage.
_DAMAGE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_CHUNK = 2**24


def first_line(error: BaseException) -> str:
    """The first line of the message, cut, or the kind of the error if it has none."""
    lines = str(error).splitlines()
    return lines[0].split(". See full TensorStore")[0][:200] if lines else type(error).__name__


def check_damaged(folder: Path, error: BaseException) -> None:
    """Returns if an error in reading a checkpoint proves that its files are damaged.

    Raises:
      UserError: if its files may be whole, but cannot be read, or there is too little memory.
    """
    for cause in _causes(error):
        if isinstance(cause, MemoryError) or "RESOURCE_EXHAUSTED" in str(cause):
            raise UserError(f"there is not enough memory to read {folder} ({first_line(cause)})") from error
        if isinstance(cause, OSError) and not isinstance(cause, _DAMAGE):
            raise _unreadable(folder, cause) from error
    path = folder
    try:
        for path in _files(folder):
            with path.open("rb") as file:
                while file.read(_CHUNK):
                    pass
    except _DAMAGE:
        return
    except OSError as problem:
        raise _unreadable(path, problem) from error


def reason_not_written(error: BaseException) -> str | None:
    """Why a file could not be written, or None if the error is of another kind."""
    for cause in _causes(error):
        if isinstance(cause, OSError):
            return cause.strerror or str(cause)
        if code := re.search(r"os_error_code='(\d+)'", str(cause)):  # as TensorStore has it
            return os.strerror(int(code[1]))
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and all that it came from."""
    waiting, seen = [error], set()
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        inner = each.exceptions if isinstance(each, BaseExceptionGroup) else ()
        waiting += [cause for cause in (each.__cause__, each.__context__, *inner) if cause is not None]


def _files(folder: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise error

    for parent, _, names in os.walk(folder, onerror=fail):
        yield from (Path(parent, name) for name in names)


def _unreadable(folder: Path, error: OSError) -> UserError:
    where = error.filename or folder
    return UserError(f"{where} cannot be read: {error.strerror or error}; nothing was changed")
