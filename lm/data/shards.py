"""A corpus in shards: windows of tokens in ArrayRecord files, which `experiments.tokenize_corpus` writes.

A folder, local or remote, holds

    index.json            the shards with their counts and checksums; small, and all that is read at the start
    train-*.array_record  a record for each window, see `encoded`
    tokenizer.json        made them (with tokenizer_config.json for a published one)
    validation/           a token store (`lm.data.store`) of the documents that were held out, and in `beginning.npy`
                          the first tokens of the training text

A window is found by its number, through cumulative counts of the shards, so that each host reads only the rows of its
own and nothing is kept for a window until it is read.

Axes: b rows, L tokens of a window in the shards, T tokens of a window for the model, which divides L.
"""

import dataclasses
import functools
import hashlib
import json
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grain
import numpy as np

from lm.data.cache import cached
from lm.data.permutation import permuted
from lm.data.remote import download, is_remote, join, read_bytes, sizes, write_bytes
from lm.data.store import DTYPES, TokenStore
from lm.data.tokenizers import Tokenizer
from lm.errors import UserError
from lm.files import is_unchanged
from lm.types import HostBatch

FORMAT = 1
INDEX, VALIDATION, BEGINNING = "index.json", "validation", "beginning.npy"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
_START = np.dtype("<u4")


def encoded(tokens: np.ndarray, starts: np.ndarray) -> bytes:
    """A record: the L + 1 tokens of a window, then the places from 1 to L at which documents start, as uint32.

    The last token is the target of the last but one, and the first of the next window.
    """
    return tokens.astype(tokens.dtype.newbyteorder("<")).tobytes() + starts.astype(_START).tobytes()


