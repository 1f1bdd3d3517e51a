"""Objects from JSON and parquet files, which are rows of labelled data or documents."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lm.data.files import check_object, numbered_lines, parse_json, parse_object
from lm.errors import UserError

# A row's place, for messages, and its values by the file's column names.
FileRow = tuple[str, dict[str, Any]]


def read_json(file: Path, name: str) -> Iterator[FileRow]:
    """Yields the place and the values of each object: one a line, or in one array, however it is laid out.

    Raises:
      UserError: if a line or an item is not an object.
    """
    lines = numbered_lines(file)
    written = ((number, line) for number, line in lines if line.strip())
    first = next(written, None)
    if first is not None and first[1].lstrip().startswith("["):
        text = "".join(line for _, line in itertools.chain([first], lines))
        yield from _items(parse_json(text, name), name)
        return
    for number, line in itertools.chain([first] if first else [], written):
        place = f"{name}:{number}"
        yield place, parse_object(line, place)


def _items(values: Any, name: str) -> Iterator[FileRow]:
    for number, value in enumerate(values, start=1):
        place = f"{name} item {number}"
        yield place, check_object(value, place)


def read_parquet(file: Path, name: str) -> Iterator[FileRow]:
    """Yields the place and the values of each row.

    Raises:
      UserError: if it cannot be read, or pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(f"{name}: pip install pyarrow to read parquet files") from error
    number = 0
    try:
        table = parquet.ParquetFile(file)
        names = table.schema_arrow.names
        if len(set(names)) < len(names):
            raise UserError(f"{name} has two columns of one name among {', '.join(names)}: rename one")
        for batch in table.iter_batches():
            for values in batch.to_pylist():
                number += 1
                yield f"{name} row {number}", values
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"cannot read {name} as parquet ({reason:.200}): fix it, or use another scheme") from error
