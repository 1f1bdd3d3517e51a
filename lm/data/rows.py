"""Rows of labelled data: read from their sources (`lm.data.row_files`), checked, and split.

A row is a dict by the task's column names. The name determines what a column must hold:

    options            list of two or more different str to choose from; `label` is one of them, its letter or number
    label, id          str, without white space around it; files may also hold an integer
    words, tags        lists of str, equally long
    answers            [{"text": str, "start": int}, ...], each found at its character in `context`; empty if there is
                       no answer. Files may also say `answer_start`, and give a list of each instead.
    answer             list of the texts that are accepted as an answer, at least one; files may also hold a single
                       text, or answers as above
    place              where the row comes from, for messages
    any other name     non-empty str
"""

import dataclasses
import functools
import hashlib
import json
import re
import unicodedata
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lm.data.cleaning import STEPS
from lm.data.config import ExamplesConfig
from lm.data.csv_rows import separators_within
from lm.data.files import check_surrogates, note
from lm.data.row_files import open_rows
from lm.errors import UserError

Row = dict[str, Any]

# Columns that hold what a task predicts.
TARGETS = ("label", "tags", "answers", "answer", "target", "completion")


def read_rows(
    source: str,
    columns: Mapping[str, str],
    key: str,
    optional: Collection[str] = (),
    config: ExamplesConfig = ExamplesConfig(),
) -> list[Row]:
    """Reads the rows of a source, in order.

    Args:
      source: as `lm.data.row_files` reads it.
      columns: the file's column names by the task's.
      key: the config key that names the source, for messages.
      optional: the task's columns that may be missing.
      config: the dialect of CSV files; its own sources are not read.

    Raises:
      UserError: naming the key, or the file and the line, if something cannot be read or is invalid.
    """
    rows = [
        _row(place, values, columns, optional, source, key)
        for place, values in open_rows(source, key, columns, optional, config)
    ]
    if not rows:
        raise UserError(f"{key}: {source} has no rows")
    for name in ("label", "tags"):
        _check_spellings(rows, name)
    labels = [row.get("label") for row in rows]
    if source.startswith("csv:") and config.header and labels[0] and labels.count(labels[0]) == 1 < len(rows):
        note(
            f"{rows[0]['place']}: no other row has the label {labels[0]!r}; is this a header, in spite of the config's?"
        )
    return rows


class Splits(NamedTuple):
    """Rows for training, validation and testing."""

    train: list[Row]
    validation: list[Row]
    test: list[Row]

    @property
    def test_rows_in_train(self) -> int:
        """How many test rows are also in the training rows, whatever their label or target."""
        known = {_content(row) for row in self.train}
        return sum(_content(row) in known for row in self.test)


def read_examples(config: ExamplesConfig, columns: Iterable[str], optional: Collection[str] = ()) -> Splits:
    """Reads, cleans and splits the rows that a config asks for.

    Args:
      config: what to read.
      columns: the columns that the task needs, by its names.
      optional: columns that rows may have; those that the config lists must be there.

    Raises:
      UserError: naming the config key, or the file and the line, if something is invalid.
    """
    names = (*columns, *optional)
    for name in config.column_names:
        if name not in names:
            raise UserError(
                f"config.data.columns: the task has no column {name!r}; it has {', '.join(names)}: that name "
                f"comes first, as in ('{names[0]}=COLUMN',)"
            )
    if not config.train:
        raise UserError("config.data.train is empty: name a source, such as jsonl:train.jsonl")

    def read(part: str) -> list[Row]:
        source = getattr(config, part)
        return read_source(source, f"config.data.{part}", config, columns, optional) if source else []

    train, validation, test = read("train"), read("validation"), read("test")
    if not config.validation:
        train, validation = _split(train, held_out(train, config))
    return Splits(_some_rows(train, config), validation, test)


