"""Atomic writing of files, JSON with error messages that name the file, and the cache directory."""

import contextlib
import glob
import hashlib
import json
import math
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lm.errors import UserError

# A temporary file that was not written to for so long belongs to a killed process.
_LEFT_OVER_SECONDS = 3600


def cache_directory() -> Path:
    """The folder for files that can be regenerated: `$LM_CACHE_DIR`, else `~/.cache/calibrated_lm`.

    A user without a home directory gets a folder of their own in the temporary directory.
    """
    if configured := os.environ.get("LM_CACHE_DIR"):
        return Path(configured).expanduser()
    try:
        return Path.home() / ".cache" / "calibrated_lm"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"calibrated_lm-{os.getuid()}"


def is_plain_name(name: str) -> bool:
    """Whether a name can begin the name of a file: without folders, not hidden, printable and not too long."""
    folders = "/" in name or "\\" in name
    return bool(name) and not folders and not name.startswith(".") and name.isprintable() and len(name.encode()) <= 100


def check_writable(folder: Path, name: str) -> None:
    """Checks, without writing anything, that a folder can be written or created.

    Args:
      folder: perhaps missing, as its parents may be.
      name: how to call it in messages.

    Raises:
      UserError: if not.
    """
    nearest = folder.absolute()
    try:
        while not nearest.exists() and nearest != nearest.parent:
            nearest = nearest.parent
    except OSError as error:  # as for a name that is too long
        raise UserError(f"{name}: {error.strerror}") from error
    if not nearest.is_dir():
        raise UserError(f"{name}: {nearest} is a file, not a directory")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"{name}: no permission to write in {nearest}")


@contextlib.contextmanager
def written_atomically(path: Path) -> Iterator[Path]:
    """Yields a temporary path to write to, which replaces `path` on success and is removed otherwise.

    A partial file is never visible, and two writers never share a temporary file. The temporary path has the suffix of
    `path`, because some libraries choose a format by it. Those that killed writers of `path` left are removed.
    """
    _remove_left_over(path)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _remove_left_over(path: Path) -> None:
    pattern = f".{glob.escape(path.stem)}.{'[0-9a-f]' * 32}{glob.escape(path.suffix)}"
    for old in path.parent.glob(pattern):
        with contextlib.suppress(OSError):  # another process may have removed it
            if time.time() - old.stat().st_mtime > _LEFT_OVER_SECONDS:
                old.unlink()


@contextlib.contextmanager
def as_before_on_failure(folder: Path) -> Iterator[None]:
    """Removes what was added to a folder, and the folder if it was missing, if anything fails inside."""
    was_there = folder.is_dir()
    before = set(folder.iterdir()) if was_there else set()
    try:
        yield
    except BaseException:
        for path in set(folder.iterdir()) - before if folder.is_dir() else ():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        if not was_there:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file atomically; text as UTF-8."""
    with written_atomically(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Any) -> None:
    """Writes a value, converted by `json_value`, as indented JSON, atomically."""
    write_atomically(path, json.dumps(json_value(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def json_value(value: Any) -> Any:
    """The value in JSON's types: text as names, null for numbers that are not finite, plain numbers for NumPy's."""
    if isinstance(value, dict):
        return {str(name): json_value(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def with_digest(record: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a JSON object with a digest of itself, which shows whether a value was changed."""
    return {**json.loads(json.dumps(record)), "digest": _digest(record)}


def is_unchanged(record: Mapping[str, Any]) -> bool:
    """Whether an object that `with_digest` made is still the same; not if its digest is missing."""
    try:
        return record.get("digest") == _digest({name: value for name, value in record.items() if name != "digest"})
    except RecursionError:  # nested too deeply to have been written
        return False


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(record, sort_keys=True).encode(), digest_size=16).hexdigest()


def file_digest(path: Path) -> str:
    """A digest of a file's bytes.

    Raises:
      UserError: if it cannot be read.
    """
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, with its line breaks as they are.

    Raises:
      UserError: if the file cannot be read or is not UTF-8.
    """
    try:
        return path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """Reads the object in a JSON file.

    Raises:
      UserError: if the file cannot be read or holds something else.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} must be a JSON object: it is damaged")
    return value


def read_json(path: Path) -> Any:
    """Reads the value in a JSON file.

    Raises:
      UserError: if the file cannot be read or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error
