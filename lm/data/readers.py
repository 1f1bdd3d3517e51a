"""What a source of documents is, and those that are read from files, each with one function."""

import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lm.data.config import DataConfig, Split
from lm.data.files import check_surrogates, find_files, read_lines
from lm.data.object_files import FileRow, read_json, read_parquet
from lm.errors import UserError

_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test"}


class Reader(Protocol):
    """What one source string stands for."""

    @property
    def has_splits(self) -> bool:
        """Whether the source has training and validation splits of its own."""
        ...

    @property
    def files(self) -> Sequence[Path]:
        """All files that hold the documents, in reading order."""
        ...

    def documents(self, split: Split) -> Iterator[str]:
        """Yields the documents of a split, or all of them where the source has no splits of its own."""
        ...


@dataclass(frozen=True)
class FileReader:
    """Files that one function reads into documents."""

    files: Sequence[Path]
    read: Callable[[Path], Iterator[str]]
    has_splits: bool = False

    def documents(self, split: Split) -> Iterator[str]:
        """Yields the documents of all files in order, whatever the split."""
        for file in self.files:
            yield from self.read(file)


def python_source(rest: str, config: DataConfig) -> Reader:
    """`python:stdlib`: the standard library of the running Python, without its tests.

    Raises:
      UserError: for anything else than stdlib.
    """
    if rest != "stdlib":
        raise UserError(f"config.data.source: the only python: source is python:stdlib, got 'python:{rest}'")
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [file for file in root.rglob("*.py") if not _NOT_LIBRARY & set(file.relative_to(root).parts)]
    return FileReader(sorted(files), _whole_file)


def text_files(pattern: str, config: DataConfig) -> Reader:
    """`text:GLOB`: one document a file, or one between blank lines.

    Raises:
      UserError: if there are no such files.
    """
    by_line = config.document_separator == "blank_line"
    return FileReader(find_files(f"text:{pattern}", pattern), _blank_line_documents if by_line else _whole_file)


def json_objects(pattern: str, config: DataConfig) -> Reader:
    """`jsonl:GLOB`: one document a line, or an item of an array, in the field `config.field`.

    Raises:
      UserError: if there are no such files.
    """
    return FileReader(find_files(f"jsonl:{pattern}", pattern), lambda file: _fields(read_json, file, config.field))


def parquet_files(pattern: str, config: DataConfig) -> Reader:
    """`parquet:GLOB`: one document a row, in the column `config.field`.

    Raises:
      UserError: if there are no such files.
    """
    return FileReader(find_files(f"parquet:{pattern}", pattern), lambda file: _fields(read_parquet, file, config.field))


def _whole_file(file: Path) -> Iterator[str]:
    if text := "".join(read_lines(file)):
        yield text


def _blank_line_documents(file: Path) -> Iterator[str]:
    paragraph: list[str] = []
    for line in read_lines(file):
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            yield "".join(paragraph)
            paragraph = []
    if paragraph:
        yield "".join(paragraph)


def _fields(read: Callable[[Path, str], Iterator[FileRow]], file: Path, field: str) -> Iterator[str]:
    for place, row in read(file, str(file)):
        if not isinstance(row.get(field), str):
            raise UserError(no_field(place, field, row))
        check_surrogates(row[field], field, place)
        yield row[field]


def no_field(place: str, field: str, row: dict) -> str:
    """One line about a row that lacks its text."""
    problem = f"the field {field!r} is not text" if field in row else f"there is no field {field!r}"
    return f"{place}: {problem}; set config.data.field to one of {', '.join(map(str, row))}"
