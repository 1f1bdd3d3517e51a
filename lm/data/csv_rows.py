"""Rows of CSV and TSV files, in the dialects that spreadsheets, databases and pandas write.

What a config leaves open is decided by what the whole file allows; what it allows twice is refused.
"""

import csv
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lm.data.compression import plain_name
from lm.data.config import ExamplesConfig
from lm.data.files import note, numbered_lines
from lm.data.object_files import FileRow
from lm.errors import UserError

_DELIMITERS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}
_ENCLOSED = re.compile(r'"(?:[^"]|"")*"')

# The line where a record begins, and its values.
Record = tuple[int, list[str]]


def read_csv(file: Path, name: str, config: ExamplesConfig, group: str = "config.data") -> Iterator[FileRow]:
    """Yields the place and the values of each row.

    Args:
      file: with a header, unless the config names the columns.
      name: what to call it.
      config: the dialect.
      group: of the config keys that set the dialect, for messages.

    Raises:
      UserError: if the file is not CSV, or may be read in two ways.
    """
    csv.field_size_limit(sys.maxsize)
    lines = [line for _, line in numbered_lines(file)]
    first, delimiter = _delimiter(lines, plain_name(file), name, config, group)
    lines = lines[first:]
    quoted = _is_quoted(lines, delimiter, name, config.quoting, group)
    records = _records(lines, delimiter, quoted, name, first)
    header = list(config.header) or _header(records, name)
    for number, cells in records:
        if cells == list(config.header):
            raise UserError(f"{name}:{number} is a header: set {group}.header=()")
        yield f"{name}:{number}", _row(cells, header, f"{name}:{number}", f"{group}.header" * bool(config.header))


def separators_within(names: Iterable[str], column: str, group: str) -> str:
    """A hint, if a column's name is found within another between delimiters; else nothing."""
    for delimiter, words in _DELIMITERS.items():
        if any(column in [part.strip(' "') for part in name.split(delimiter)] for name in names if delimiter in name):
            setting = "tab" if delimiter == "\t" else delimiter
            return f"its values seem to be separated by {words}: set {group}.delimiter='{setting}'"
    return ""


def _delimiter(lines: Sequence[str], file_name: str, name: str, config: ExamplesConfig, group: str) -> tuple[int, str]:
    """How many lines come before the first record, and the delimiter."""
    declared = re.fullmatch(r"sep=(.)\s*", lines[0]) if lines else None  # as Excel writes and reads
    if config.delimiter:
        return int(bool(declared)), {"tab": "\t"}.get(config.delimiter, config.delimiter)
    if declared:
        return 1, declared[1]
    usual = "\t" if file_name.endswith((".tsv", ".tab")) else ","
    first = next((line for line in lines if line.strip()), "")
    widths = {one: _width(first, one) for one in (usual, *_DELIMITERS)}
    expected = [one for one, width in widths.items() if (width == len(config.header) if config.header else width > 1)]
    if usual in expected or not expected:
        return 0, usual
    if len(expected) > 1:
        found = " or ".join(_DELIMITERS[one] for one in expected)
        raise UserError(f"{name}: its values may be separated by {found}: set {group}.delimiter")
    note(f"{name}: values are separated by {_DELIMITERS[expected[0]]}")
    return 0, expected[0]


def _width(line: str, delimiter: str) -> int:
    try:
        return len(next(csv.reader([line], delimiter=delimiter), []))
    except csv.Error:
        return 0


def _is_quoted(lines: Sequence[str], delimiter: str, name: str, setting: str, group: str) -> bool:
    """Whether quotation marks enclose values rather than being part of them.

    Comma-separated files are quoted. Tab-separated ones may be either: spreadsheets and pandas quote in them what they
    have to, other programs nothing.
    """
    if setting or delimiter != "\t":
        return setting != "none"
    marked = [cell for line in lines for cell in line.rstrip("\r\n").split(delimiter) if '"' in cell]
    fits = {quoted: _fits(lines, delimiter, quoted) for quoted in (True, False)}
    if not marked or fits[True] != fits[False]:
        return bool(marked) and fits[True]
    enclosed = [cell for cell in marked if _ENCLOSED.fullmatch(cell)]
    escaping = [cell for cell in enclosed if '""' in cell[1:-1]]
    if not enclosed:
        return False
    if len(enclosed) == len(marked) and (escaping or _ENCLOSED.fullmatch(lines[0].split(delimiter)[0])):
        return True
    if len(enclosed) < len(marked) and not escaping:
        return False
    raise UserError(
        f"{name}: do quotation marks, as in {enclosed[0]!r:.60}, enclose values or belong to them? Set "
        f"{group}.quoting to 'standard' or 'none'"
    )


def _fits(lines: Sequence[str], delimiter: str, quoted: bool) -> bool:
    """Whether all records have the first one's number of values."""
    try:
        records = [cells for _, cells in _records(lines, delimiter, quoted, "", 0)]
    except UserError:
        return False
    return all(len(_without_empty_end(cells, len(records[0]))) == len(records[0]) for cells in records)


def _records(lines: Sequence[str], delimiter: str, quoted: bool, name: str, before: int) -> Iterator[Record]:
    """Records that are not blank."""
    style: dict[str, Any] = {"strict": True} if quoted else {"quoting": csv.QUOTE_NONE}
    reader = csv.reader(lines, delimiter=delimiter, **style)
    while True:
        number = before + reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            if "new-line character" in str(error):
                raise UserError(f"{name}:{number} has a carriage return inside: end lines by line feeds") from error
            raise UserError(f"{name}:{number} is not CSV ({error}): fix or remove this line") from error
        if cells is None:
            return
        if any(cell.strip() for cell in cells):
            yield number, cells


def _header(records: Iterator[Record], name: str) -> list[str]:
    number, cells = next(records, (1, []))
    header = [cell.strip() for cell in cells]
    repeated = next((cell for cell in header if cell and header.count(cell) > 1), None)
    if repeated is not None:
        raise UserError(f"{name}:{number}: the header has two columns {repeated!r}: rename one")
    return header


def _row(cells: list[str], header: list[str], place: str, setting: str) -> dict[str, Any]:
    cells = _without_empty_end(cells, len(header))
    if len(cells) != len(header):
        way_out = f", or name the columns of this file in {setting}" if setting else ""
        raise UserError(f"{place} has {len(cells)} values, the header {len(header)}: fix or remove this line{way_out}")
    return {column: cell for column, cell in zip(header, cells, strict=True) if column}


def _without_empty_end(cells: list[str], width: int) -> list[str]:
    """The values without empty ones beyond the width, as delimiters at the ends of lines make them."""
    return cells if any(cell.strip() for cell in cells[width:]) else cells[:width]