def read_source(
    source: str, key: str, config: ExamplesConfig, columns: Iterable[str], optional: Collection[str] = ()
) -> list[Row]:
    """Reads and cleans the rows of one source, with a config's column names and cleaning.

    Args:
      source: as `lm.data.row_files` reads it.
      key: the config key that names the source, for messages.
      config: column names and cleaning; its own sources are not read.
      columns: the columns that the task needs, by its names.
      optional: columns that rows may have; those that the config lists must be there.

    Raises:
      UserError: as `read_rows` and `clean_row`.
    """
    chosen = {name: config.column_names.get(name, name) for name in (*columns, *optional)}
    rows = read_rows(source, chosen, key, set(optional) - set(config.column_names), config)
    return [clean_row(row, config.cleaning) for row in rows]


class Input(NamedTuple):
    """A row to predict, and everything that its file says of it by the file's column names."""

    row: Row
    given: Row


def read_inputs(
    source: str, key: str, config: ExamplesConfig, columns: Iterable[str], optional: Collection[str] = ()
) -> list[Input]:
    """Reads rows without what is to be predicted. Arguments and errors are those of `read_source`."""
    columns, optional = ([name for name in names if name not in TARGETS] for names in (columns, optional))
    known = tuple(pair for pair in config.columns if pair.partition("=")[0] not in TARGETS)
    config = dataclasses.replace(config, columns=known)
    rows = read_source(source, key, config, columns, optional)
    chosen = {name: config.column_names.get(name, name) for name in (*columns, *optional)}
    given = [values for _, values in open_rows(source, key, chosen, optional, config)]
    return [Input(*pair) for pair in zip(rows, given, strict=True)]


def clean_row(row: Row, steps: Sequence[str]) -> Row:
    """The row with the steps of `lm.data.cleaning` applied to its texts, which may become empty.

    Raises:
      UserError: if the row has words or answers, which would no longer fit their tags and their context.
    """
    if not steps:
        return row
    fixed = next((name for name in ("words", "answers") if name in row), None)
    if fixed:
        raise UserError(f"config.data.cleaning does not apply to rows with {fixed}: leave it empty")
    cleaned = dict(row)
    for name in row.keys() - _CHECKS.keys() - {"place"}:
        for step in steps:
            cleaned[name] = STEPS[step](cleaned[name])
    return cleaned


def held_out(rows: Sequence[Row], config: ExamplesConfig) -> set[int]:
    """Indices of the validation rows: a fold, or a fraction, stratified by label.

    Rows with the same texts, or the same context, stay together, so that no validation row is seen in training.

    Raises:
      UserError: if no rows would be left for validation or for training.
    """
    groups: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(row.get("context") or _content(row), []).append(i)
    labels = [rows[members[0]].get("label", "") for members in groups.values()]
    if config.folds:
        chosen: Iterable[int] = _fold(labels, config)
    else:
        chosen = _fraction(list(groups), labels, config.validation_fraction)
    members = list(groups.values())
    return {i for group in chosen for i in members[group]}


def _fold(labels: Sequence[str], config: ExamplesConfig) -> np.ndarray:
    """Indices of the labels in a fold."""
    from sklearn.model_selection import KFold, StratifiedKFold  # takes a second, and only folds need it

    kind = StratifiedKFold if len(set(labels)) > 1 else KFold
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about rare labels, which not every fold can have
        try:
            folds = list(kind(config.folds, shuffle=True, random_state=config.split_seed).split(labels, labels))
        except ValueError as error:
            raise UserError(
                f"config.data.folds={config.folds} exceeds the number of distinct rows of any label in "
                "config.data.train: set fewer folds"
            ) from error
    return folds[config.fold][1]


