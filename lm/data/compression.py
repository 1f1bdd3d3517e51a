"""Files opened for reading as bytes, decompressed where they are compressed."""

import bz2
import contextlib
import gzip
import importlib
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from lm.errors import UserError


@contextlib.contextmanager
def opened(file: Path) -> Iterator[BinaryIO]:
    """Opens a file that may be compressed, as its suffix or its first bytes say (gzip, bzip2, xz, zstd).

    Raises:
      UserError: if it cannot be read, or is an archive.
    """
    try:
        with _opener(file)(file) as stream:
            yield stream
    except _read_errors() as error:
        raise UserError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from error


def plain_name(file: Path) -> str:
    """The file's name without the suffix of a compressed file."""
    return file.stem if file.suffix in _OPENERS else file.name


def _opener(file: Path) -> Callable[[Path], Any]:
    if file.suffix in _OPENERS:
        return _OPENERS[file.suffix]
    with file.open("rb") as stream:
        head = stream.read(6)
    if head.startswith(b"PK\x03\x04"):
        raise UserError(f"{file} is a zip archive or a spreadsheet: unpack it, or export it as CSV")
    return next((_OPENERS[suffix] for suffix, magic in _MAGIC.items() if head.startswith(magic)), _plain)


def _plain(file: Path) -> BinaryIO:
    return file.open("rb")


def _zstd(file: Path) -> Any:
    module = _zstd_module()
    if module is None:
        raise UserError(f"{file}: pip install backports.zstd to read zstd files, or decompress it")
    return module.open(file, "rb")


def _zstd_module() -> Any:
    """Python 3.14's module or its backport, else None. The package zstandard does not notice truncated files."""
    for name in ("compression.zstd", "backports.zstd"):
        with contextlib.suppress(ImportError):
            return importlib.import_module(name)
    return None


def _read_errors() -> tuple[type[Exception], ...]:
    module = _zstd_module()
    known = (OSError, EOFError, zlib.error, lzma.LZMAError)
    return known if module is None else (*known, module.ZstdError)


_OPENERS: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _zstd}
_MAGIC = {".gz": b"\x1f\x8b", ".bz2": b"BZh", ".xz": b"\xfd7zXZ\x00", ".zst": b"\x28\xb5\x2f\xfd"}
