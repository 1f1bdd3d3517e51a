"""Sources of labelled rows, each named by one string, `SCHEME:REST`, and how they are read.

    jsonl:FILE                     JSON lines
    csv:FILE                       comma-separated values with a header, where quotation marks may enclose a value; for
                                   .tsv, tab-separated values with quotation marks like any other character
    conll:FILE                     a word and its tag per line (the first and the last field), a blank line
                                   between sentences (Tjong Kim Sang and De Meulder 2003)
    squad:FILE                     contexts, questions and answers as JSON (Rajpurkar et al. 2016; 2018)
    tfds:NAME[/CONFIG]:SPLIT       a part of a tensorflow-datasets set, such as tfds:glue/sst2:train[:90%]

FILE may contain `*`, start with `~` or a variable such as `$LM_DATA_DIR`, and end in .gz.
"""

import csv
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm.data.files import decode, find_files, parse_object, read_lines
from lm.data.tfds import tfds_builder, tfds_rows
from lm.errors import UserError

# A row's place, for messages, and its values by the file's column names.
FileRow = tuple[str, dict[str, Any]]


def open_rows(source: str, key: str) -> Iterator[FileRow]:
    """Yields the rows of a source in order, reading them lazily.

    Args:
      source: as above.
      key: the config key that names the source, for messages.

    Raises:
      UserError: naming the key, or the file and the line, if something cannot be read.
    """
    scheme, colon, rest = source.partition(":")
    if scheme == "tfds":
        return _read_tfds(rest, key)
    if not colon or scheme not in _READERS:
        known = ", ".join(f"{name}:" for name in (*_READERS, "tfds"))
        raise UserError(f"{key} must start with one of {known}; got {source!r}")
    files = find_files(f"{key}={source}", rest)
    return (row for file in files for row in _READERS[scheme](file, _short(file)))


def _read_jsonl(file: Path, name: str) -> Iterator[FileRow]:
    for number, line in _numbered_lines(file):
        if line.strip():
            place = f"{name}:{number}"
            yield place, parse_object(line, place)


def _read_csv(file: Path, name: str) -> Iterator[FileRow]:
    tabs = file.name.removesuffix(".gz").endswith(".tsv")
    style = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {"strict": True}
    reader = csv.reader((line for _, line in _numbered_lines(file)), **style)
    header: list[str] = []
    for number, cells in _records(reader, name):
        place = f"{name}:{number}"
        if not header:
            header = _header(cells, place)
        elif len(cells) != len(header):
            raise UserError(f"{place} has {len(cells)} values, the header {len(header)}: fix or remove this line")
        else:
            yield place, dict(zip(header, cells, strict=True))


def _records(reader, name: str) -> Iterator[tuple[int, list[str]]]:
    """Non-blank records, each with the number of the line where it begins."""
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise UserError(f"{name}:{number} is not CSV ({error}): fix or remove this line") from error
        if cells is None:
            return
        if cells:
            yield number, cells


def _header(cells: list[str], place: str) -> list[str]:
    for name in cells:
        if cells.count(name) > 1:
            raise UserError(f"{place}: the header has two columns {name!r}: rename one")
    return cells


def _read_conll(file: Path, name: str) -> Iterator[FileRow]:
    words: list[str] = []
    tags: list[str] = []
    begin = 1
    for number, line in _numbered_lines(file):
        if not line.strip():
            if words:
                yield f"{name}:{begin}", {"words": words, "tags": tags}
            words, tags = [], []
        elif not line.startswith("-DOCSTART-"):
            begin = begin if words else number
            word, tag = _word_and_tag(line, f"{name}:{number}")
            words.append(word)
            tags.append(tag)
    if words:
        yield f"{name}:{begin}", {"words": words, "tags": tags}


def _word_and_tag(line: str, place: str) -> tuple[str, str]:
    fields = line.rstrip("\r\n").split("\t") if "\t" in line else line.split()
    if len(fields) < 2 or not fields[0] or not fields[-1].strip():
        raise UserError(f"{place} must have a word and its tag separated by a tab or a space, got {line.strip()!r}")
    return fields[0], fields[-1].strip()


def _read_squad(file: Path, name: str) -> Iterator[FileRow]:
    document = parse_object("".join(line for _, line in _numbered_lines(file)), name)
    try:
        for article in document["data"]:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    answers = [] if question.get("is_impossible") else question["answers"]
                    row = {"id": question["id"], "context": paragraph["context"], "question": question["question"]}
                    yield f"{name} question {question['id']}", row | {"answers": answers}
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{name} does not have SQuAD's layout, data > paragraphs > context and qas > id, question and answers"
            f" ({type(error).__name__}: {error}): fix it, or use another scheme"
        ) from error


_READERS: dict[str, Callable[[Path, str], Iterator[FileRow]]] = {
    "jsonl": _read_jsonl,
    "csv": _read_csv,
    "conll": _read_conll,
    "squad": _read_squad,
}


def _numbered_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers from 1, without the byte-order mark that spreadsheet programs write."""
    for number, line in enumerate(read_lines(file), start=1):
        yield number, line.removeprefix("\ufeff") if number == 1 else line


def _short(file: Path) -> str:
    """The path relative to the working directory, if it is inside; otherwise its last two parts."""
    inside = Path(os.path.abspath(file))
    return str(inside.relative_to(Path.cwd()) if inside.is_relative_to(Path.cwd()) else Path(*inside.parts[-2:]))


def _read_tfds(rest: str, key: str) -> Iterator[FileRow]:
    name, _, split = rest.partition(":")
    if not (name and split):
        raise UserError(f"{key}: name a set together with its split, as in tfds:glue/sst2:train; got 'tfds:{rest}'")
    builder = tfds_builder(name)
    rows = tfds_rows(builder, name, split, key)
    for i in range(len(rows)):
        place = f"tfds:{rest} row {i}"
        yield place, _plain(rows[i], builder.info.features, place)


def _plain(value: Any, feature: Any, place: str) -> Any:
    """A value of a tensorflow-datasets feature as JSON would hold it, class labels as their names."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, bytes):
        return decode(value, place)
    feature = getattr(feature, "feature", feature)  # of a sequence: of its elements
    if isinstance(value, Mapping):
        return {name: _plain(inner, feature[name], place) for name, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(inner, feature, place) for inner in value]
    if hasattr(feature, "int2str"):
        return feature.int2str(value) if value >= 0 else None  # -1 marks a withheld label
    return value