def _fraction(contents: Sequence[str], labels: Sequence[str], fraction: float) -> list[int]:
    """Indices of the contents chosen by a hash, separately for each label."""
    by_label: dict[str, list[int]] = {}
    for i in sorted(range(len(contents)), key=lambda i: _hash(contents[i])):
        by_label.setdefault(labels[i], []).append(i)
    chosen = [i for members in by_label.values() for i in members[: round(fraction * len(members))]]
    if fraction and not chosen:
        raise UserError(
            f"config.data.validation_fraction={fraction} of {len(contents)} distinct rows in config.data.train leaves "
            "none for validation: set a larger one, or config.data.validation"
        )
    return chosen


def _row(place: str, values: Row, columns: Mapping[str, str], optional: Collection[str], source: str, key: str) -> Row:
    row = {}
    for name, column in columns.items():
        if column in values:
            row[name] = _CHECKS.get(name, _text)(values[column], column, place)
        elif name not in optional:
            raise UserError(_no_column(place, values, name, column, source, key))
    if "tags" in row and len(row["tags"]) != len(row["words"]):
        raise UserError(f"{place} has {len(row['words'])} words and {len(row['tags'])} tags: give each word one tag")
    for answer in row.get("answers", ()):
        _check_answer(answer, row["context"], place)
    return row | {"place": place}


def _no_column(place: str, values: Row, name: str, column: str, source: str, key: str) -> str:
    """One line about a row that lacks a column."""
    problem = f"{place} has no column {column!r}; it has {', '.join(map(str, values))}: "
    group = key.rpartition(".")[0]
    rename = f"name the right one in {group}.columns, as in ('{name}=COLUMN',)"
    if not source.startswith("csv:"):
        return problem + rename
    if hint := separators_within(values, column, group):
        return problem + hint
    return f"{problem}{rename}, or, if there is no header, all of them, as in {group}.header=('text', 'label')"


def _check_spellings(rows: Sequence[Row], name: str) -> None:
    """Checks that no two labels, or tags, differ in invisible characters or the spelling of a number alone.

    Upper and lower case may differ, but rarely on purpose: it says so.
    """
    known: dict[str, tuple[str, str]] = {}
    for row in rows:
        for label in [row[name]] if isinstance(row.get(name), str) else row.get(name, ()):
            other, place = known.setdefault(_seen_as(label), (label, row["place"]))
            if other != label:
                raise UserError(
                    f"{row['place']}: {name} {label!a} looks like {other!a} at {place}: write both in one way"
                )
    places = dict(known.values())
    folded: dict[str, str] = {}
    for label, place in places.items():
        other = folded.setdefault(unicodedata.normalize("NFKC", label).casefold(), label)
        if other != label:
            note(f"{place}: {name} {label!r} and {other!r} at {places[other]} are two classes")


@functools.lru_cache(maxsize=2**12)
def _seen_as(label: str) -> str:
    """The label as it looks: composed, without invisible characters, and without .0 after an integer."""
    visible = "".join(each for each in unicodedata.normalize("NFC", label) if unicodedata.category(each) != "Cf")
    return re.sub(r"^(-?\d+)\.0*$", r"\1", " ".join(visible.split()))


# What str() makes of the number that pandas puts into empty cells.
_MISSING = ("nan", "NaN")


