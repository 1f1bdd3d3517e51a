"""Sentences from files with a word per line and its tags in columns, as CoNLL's shared tasks and CoNLL-U have them.

Fields are separated by tabs, or by plain spaces: words may contain other white space, such as U+3000.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lm.data.files import note, numbered_lines
from lm.data.object_files import FileRow
from lm.errors import UserError

_COMMENT = re.compile(r"#\s*[\w.:-]+\s*=")
# In CoNLL-U, 1-2 is a word that the next two lines split, and 8.1 one that is not in the sentence.
_EXTRA_NUMBER = re.compile(r"\d+[-.]\d+")
_NUMBER = re.compile(r"\d+")
_COMMENTS, _DOCUMENT, _EXTRA = "comments", "-DOCSTART-", "ranges of words or empty nodes"

# The number of a line, and its fields.
Line = tuple[int, list[str]]


def read_conll(
    file: Path, name: str, columns: Mapping[str, str], optional: Collection[str], group: str = "config.data"
) -> Iterator[FileRow]:
    """Yields the place and the columns of each sentence.

    Args:
      file: with a blank line between sentences.
      name: what to call it.
      columns: for each of the task's columns the number of its field, from 1, or its own name: "words" are the first
        field, "tags" the last.
      optional: the task's columns that may be missing.
      group: of the config key that names columns, for messages.

    Raises:
      UserError: if a line is not like the others, or has nothing where a column should be.
    """
    layout = _Layout.of(list(numbered_lines(file)), name, group)
    sentences = layout.sentences()
    if columns.get("words") == "words":
        _check_words([[fields[0] for _, fields in sentence] for sentence in sentences], name, group)
    places = {column: layout.place(column) for column in columns.values()}
    missing = {columns[task_name] for task_name in optional if task_name in columns}
    wanted = {column: place for column, place in places.items() if place is not None or column not in missing}
    for sentence in sentences:
        values = {column: [_field(line, place, name) for line in sentence] for column, place in wanted.items()}
        yield f"{name}:{sentence[0][0]}", values


def _field(line: Line, place: int | None, name: str) -> str:
    number, fields = line
    if place is None or not fields[place]:
        got = "\t".join(fields)
        raise UserError(f"{name}:{number} must have a word and its tag separated by a tab or a space, got {got!r:.80}")
    return fields[place]


def _check_words(sentences: Sequence[Sequence[str]], name: str, group: str) -> None:
    """Checks that the first fields are words rather than their numbers or the name of a document."""
    long_ones = [words for words in sentences if len(words) > 2]
    constant = len(long_ones) > 1 and all(len(set(words)) == 1 for words in long_ones)
    numbered = [_is_count(words) for words in sentences]
    if constant or any(map(_is_count, long_ones)) or (numbered and all(numbered)):
        raise UserError(
            f"{name}: the first field is no word but {sentences[0][0]!r:.40}: say which fields to read, as in "
            f"{group}.columns=('words=2', 'tags=4')"
        )


def _is_count(words: Sequence[str]) -> bool:
    return any(list(words) == [str(i + start) for i in range(len(words))] for start in (0, 1))


@dataclass(frozen=True)
class _Layout:
    """The lines of a file and how they are divided."""

    lines: list[tuple[int, str]]
    name: str
    group: str
    separator: str
    width: int
    numbered: bool

    @classmethod
    def of(cls, lines: list[tuple[int, str]], name: str, group: str) -> "_Layout":
        """The layout of most of the lines."""
        words = [line for _, line in lines if line.strip() and ("\t" in line or not line.startswith("#"))]
        tabs = sum("\t" in line for line in words)
        separator = "\t" if 2 * tabs >= max(len(words), 1) else " "
        split = [_split(line, separator) for line in words]
        widths = Counter(map(len, split))
        # As in CoNLL-U and its relatives with more or fewer fields.
        numbers = sum(bool(_NUMBER.fullmatch(fields[0])) for fields in split)
        width = widths.most_common(1)[0][0] if widths else 2
        return cls(lines, name, group, separator, width, width > 2 and 2 * numbers > len(split))

    def place(self, column: str) -> int | None:
        """Index of a column among the fields; None if there is none."""
        if column == "words":
            return 0
        if column == "tags":
            return self.width - 1 if self.width > 1 else None
        if not re.fullmatch(r"[1-9]\d{0,3}", column) or int(column) > self.width:
            raise UserError(
                f"{self.name} has {self.width} fields per line, and none is {column!r}: name fields of conll: files by "
                f"their numbers, as in {self.group}.columns=('words=2', 'tags=4')"
            )
        return int(column) - 1

    def sentences(self) -> list[list[Line]]:
        """The lines of words; says how many others were skipped."""
        sentences: list[list[Line]] = [[]]
        skipped: Counter[str] = Counter()
        for number, line in self.lines:
            fields = _split(line, self.separator)
            kind = self._kind(line, fields)
            skipped[kind] += 1
            if kind == "words":
                self._check(number, line, fields)
                sentences[-1].append((number, fields))
            elif kind in ("blanks", _DOCUMENT) and sentences[-1]:
                sentences.append([])
        for kind in (_COMMENTS, _DOCUMENT, _EXTRA):
            if skipped[kind]:
                note(f"{self.name}: lines skipped because they are {kind}: {skipped[kind]:,}")
        return [sentence for sentence in sentences if sentence]

    def _kind(self, line: str, fields: list[str]) -> str:
        if not line.strip():
            return "blanks"
        if line.startswith("#") and self._is_comment(line, fields):
            return _COMMENTS
        if _DOCUMENT in line.split()[:2]:
            return _DOCUMENT
        return _EXTRA if self.numbered and _EXTRA_NUMBER.fullmatch(fields[0]) else "words"

    def _is_comment(self, line: str, fields: list[str]) -> bool:
        """Whether a line that begins with #, which may be a word, is a comment."""
        if self.separator == "\t":
            return "\t" not in line
        return bool(_COMMENT.match(line)) or (line.startswith("# ") and len(fields) != self.width)

    def _check(self, number: int, line: str, fields: list[str]) -> None:
        place = f"{self.name}:{number}"
        if "\r" in line.rstrip("\r\n"):
            raise UserError(f"{place} has a carriage return inside: end lines by line feeds")
        if len(fields) == self.width:
            return
        if len(fields) < 2:
            raise UserError(
                f"{place} must have a word and its tag separated by a tab or a space, got {line.strip()!r:.80}"
            )
        raise UserError(f"{place} has {len(fields)} fields, other lines have {self.width}: fix or remove this line")


def _split(line: str, separator: str) -> list[str]:
    """The fields, without the spaces around them."""
    fields = [field.strip(" ") for field in line.rstrip("\r\n").split(separator)]
    return fields if separator == "\t" else [field for field in fields if field]
