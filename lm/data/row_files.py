"""Sources of labelled rows, each named by one string, `SCHEME:REST`, and how they are read.

    jsonl:FILE                     JSON lines, or one JSON array of objects
    csv:FILE                       values separated by commas, semicolons, tabs or bars, with a header (`csv_rows`)
    conll:FILE                     a word and its tags per line, a blank line between sentences (`conll_rows`; Tjong Kim
                                   Sang and De Meulder 2003)
    parquet:FILE                   Apache Parquet, read by pyarrow
    squad:FILE                     contexts, questions and answers as JSON (Rajpurkar et al. 2016; 2018)
    tfds:NAME[/CONFIG]:SPLIT       a part of a tensorflow-datasets set, such as tfds:glue/sst2:train[:90%]

FILE may contain `*`, start with `~` or a variable such as `$LM_DATA_DIR`, and be compressed (.gz, .bz2, .xz, .zst).
"""

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm.data.config import ExamplesConfig
from lm.data.conll_rows import read_conll
from lm.data.csv_rows import read_csv
from lm.data.files import decode, find_files, numbered_lines, parse_object
from lm.data.object_files import FileRow, read_json, read_parquet
from lm.data.tfds import read_row, tfds_builder, tfds_rows
from lm.errors import UserError


def open_rows(
    source: str, key: str, columns: Mapping[str, str], optional: Collection[str], config: ExamplesConfig
) -> Iterator[FileRow]:
    """Yields the rows of a source in order, reading them lazily.

    Args:
      source: as above.
      key: the config key that names the source, for messages.
      columns: the file's column names by the task's.
      optional: the task's columns that may be missing.
      config: the dialect of CSV files.

    Raises:
      UserError: naming the key, or the file and the line, if something cannot be read.
    """
    scheme, colon, rest = source.partition(":")
    if scheme == "tfds":
        return _read_tfds(rest, key)
    group = key.rpartition(".")[0]
    readers: dict[str, Callable[[Path, str], Iterator[FileRow]]] = {
        "jsonl": read_json,
        "csv": lambda file, name: read_csv(file, name, config, group),
        "conll": lambda file, name: read_conll(file, name, columns, optional, group),
        "parquet": read_parquet,
        "squad": _read_squad,
    }
    if not colon or scheme not in readers:
        known = ", ".join(f"{name}:" for name in (*readers, "tfds"))
        raise UserError(f"{key} must start with one of {known}; got {source!r}")
    files = find_files(f"{key}={source}", rest)
    return (row for file in files for row in readers[scheme](file, _short(file)))


def _read_squad(file: Path, name: str) -> Iterator[FileRow]:
    document = parse_object("".join(line for _, line in numbered_lines(file)), name)
    try:
        for article in document["data"]:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    place = f"{name} question {question['id']}"
                    row = {"id": question["id"], "context": paragraph["context"], "question": question["question"]}
                    yield place, row | _squad_answers(question, place)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{name} does not have SQuAD's layout, data > paragraphs > context and qas > id, question and answers"
            f" ({type(error).__name__}: {error}): fix it, or use another scheme"
        ) from error


def _squad_answers(question: dict[str, Any], place: str) -> dict[str, list[Any]]:
    """The column of answers; none for a question that says nothing of them, as in files to predict."""
    impossible = question.get("is_impossible", False)
    if not isinstance(impossible, bool):
        raise UserError(f"{place}: 'is_impossible' must be true or false, got {impossible!r:.40}: fix this question")
    if not impossible:
        return {"answers": question["answers"]} if "answers" in question else {}
    if question.get("answers"):
        raise UserError(f"{place} has answers, but its 'is_impossible' is true: fix this question")
    return {"answers": []}


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
        yield place, _plain(read_row(rows, i, place), builder.info.features, place)


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
