"""JSON from lines of a file and from members of an archive, whatever their sizes claim to be."""

import contextlib
import importlib
import itertools
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lm.errors import UserError

_LONGEST_LINE = 2**26  # bytes
_LARGEST_FILE = 2**30
_PACKED = 200  # times that an archive may be smaller than what it holds
_SMALL = 2**26  # bytes below which it may be smaller still
# A decompressor returns whole blocks of what it was given, so it is given little at once.
_PIECE = 4096
_ZSTANDARD = 93  # number of the compression in archives, which Python knows from 3.14 on


def json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Yields a name for the place, such as "line 3", and the value of each line that is not blank.

    Raises:
      UserError: if a line is not JSON or is longer than 64 MiB.
    """
    with path.open("rb") as file:
        for number in itertools.count(1):
            line = file.readline(_LONGEST_LINE + 1)
            if not line:
                return
            if len(line) > _LONGEST_LINE:
                raise UserError(f"line {number} has more than {_LONGEST_LINE:,} bytes: it is not a line of a log")
            if line.strip():
                yield f"line {number}", parsed(line, f"line {number}")


def json_file(path: Path) -> Any:
    """The value of a whole file.

    Raises:
      UserError: if it is not JSON or is larger than 1 GiB.
    """
    if path.stat().st_size > _LARGEST_FILE:
        raise UserError(f"it has more than {_LARGEST_FILE:,} bytes: convert it, with inspect log convert --to eval")
    return parsed(path.read_bytes(), "it")


def json_members(path: Path, prefix: str) -> Iterator[tuple[str, Any]]:
    """Yields the name and the value of each JSON member of a zip archive whose name begins with `prefix`.

    Raises:
      UserError: if one is not JSON, is packed in a way that cannot be read, or unpacks to 200 times its size.
    """
    with _zipfile().ZipFile(path) as archive:
        names = dict.fromkeys(name for name in archive.namelist() if name.startswith(prefix))
        # Of two members with the same name the last one counts.
        members = [archive.getinfo(name) for name in names if name.endswith(".json")]
        _check_members(members, path.stat().st_size)
        for member in members:
            with archive.open(member) as file:
                pieces = []
                while piece := file.read(_PIECE):
                    pieces.append(piece)
            yield member.filename, parsed(b"".join(pieces), member.filename)


def parsed(content: bytes, place: str) -> Any:
    """The value of a JSON text.

    Raises:
      UserError: if it is none.
    """
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place} is not JSON ({error}): if it was cut short, copy the file again") from error


def _check_members(members: list[Any], size: int) -> None:
    """Raises UserError if what members claim cannot be true or cannot be read; `size` is that of the archive."""
    if sum(member.compress_size for member in members) > size:
        raise UserError("its members claim to be larger than the file: it is damaged, copy it again")
    if sum(member.file_size for member in members) > max(_SMALL, _PACKED * size):
        raise UserError(f"its {size:,} bytes would unpack to more than {_PACKED} times as many: it is not a log")
    for member in members:
        if member.flag_bits & 1:
            raise UserError(f"{member.filename} is encrypted: pack it without a password")
        if member.compress_type == _ZSTANDARD and not hasattr(_zipfile(), "ZIP_ZSTANDARD"):
            raise UserError("it is packed with zstd: pip install backports.zstd, or inspect log convert --to json")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, _ZSTANDARD):
            raise UserError(f"{member.filename} is compressed in an unknown way: write the log again with Inspect")


def _zipfile() -> Any:
    """Python's module, or the one that knows zstd before Python 3.14."""
    if not hasattr(zipfile, "ZIP_ZSTANDARD"):
        with contextlib.suppress(ImportError):
            return importlib.import_module("backports.zstd.zipfile")
    return zipfile
