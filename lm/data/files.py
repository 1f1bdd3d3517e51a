"""Text files: finding them by a pattern, and reading them with messages that name the place of an error."""

import codecs
import functools
import glob
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from lm.console import Console
from lm.data.compression import opened
from lm.errors import UserError

# UTF-32's little-endian mark begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


@functools.cache
def note(text: str) -> None:
    """Says once, on standard error, what was decided or skipped in reading."""
    Console(stderr=True).print(f"note: {text}")


def find_files(spec: str, pattern: str) -> list[Path]:
    """Files that match a pattern, sorted.

    Args:
      spec: what to call it in messages.
      pattern: may hold `~`, `$VARIABLE`, `*`, `?`, `[abc]` and, for any depth of subfolders, `**`. What exists under
        its literal name is meant literally, folders on the way included.

    Raises:
      UserError: if there are none, or if a variable is not set.
    """
    if not os.path.exists(pattern):
        pattern = os.path.expandvars(os.path.expanduser(pattern))
    try:
        names = glob.glob(_with_literal_parts_escaped(pattern), recursive=True)
    except (ValueError, re.error) as error:  # a NUL
        raise UserError(f"{spec} is not a path: {error}") from error
    files = sorted(Path(name) for name in names if os.path.isfile(name))
    if files:
        return files
    unset = re.match(r"\$\{?(\w+)\}?/(.*)", pattern)
    if unset:
        raise UserError(f"{spec}: set the environment variable {unset[1]} to the folder that holds {unset[2]}")
    if os.path.isdir(pattern):
        raise UserError(f"{spec} is a folder: name the files in it, as in {pattern.rstrip('/')}/**/*.txt")
    raise UserError(f"{spec} matches no file (looked from {Path.cwd()}): check the pattern; ** reaches into subfolders")


def _with_literal_parts_escaped(pattern: str) -> str:
    """The pattern with those of its first parts escaped that exist as they are written."""
    parts = pattern.split("/")
    for count in range(len(parts), 0, -1):
        start = "/".join(parts[:count])
        if start and os.path.exists(start):
            return "/".join([glob.escape(start), *parts[count:]])
    return pattern


def read_lines(file: Path) -> Iterator[str]:
    """Lines that end at a line feed only: str.splitlines would also cut at U+2028 and others that JSON may hold.

    Args:
      file: UTF-8, or UTF-16 or UTF-32 with a byte-order mark, which is not part of the text; may be compressed.

    Raises:
      UserError: if it cannot be read or decoded.
    """
    with opened(file) as stream:
        encoding = _encoding(stream, file)
        if encoding == "utf-8":
            yield from _utf8_lines(stream, file)
        else:
            try:
                yield from io.TextIOWrapper(stream, encoding, newline="\n")
            except UnicodeError as error:
                name = encoding.upper()
                raise UserError(f"{file} has {name}'s mark but is not {name}: convert it to UTF-8") from error


def numbered_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Lines of a file of rows with their numbers from 1.

    Raises:
      UserError: as `read_lines`, and for a NUL, which no row has.
    """
    for number, line in enumerate(read_lines(file), start=1):
        if "\0" in line:
            raise UserError(
                f"{file}:{number} has a NUL character: the file is damaged, or is not text; fix or remove it"
            )
        yield number, line


def _utf8_lines(stream: BinaryIO, file: Path) -> Iterator[str]:
    offset = 0
    for line in stream:
        text = decode(line, file, offset)
        yield text if offset else text.removeprefix("\ufeff")
        offset += len(line)


def _encoding(stream: Any, file: Path) -> str:
    head = stream.peek(4)[:1000]
    marked = next((encoding for mark, encoding in _MARKS.items() if head.startswith(mark)), None)
    if marked is None and _looks_like_utf16(head):
        raise UserError(f"{file} seems to be UTF-16 without a byte-order mark: convert it to UTF-8")
    return marked or "utf-8"


def _looks_like_utf16(head: bytes) -> bool:
    """Whether every second byte of mostly Latin text is 0."""
    halves = head[::2], head[1::2]
    zeros = sorted(half.count(0) / max(len(half), 1) for half in halves)
    return len(head) >= 4 and zeros[0] < 0.1 and zeros[1] > 0.5


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
      UserError: if it is not JSON, or not an object, or has a name twice.
    """
    return check_object(parse_json(text, place), place)


def parse_json(text: str, place: str) -> Any:
    """Parses a line or a file of JSON.

    Raises:
      UserError: if it is not JSON, or an object has a name twice.
    """
    try:
        return json.loads(text, object_pairs_hook=_without_repeats)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, " * ("\n" in text.rstrip()) + f"column {error.colno}"
        raise UserError(f"{place} is not JSON ({error.msg} at {where}): fix or remove it") from error
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number with thousands of digits
        raise UserError(f"{place} cannot be read as JSON ({error}): fix or remove it") from error


def check_object(value: Any, place: str) -> dict:
    """The value.

    Raises:
      UserError: if it is not a JSON object.
    """
    if not isinstance(value, dict):
        raise UserError(f"{place} must be a JSON object, got {type(value).__name__}")
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it has {repeated!r} twice")
    return values


def check_surrogates(text: str, field: str, place: str):
    """Raises UserError if a text has half a surrogate pair, which JSON allows and UTF-8 cannot encode."""
    if re.search("[\ud800-\udfff]", text):
        raise UserError(f"{place} has half a surrogate pair in {field!r}, which UTF-8 cannot hold: fix or remove it")
