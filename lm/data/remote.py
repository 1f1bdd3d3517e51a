"""Files by a local path or a URL: `gs://BUCKET/...`, `s3://BUCKET/...` and whatever else fsspec knows."""

import contextlib
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import fsspec

from lm.errors import UserError
from lm.files import write_atomically

_REMOTE = re.compile(r"[a-z][a-z0-9+.-]+://")
_EXTRAS = {"gs": "gcs", "gcs": "gcs", "s3": "s3"}


def is_remote(name: str) -> bool:
    """Whether a name is a URL. `file://` counts as one."""
    return bool(_REMOTE.match(name))


def join(folder: str, *names: str) -> str:
    """A path in a folder, either of them perhaps remote."""
    return "/".join((folder.rstrip("/"), *names))


def find_remote(pattern: str) -> list[str]:
    """URLs of the files that match a pattern with `*`, `?`, `[abc]` and `**`, sorted.

    Raises:
      UserError: if there are none, or the place cannot be reached.
    """
    with reported(pattern) as (system, path):
        found = [name for name in sorted(system.glob(path)) if system.isfile(name)]
    if not found:
        raise UserError(f"{pattern} matches no file: check the pattern; ** reaches into subfolders")
    return [system.unstrip_protocol(name) for name in found]


def sizes(folder: str) -> dict[str, int]:
    """Bytes of each file in a folder by name, from one listing; none if the folder is missing."""
    with reported(folder) as (system, path):
        system.invalidate_cache()  # other processes write there
        try:
            listed = system.ls(path, detail=True)
        except FileNotFoundError:
            return {}
    return {each["name"].rpartition("/")[2]: each["size"] for each in listed if each["type"] == "file"}


def size(name: str) -> int:
    """Bytes of a file."""
    with reported(name) as (system, path):
        return system.size(path)


def read_bytes(name: str) -> bytes | None:
    """The content of a file, or None if it is missing."""
    with reported(name) as (system, path):
        try:
            return system.cat_file(path)
        except FileNotFoundError:
            return None


def read_all(names: Sequence[str]) -> list[bytes]:
    """The content of files in one place, read at once where the store can."""
    with reported(names[0]) as (system, _):
        paths = [fsspec.core.url_to_fs(name if is_remote(name) else _absolute(name))[1] for name in names]
        found = system.cat(paths)
    return [found[path] for path in paths] if isinstance(found, dict) else [found]


def remove(name: str) -> None:
    """Removes a file if it is there."""
    with reported(name) as (system, path), contextlib.suppress(FileNotFoundError):
        system.rm_file(path)


def write_bytes(name: str, content: bytes) -> None:
    """Writes a file, whole or not at all, and the folder that it is in."""
    with reported(name) as (system, path):
        system.makedirs(path.rpartition("/")[0], exist_ok=True)
        if _is_local(system):
            write_atomically(Path(path), content)
        else:
            system.pipe_file(path, content)


def upload(source: Path, name: str) -> None:
    """Copies a local file to a place that may be remote."""
    with reported(name) as (system, path):
        system.makedirs(path.rpartition("/")[0], exist_ok=True)
        system.put_file(str(source), path)


def download(name: str, target: Path) -> None:
    """Copies a file that may be remote to a local place."""
    with reported(name) as (system, path):
        system.get_file(path, str(target))


@contextlib.contextmanager
def local_copy(name: str) -> Iterator[Path]:
    """A local path with the content of a file: itself, or a temporary copy of a remote one."""
    if not is_remote(name):
        yield Path(name)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name.rpartition("/")[2]
        download(name, path)
        try:
            yield path
        except UserError as error:
            raise UserError(str(error).replace(str(path), name)) from error


@contextlib.contextmanager
def reported(name: str) -> Iterator[tuple[Any, str]]:
    """The file system and the path of a name; turns errors inside into one line.

    Raises:
      UserError: if the scheme is unknown, its package is missing, or reading or writing fails.
    """
    try:
        yield fsspec.core.url_to_fs(name if is_remote(name) else _absolute(name))
    except ImportError as error:
        extra = _EXTRAS.get(name.partition(":")[0])
        instead = f"pip install 'calibrated-lm[{extra}]'" if extra else str(error)
        raise UserError(f"{name}: another package is needed: {instead}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{name}: {reason:.300}") from error


def _absolute(name: str) -> str:
    return str(Path(name).expanduser().absolute())


def _is_local(system: Any) -> bool:
    return "file" in (system.protocol if isinstance(system.protocol, tuple) else (system.protocol,))
