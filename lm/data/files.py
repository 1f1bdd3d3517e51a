"""Text files: finding them by a pattern, and reading them with messages that name the place of an error."""

import glob
import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from lm.errors import UserError


def find_files(spec: str, pattern: str) -> list[Path]:
    """Files that match a pattern, sorted.

    Args:
      spec: what to call it in messages.
      pattern: may hold `~`, `$VARIABLE`, `*` and, for any depth of subfolders, `**`.

    Raises:
      UserError: if there are none, or if a variable is not set.
    """
    pattern = os.path.expandvars(os.path.expanduser(pattern))
    files = sorted(Path(name) for name in glob.glob(pattern, recursive=True) if os.path.isfile(name))
    unset = re.match(r"\$\{?(\w+)\}?/(.*)", pattern)
    if not files and unset:
        raise UserError(f"{spec}: set the environment variable {unset[1]} to the folder that holds {unset[2]}")
    if not files:
        raise UserError(
            f"{spec} matches no file (looked from {Path.cwd()}): check the pattern; ** reaches into subfolders"
        )
    return files


def read_lines(file: Path) -> Iterator[str]:
    """Lines that end at a line feed only: str.splitlines would also cut at U+2028 and others that JSON may hold.

    Args:
      file: UTF-8; gzipped if its name ends in .gz.

    Raises:
      UserError: if it cannot be read or is not UTF-8.
    """
    offset = 0
    try:
        with (gzip.open if file.suffix == ".gz" else open)(file, "rb") as stream:
            for line in stream:
                yield decode(line, file, offset)
                offset += len(line)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}; fix it") from error


def decode(data: bytes, place: Path | str, offset: int = 0) -> str:
    """Decodes UTF-8 bytes that begin at byte `offset` of a place.

    Raises:
      UserError: if they are not UTF-8.
    """
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        position = offset + error.start
        raise UserError(f"{place} is not UTF-8 at byte {position}: convert it to UTF-8, or leave it out") from error


def parse_object(text: str, place: str) -> dict:
    """Parses the JSON object in a line or a file.

    Raises:
      UserError: if it is not JSON, or not an object.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, " * ("\n" in text.rstrip()) + f"column {error.colno}"
        raise UserError(f"{place} is not JSON ({error.msg} at {where}): fix or remove it") from error
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number with thousands of digits
        raise UserError(f"{place} cannot be read as JSON ({error}): fix or remove it") from error
    if not isinstance(value, dict):
        raise UserError(f"{place} must be a JSON object, got {type(value).__name__}")
    return value


def check_surrogates(text: str, field: str, place: str):
    """Raises UserError if a text has half a surrogate pair, which JSON allows and UTF-8 cannot encode."""
    if re.search("[\ud800-\udfff]", text):
        raise UserError(f"{place} has half a surrogate pair in {field!r}, which UTF-8 cannot hold: fix or remove it")