def _text(value: Any, column: str, place: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{place}: {column!r} must be text, got {_kind(value)}: fix or remove this row")
    if not value.strip():
        raise UserError(f"{place}: {column!r} is empty: fix or remove this row")
    check_surrogates(value, column, place)
    return value


def _label(value: Any, column: str, place: str) -> str:
    if type(value) is int:
        return str(value)
    value = value.strip() if isinstance(value, str) else value
    if not isinstance(value, str) or not _seen_as(value) or value in _MISSING:
        got = "nothing" if value in ("", None) else f"{value!r}, a missing value" if value in _MISSING else _kind(value)
        raise UserError(f"{place}: {column!r} must be text or an integer, got {got}: fix or remove this row")
    check_surrogates(value, column, place)
    return value


def _words(value: Any, column: str, place: str, kind: str = "words") -> list[str]:
    if not isinstance(value, list) or not all(isinstance(word, str) and word for word in value):
        raise UserError(
            f"{place}: {column!r} must be a list of non-empty {kind}, got {_kind(value)}: fix or remove this row"
        )
    if not value:
        raise UserError(f"{place}: {column!r} is empty: fix or remove this row")
    for word in value:
        check_surrogates(word, column, place)
    return value


def _tags(value: Any, column: str, place: str) -> list[str]:
    return [_label(tag, column, place) for tag in _words(value, column, place, "names of tags")]


def _options(value: Any, column: str, place: str) -> list[str]:
    options = _words(value, column, place, "options")
    if len(options) < 2 or len(set(options)) < len(options):
        raise UserError(f"{place}: {column!r} must list two or more different options: fix or remove this row")
    return options


def _answers(value: Any, column: str, place: str) -> list[Row]:
    try:
        if isinstance(value, dict):
            starts = value["start" if "start" in value else "answer_start"]
            answers = list(zip(value["text"], starts, strict=True))
        else:
            answers = [(answer["text"], answer.get("start", answer.get("answer_start"))) for answer in value]
        if not all(isinstance(text, str) and text and type(start) is int for text, start in answers):
            raise ValueError
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{place}: {column!r} must be a list such as [{{'text': 'Paris', 'start': 17}}]: fix or remove this row"
        ) from error
    return [{"text": text, "start": start} for text, start in answers]


def _accepted(value: Any, column: str, place: str) -> list[str]:
    if isinstance(value, dict):
        value = value.get("text")
    texts = [value] if isinstance(value, str) else value
    if isinstance(texts, list):
        texts = [text.get("text") if isinstance(text, dict) else text for text in texts]
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{place}: {column!r} must be text, or a list of texts, got {_kind(value)}: fix this row")
    texts = [text.strip() for text in texts if text.strip()]
    if not texts:
        raise UserError(f"{place}: {column!r} has no accepted answer: fix or remove this row")
    for text in texts:
        check_surrogates(text, column, place)
    return list(dict.fromkeys(texts))


def _check_answer(answer: Row, context: str, place: str):
    text, start = answer["text"], answer["start"]
    if start < 0 or not context.startswith(text, start):
        found = context[max(start, 0) : max(start, 0) + len(text)]
        raise UserError(
            f"{place}: the answer {text!r} is not at character {start} of the context, where there is {found!r}: fix "
            "or remove this row"
        )


def _kind(value: Any) -> str:
    return "nothing (null)" if value is None else f"{value!r:.40} ({type(value).__name__})"


_CHECKS: dict[str, Callable[[Any, str, str], Any]] = {
    "label": _label,
    "id": _label,
    "words": _words,
    "tags": _tags,
    "options": _options,
    "answers": _answers,
    "answer": _accepted,
}


def _split(rows: Sequence[Row], chosen: set[int]) -> tuple[list[Row], list[Row]]:
    """The rows that are not chosen, and those that are."""
    others = [row for i, row in enumerate(rows) if i not in chosen]
    return others, [row for i, row in enumerate(rows) if i in chosen]


def _some_rows(rows: list[Row], config: ExamplesConfig) -> list[Row]:
    if config.train_rows > len(rows):
        raise UserError(
            f"config.data.train_rows={config.train_rows}, but there are {len(rows)} training rows: lower it, or "
            "set 0 for all"
        )
    if not config.train_rows:
        return rows
    order = np.random.default_rng(config.split_seed).permutation(len(rows))
    return [rows[i] for i in sorted(order[: config.train_rows])]


def _content(row: Row) -> str:
    """The input that a model gets from a row, as one string."""
    return json.dumps([row[name] for name in sorted(row) if name not in _NOT_GIVEN])


def _hash(content: str) -> bytes:
    return hashlib.blake2b(content.encode(), digest_size=8).digest()


_NOT_GIVEN = (*TARGETS, "id", "place")