@dataclasses.dataclass(frozen=True)
class ShardedText:
    """The training text of a folder of shards.

    Attributes:
      folder: where it is.
      length: L.
      names: files of the shards.
      ends: number of windows up to the end of each shard, int64.
      dtype: of the stored tokens.
      num_documents: documents in the text.
      num_bytes: UTF-8 bytes of their text after cleaning.
      end_of_text: id of the token that stands between documents, or None.
      digest: of the index, and so of the checksums of all shards.
      beginning: tokens of the first shard, ten million at most.
    """

    folder: str
    length: int
    names: tuple[str, ...]
    ends: np.ndarray
    dtype: np.dtype
    num_documents: int
    num_bytes: int
    end_of_text: int | None
    digest: str
    beginning: np.ndarray

    @classmethod
    def of_index(cls, folder: str, index: dict[str, Any], beginning: np.ndarray) -> "ShardedText":
        """The text that an index describes; no shard is opened."""
        shards = index["shards"]
        return cls(
            folder=folder,
            length=index["window"],
            names=tuple(each["name"] for each in shards),
            ends=np.cumsum([each["windows"] for each in shards], dtype=np.int64),
            dtype=np.dtype(DTYPES[index["dtype"]]).newbyteorder("<"),
            num_documents=sum(each["documents"] for each in shards),
            num_bytes=sum(each["text_bytes"] for each in shards),
            end_of_text=index["end_of_text"],
            digest=index["digest"],
            beginning=beginning,
        )

    @property
    def num_windows(self) -> int:
        """Windows of L tokens."""
        return int(self.ends[-1])

    @property
    def num_tokens(self) -> int:
        """Targets in all windows."""
        return self.num_windows * self.length

    @functools.cached_property
    def records(self) -> grain.sources.ArrayRecordDataSource:
        """The windows as bytes, by number. A shard is opened when a window of it is read."""
        _allow_open_files(len(self.names))
        counts = np.diff(self.ends, prepend=0)
        folder = self.folder if is_remote(self.folder) else str(Path(self.folder).expanduser())
        named = zip(self.names, counts.tolist(), strict=True)
        return grain.sources.ArrayRecordDataSource(
            [f"{join(folder, name)}[0:{count}]" for name, count in named if count]
        )

    def content_digest(self) -> str:
        """Hash of the content."""
        return self.digest

    def windows(self, numbers_b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of windows, and whether a document starts there, [b, L + 1] each.

        Raises:
          UserError: if a record cannot be read or is damaged.
        """
        size = (self.length + 1) * self.dtype.itemsize
        starts = np.zeros((len(numbers_b), self.length + 1), bool)
        try:
            found = self.records.__getitems__(numbers_b.tolist())
            for row, record in enumerate(found):
                starts[row, np.frombuffer(record, _START, offset=size)] = True
            tokens = np.stack([np.frombuffer(record, self.dtype, self.length + 1) for record in found])
        except Exception as error:  # the library raises several kinds
            reason = " ".join(str(error).split())
            raise UserError(
                f"cannot read the shards in {self.folder} ({reason:.300}): run experiments.tokenize_corpus again, "
                "which makes damaged and missing shards anew"
            ) from error
        return tokens, starts

    def shuffled(self, length: int, seed: int, random_offsets: bool) -> Callable[[np.ndarray], HostBatch]:
        """A function from numbers of rows in an endless shuffled order to these rows.

        Raises:
          UserError: if T doesn't divide L, or for random offsets.
        """
        if self.length % length:
            raise UserError(
                f"the windows of {self.folder} have {self.length} tokens, which config.model.sequence_length={length} "
                "does not divide: choose another, or tokenize anew with config.window"
            )
        if random_offsets:
            raise UserError("config.data.random_offsets=True: windows in shards are cut already: set it to False")
        return functools.partial(self._rows, length, seed)

    def _rows(self, length: int, seed: int, rows_b: np.ndarray) -> HostBatch:
        parts = self.length // length
        epochs_b, places_b = np.divmod(rows_b, self.num_windows * parts)
        chosen_b = np.empty_like(places_b)
        for epoch in np.unique(epochs_b):
            inside_b = epochs_b == epoch
            chosen_b[inside_b] = permuted(places_b[inside_b], self.num_windows * parts, (seed, int(epoch)))
        numbers_b, part_b = np.divmod(chosen_b, parts)
        tokens, starts = self.windows(numbers_b)
        index = part_b[:, None] * length + np.arange(length + 1)
        tokens, starts = np.take_along_axis(tokens, index, axis=1), np.take_along_axis(starts, index, axis=1)
        return _batch(tokens, starts, self.end_of_text)


@dataclasses.dataclass(frozen=True)
class Shards:
    """A folder of shards.

    Attributes:
      tokenizer: that made them.
      train: the text in the shards.
      validation: what was held out.
    """

    tokenizer: Tokenizer
    train: ShardedText
    validation: TokenStore

    @classmethod
    def open(cls, folder: str, cache: Path) -> "Shards":
        """Opens a folder, reading its index, tokenizer and validation split.

        Shards in local folders and on Google Cloud Storage are read where they are; others are first copied to the
        cache.

        Args:
          folder: local or remote.
          cache: for copies.

        Raises:
          UserError: if it is not finished or is damaged.
        """
        index = _read_index(folder)
        _check_sizes(folder, index)
        local = Path(folder).expanduser()
        read_from = folder
        if is_remote(folder):
            in_place = folder.startswith("gs://")
            names = () if in_place else tuple(each["name"] for each in index["shards"])
            key = hashlib.blake2b(f"{index['digest']} {len(names)}".encode(), digest_size=16).hexdigest()
            local = cached(cache / key, functools.partial(_copy, folder, names))
            read_from = folder if in_place else str(local)
        tokenizer = Tokenizer.load(local / TOKENIZER_FILES[0], index["end_of_text"] is not None)
        if tokenizer.digest != index["tokenizer"]:
            raise UserError(f"{join(folder, TOKENIZER_FILES[0])} did not make these shards: restore the file that did")
        validation = TokenStore.open(local / VALIDATION)  # checks the whole folder
        return cls(
            tokenizer, ShardedText.of_index(read_from, index, np.load(local / VALIDATION / BEGINNING)), validation
        )


def save_tokenizer(tokenizer: Tokenizer, folder: str) -> None:
    """Writes a tokenizer's files to a folder that may be remote."""
    with tempfile.TemporaryDirectory() as name:
        tokenizer.save(Path(name))
        for file in sorted(Path(name).iterdir(), reverse=True):  # tokenizer.json last: where it is, all is there
            write_bytes(join(folder, file.name), file.read_bytes())


def _read_index(folder: str) -> dict[str, Any]:
    content = read_bytes(join(folder, INDEX))
    if content is None:
        raise UserError(
            f"{join(folder, INDEX)} is missing: make the shards with experiments.tokenize_corpus --output={folder}, or "
            "run it again if it was interrupted"
        )
    try:
        index = json.loads(content)
        unchanged = is_unchanged(index)
    except (ValueError, AttributeError, RecursionError):
        unchanged = False
    if not unchanged:
        raise UserError(f"{join(folder, INDEX)} is damaged: run experiments.tokenize_corpus again")
    if index["format"] != FORMAT:
        raise UserError(f"{folder} was written by another version: run experiments.tokenize_corpus with this one")
    return index


def _check_sizes(folder: str, index: dict[str, Any]) -> None:
    found = sizes(folder)
    for each in index["shards"]:
        if found.get(each["name"]) != each["file"]["bytes"]:
            problem = "has another size than it was written with" if each["name"] in found else "is missing"
            raise UserError(f"{join(folder, each['name'])} {problem}: run experiments.tokenize_corpus again")


def _copy(folder: str, names: tuple[str, ...], target: Path) -> None:
    (target / VALIDATION).mkdir()
    for name in sizes(join(folder, VALIDATION)):
        download(join(folder, VALIDATION, name), target / VALIDATION / name)
    for name in (*names, *(name for name in TOKENIZER_FILES if name in sizes(folder))):
        download(join(folder, name), target / name)


def _batch(tokens: np.ndarray, starts: np.ndarray, end_of_text: int | None) -> HostBatch:
    """The arrays of `lm.data.windows` from tokens and starts of documents, [b, T + 1] each."""
    index_T = np.arange(tokens.shape[1] - 1)
    starts, next_starts = starts[:, :-1], starts[:, 1:]
    begins = np.maximum.accumulate(np.where(starts, index_T, 0), axis=1)
    document = np.cumsum(starts, axis=1)
    predicted = np.ones_like(next_starts) if end_of_text is not None else ~next_starts
    return {
        "tokens": tokens[:, :-1].astype(np.int32),
        "targets": tokens[:, 1:].astype(np.int32),
        "weights": predicted.astype(np.float32),
        "positions": (index_T - begins).astype(np.int32),
        "segments": (document - document[:, :1] + 1).astype(np.int32),
    }


def _allow_open_files(count: int) -> None:
    """Raises the soft limit of open files towards the hard one: each shard that was read from stays open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 1024
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, limit), hard))
