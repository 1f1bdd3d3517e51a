"""A cache of folders that are built once: written whole or not at all, and checked when they are used.

A folder's `checksums.json` holds the size and the CRC-32 of each of its files, so that damage on the disk or in copying
is an error instead of other results. Checking reads the files once, at 1 to 3 GB/s where the disk is fast enough, which
is less than the fingerprint of the source takes at every start.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import uuid
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from lm.errors import UserError
from lm.locks import FileLock

CHECKSUMS = "checksums.json"
_CHUNK = 1 << 22
_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.([0-9a-f]{32}|lock)")


def cached(folder: Path, write: Callable[[Path], None]) -> Path:
    """Returns `folder`, created by `write` if it does not exist yet.

    It is written under a temporary name and then renamed: an interrupted build leaves nothing under the final name. One
    process builds, and others that need the folder wait for it, on other hosts too if their file system shares locks;
    where it doesn't, the later one uses the earlier one's result. What killed builds left is removed.

    Raises:
      UserError: if the cache cannot be written.
    """
    remove_abandoned(folder.parent)
    if folder.exists():
        return folder
    with _only_builder(folder):
        return folder if folder.exists() else _built(folder, write)


def _built(folder: Path, write: Callable[[Path], None]) -> Path:
    with _temporary_folder(folder) as temporary:
        write(temporary)
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.exists():  # the name was free, so it failed for another reason
                raise
    return folder


def seal(folder: Path) -> None:
    """Writes the checksums of the files in a folder."""
    sums = {file.name: checksum(file) for file in sorted(folder.iterdir())}
    (folder / CHECKSUMS).write_text(json.dumps(sums, indent=2) + "\n")


def check(folder: Path, what: str) -> None:
    """Compares the files of a sealed folder with their checksums.

    Raises:
      UserError: naming `what` the folder holds, if they differ, or a file is missing or cannot be read.
    """
    try:
        expected = json.loads((folder / CHECKSUMS).read_bytes())
        found = {file.name: checksum(file) for file in sorted(folder.iterdir()) if file.name != CHECKSUMS}
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(folder, what, str(error)) from error
    if found != expected:
        names = [name for name in found if not isinstance(expected, dict) or expected.get(name) != found[name]]
        raise _damaged(folder, what, f"{', '.join(names) or 'a file'} has changed or is missing")


def remove_abandoned(cache: Path) -> None:
    """Removes what builders left that were killed, folders and locks; those that are alive hold theirs."""
    with contextlib.suppress(OSError), _lock(cache) as alone:
        for path in cache.iterdir() if alone else ():
            if _TEMPORARY.fullmatch(path.name):
                with contextlib.suppress(OSError), _lock(path) as is_abandoned:
                    if is_abandoned and path.is_dir():
                        shutil.rmtree(path, ignore_errors=True)
                    elif is_abandoned:
                        path.unlink()


def _damaged(folder: Path, what: str, reason: str) -> UserError:
    return UserError(f"the {what} {folder} is damaged ({reason}): delete it and run again")


def checksum(file: Path) -> dict[str, int]:
    """Size and CRC-32 of a file."""
    size = crc = 0
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return {"bytes": size, "crc32": crc}


@contextlib.contextmanager
def _only_builder(folder: Path) -> Iterator[None]:
    """A context that only one process at a time is in, for each folder."""
    path = folder.with_name(f".{folder.name}.lock")
    lock = FileLock(path)
    with contextlib.suppress(OSError):  # a cache that cannot be written is told later; some file systems have no locks
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)  # who waits for it holds the file, and finds the folder
        lock.release()


@contextlib.contextmanager
def _temporary_folder(folder: Path) -> Iterator[Path]:
    """A locked folder beside the given one, removed at the end if it is still there."""
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    with contextlib.ExitStack() as stack:
        try:
            temporary.parent.mkdir(parents=True, exist_ok=True)
            with _lock(temporary.parent, wait=True):  # so that nobody finds it unlocked
                temporary.mkdir()
                stack.callback(shutil.rmtree, temporary, ignore_errors=True)
                stack.enter_context(_lock(temporary))
        except OSError as error:
            raise UserError(
                f"config.data.cache_dir: cannot write to {folder.parent} ({error.strerror}): set it, or $LM_CACHE_DIR, "
                "to a writable folder"
            ) from error
        yield temporary


@contextlib.contextmanager
def _lock(path: Path, wait: bool = False) -> Iterator[bool]:
    """Holds a lock that the kernel releases when the process ends, however it ends; yields whether it is held.

    Some network file systems have no such locks. There nothing is held, and nothing removed.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        held = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            held = False
        yield held
    finally:
        os.close(descriptor)
