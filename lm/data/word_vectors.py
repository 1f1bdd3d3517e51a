"""Pretrained word vectors (GloVe: Pennington et al. 2014; word2vec: Mikolov et al. 2013) as a token embedding.

A file has a line per word, `word v1 ... vD`, and may begin with a line of two numbers, the word count and D, as
word2vec and fastText write it. It is read line by line, and only the requested words are kept.

Axes: V rows of the token embedding, D numbers of a vector.
"""

import codecs
import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from lm.data.compression import opened
from lm.errors import UserError


@dataclasses.dataclass(frozen=True)
class Coverage:
    """How much of a vocabulary has a vector.

    Attributes:
      vocabulary: share of its entries, in [0, 1].
      running: share of running tokens; 0 where there are none.
      missing: the ten most frequent entries without a vector.
    """

    vocabulary: float
    running: float
    missing: tuple[str, ...]

    def __str__(self) -> str:
        """One line, such as follows "word vectors: "."""
        without = f"; without one: {' '.join(self.missing)}" if self.missing else ""
        return f"{self.vocabulary:.1%} of the vocabulary and {self.running:.1%} of running tokens have one{without}"


def embedding_from_vectors(
    path: str | os.PathLike, vocabulary: Mapping[str, int], counts_V: np.ndarray, seed: int
) -> tuple[np.ndarray, Coverage]:
    """A token embedding that starts from word vectors.

    A token takes the vector of its word, else that of the lower-case form. All others, such as [UNK], are drawn from a
    normal distribution with the standard deviation of the vectors.

    Args:
      path: file of vectors.
      vocabulary: id of each token, below V. Tokens should be words: config.tokenizer.kind=words.
      counts_V: how often each id occurs in the texts.
      seed: of the random rows.

    Returns:
      The table [V, D] in float32, and what it covers.

    Raises:
      UserError: if the file cannot be read, or has no word of the vocabulary.
      ValueError: if an id has no count.
    """
    if max(vocabulary.values()) >= len(counts_V):
        raise ValueError(f"{len(counts_V)} counts for ids up to {max(vocabulary.values())}")
    vectors = read_word_vectors(path, {*vocabulary, *(token.lower() for token in vocabulary)})
    found = {token: vectors.get(token, vectors.get(token.lower())) for token in vocabulary}
    missing = [token for token, vector in found.items() if vector is None]
    if len(missing) == len(found):
        raise UserError(
            f"{path} has no vector for any of the vocabulary's {len(vocabulary):,} tokens: use "
            "config.tokenizer.kind=words, or vectors for this language"
        )
    ids = [vocabulary[token] for token, vector in found.items() if vector is not None]
    known = np.stack([vector for vector in found.values() if vector is not None])
    random = np.random.default_rng((seed, 0))
    table_VD = random.standard_normal((len(counts_V), known.shape[1]), np.float32) * known.std()
    table_VD[ids] = known
    often = sorted(missing, key=lambda token: (-counts_V[vocabulary[token]], vocabulary[token]))
    running = float(counts_V[ids].sum() / max(counts_V.sum(), 1))
    return table_VD, Coverage(len(ids) / len(vocabulary), running, tuple(often[:10]))


def read_word_vectors(path: str | os.PathLike, words: Iterable[str]) -> dict[str, np.ndarray]:
    """Reads the vectors of the given words.

    Args:
      path: a text file, which may be compressed. A word may contain spaces, as some in GloVe's 840B file do; if a word
        occurs twice, the first vector counts.
      words: whose vectors to keep, spelled as in the file.

    Returns:
      A float32 vector [D] for each word that the file has.

    Raises:
      UserError: if the file cannot be read, or a line of it is not a word and D finite numbers.
    """
    path = _expanded(path)
    wanted = {word.encode(): word for word in words}
    found: dict[str, np.ndarray] = {}
    width, promised, lines = 0, None, 0
    for number, line in _lines(path):
        if number == 1 and (header := _header(line)):
            promised, width = header
            continue
        width = width or _width_of_first(path, line)
        lines += 1
        word, numbers = _fields(path, number, line, width)
        if word in wanted and wanted[word] not in found:
            found[wanted[word]] = _vector(path, number, numbers)
    if promised is not None and promised != lines:
        raise UserError(f"{path} has {lines:,} vectors but its first line says {promised:,}: download it again")
    if not lines:
        raise UserError(f"{path} has no word vectors: each line should be a word and its numbers")
    return found


def first_words(path: str | os.PathLike, count: int) -> list[str]:
    """The first words of a file of word vectors, usually the most frequent.

    Raises:
      UserError: if the file cannot be read, or a line of it is not a word and D numbers.
    """
    path = _expanded(path)
    words: list[str] = []
    width = 0
    for number, line in _lines(path):
        if len(words) == count:
            break
        if number == 1 and _header(line):
            continue
        width = width or _width_of_first(path, line)
        # Invalid UTF-8 never matches a word of a text.
        words.append(_fields(path, number, line, width)[0].decode(errors="replace"))
    return words


def _expanded(path: str | os.PathLike) -> Path:
    return Path(os.path.expandvars(path)).expanduser()


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, with their numbers from 1."""
    with opened(path) as file:
        for number, line in enumerate(file, start=1):
            # Only plain spaces separate the fields: some words contain other white space.
            line = line.rstrip(b" \r\n")
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if line:
                yield number, line


def _header(line: bytes) -> tuple[int, int] | None:
    """The word count and the dimension, if the first line holds these rather than a word's vector."""
    fields = line.split(b" ")
    if len(fields) != 2 or not all(field.isdigit() for field in fields):
        return None
    return int(fields[0][:18]), int(fields[1][:18])  # Python refuses to read thousands of digits


def _width_of_first(path: Path, line: bytes) -> int:
    """D, from a first line whose word has no spaces."""
    width = line.count(b" ")
    if not width:
        raise UserError(
            f"{path}:1: expected a word and its numbers, separated by spaces: is this a text file of vectors?"
        )
    return width


def _fields(path: Path, number: int, line: bytes, width: int) -> tuple[bytes, bytes]:
    """The word and its numbers."""
    spaces = line.count(b" ")
    if spaces < width:
        raise UserError(
            f"{path}:{number}: {spaces} numbers after the word, expected {width}: the file is damaged, or not in the "
            "text format"
        )
    if spaces == width:  # nearly always, and faster
        word, _, numbers = line.partition(b" ")
        return word, numbers
    parts = line.rsplit(b" ", width)[1:]
    return line[: -sum(len(part) + 1 for part in parts)], b" ".join(parts)


def _vector(path: Path, number: int, numbers: bytes) -> np.ndarray:
    try:
        if b"_" in numbers:
            raise ValueError(f"could not convert {numbers!r:.40} to numbers")
        with np.errstate(over="ignore"):
            vector = np.array([float(each) for each in numbers.split(b" ")], np.float32)
    except ValueError as error:
        raise UserError(
            f"{path}:{number}: {error}: expected a word and its numbers, separated by single spaces"
        ) from error
    if not np.isfinite(vector).all():
        raise UserError(f"{path}:{number}: this vector has a number that is not finite: fix or remove this line")
    return vector
