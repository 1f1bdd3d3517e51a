"""The token store: a corpus as one flat, memory-mapped stream of token ids for each split.

With an end-of-text token E the stream is `E doc1 E doc2 ... E docN E`: every document begins with E, and the E that
begins the next document is also the target that ends the previous one, so every token but the first is a target once.
Without it documents simply follow one another.

A store is an immutable folder of the cache, named by a hash of everything that its content depends on, with checksums
(`lm.data.cache`) that are compared whenever it is opened.
"""

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from lm.console import Console
from lm.data.cache import cached, check, seal
from lm.data.cleaning import clean
from lm.data.config import DataConfig, Split, TokenizerConfig
from lm.data.sources import Source, empty_split_message
from lm.data.tokenizers import Tokenizer, train_tokenizer
from lm.errors import UserError
from lm.files import cache_directory

SPLITS: tuple[Split, ...] = ("train", "validation")
_FORMAT = 2  # part of every cache key: increase it when the files' layout or content changes
DTYPES = {"uint16": np.uint16, "uint32": np.uint32}
_BATCH_CHARACTERS = 1_000_000  # documents are encoded in batches of this much text


@dataclass(frozen=True)
class TokenStore:
    """The tokens of one split, read-only.

    Attributes:
      tokens: the stream, a memory map of uint16 or uint32, [num_tokens].
      document_starts: position in the stream at which each document starts, int64, [num_documents], increasing from 0.
      num_bytes: UTF-8 bytes of the documents' text after cleaning, the denominator of bits per byte.
      end_of_text: id of the token that stands between documents, or None.
    """

    tokens: np.ndarray
    document_starts: np.ndarray
    num_bytes: int
    end_of_text: int | None = None

    @property
    def num_tokens(self) -> int:
        """Length of the stream."""
        return len(self.tokens)

    @property
    def num_documents(self) -> int:
        """Number of documents in the stream."""
        return len(self.document_starts)

    @property
    def has_end_of_text(self) -> bool:
        """Whether a token stands between documents."""
        return self.end_of_text is not None

    @property
    def beginning(self) -> np.ndarray:
        """The first ten million tokens."""
        return self.tokens[:10_000_000]

    def content_digest(self) -> str:
        """Hash of the content; reads all of it."""
        digest = hashlib.blake2b(digest_size=16)
        for array in (self.tokens, self.document_starts):
            digest.update(f"{array.dtype} {array.size}\n".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    @classmethod
    def open(cls, folder: str | os.PathLike) -> "TokenStore":
        """Maps the store in a folder, after comparing its checksums.

        Raises:
          UserError: if a file is missing, unreadable or not as it was written.
        """
        folder = Path(folder)
        check(folder, "token store")
        try:
            about = json.loads((folder / "store.json").read_text())
            tokens = np.memmap(folder / "tokens.bin", DTYPES[about["dtype"]], "r", shape=(about["tokens"],))
            document_starts = np.asarray(np.load(folder / "documents.npy", mmap_mode="r"))
            return cls(tokens, document_starts, about["bytes"], about["end_of_text"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"the token store {folder} is damaged ({error}): delete it and run again") from error


class TrainingText(Protocol):
    """What is known of any text for training, wherever it is stored."""

    @property
    def num_tokens(self) -> int:
        """Tokens of an epoch."""
        ...

    @property
    def num_documents(self) -> int:
        """Number of documents."""
        ...

    @property
    def beginning(self) -> np.ndarray:
        """The first ten million tokens."""
        ...

    def content_digest(self) -> str:
        """Hash of the content."""
        ...


@dataclass(frozen=True)
class Corpus:
    """A tokenizer and the two splits that it tokenized.

    Attributes:
      tokenizer: the source of the ids.
      train: training tokens: a `TokenStore`, shards or a mixture.
      validation: validation tokens.
    """

    tokenizer: Tokenizer
    train: TrainingText
    validation: TokenStore


def build_corpus(
    data: DataConfig,
    tokenizer: TokenizerConfig,
    kept: Tokenizer | None = None,
    special_tokens: Sequence[str] = (),
) -> Corpus:
    """Opens the corpus that the configs describe, building what is not in the cache yet.

    Args:
      data: what to read.
      tokenizer: the tokenizer to train.
      kept: a tokenizer to use instead of training one, such as that of a work directory.
      special_tokens: tokens that the tokenizer needs in addition to its end-of-text token; missing ones are added.

    Raises:
      UserError: if the source cannot be read, a split is empty, or the cache cannot be written.
    """
    source = Source(data)
    cache = Path(data.cache_dir).expanduser() if data.cache_dir else cache_directory()
    fingerprint = source.fingerprint()
    if kept is not None:
        made = kept
    elif tokenizer.kind == "file":
        made = train_tokenizer(tokenizer, source.documents)
    else:
        made = _cached_tokenizer(cache, fingerprint, source, data, tokenizer)
    made = made.with_special_tokens(special_tokens)
    key = _hash(_FORMAT, "tokens", fingerprint, data.cleaning, made.digest)
    folder = cached(cache / key, lambda target: _write_splits(target, source, data, made))
    return Corpus(made, *(TokenStore.open(folder / split) for split in SPLITS))


def _cached_tokenizer(
    cache: Path, fingerprint: str, source: Source, data: DataConfig, config: TokenizerConfig
) -> Tokenizer:
    def write(folder: Path):
        _check_splits(source)  # before minutes of training, not after
        train_tokenizer(config, lambda split: clean(source.documents(split), data.cleaning)).save(
            folder / "tokenizer.json"
        )
        seal(folder)

    key = _hash(_FORMAT, "tokenizer", fingerprint, data.cleaning, asdict(config))
    folder = cached(cache / key, write)
    check(folder, "cached tokenizer")
    return Tokenizer.load(folder / "tokenizer.json", config.end_of_text)


def _check_splits(source: Source):
    for split in SPLITS:
        next(source.documents(split))


def _write_splits(folder: Path, source: Source, data: DataConfig, tokenizer: Tokenizer):
    _check_splits(source)
    seen: set[bytes] = set()  # shared, so that validation has no exact duplicates of training documents
    with _progress_bar(source.num_bytes) as advance:
        for split in SPLITS:
            documents = clean(source.documents(split), data.cleaning, seen)
            about = _write_store(folder / split, documents, tokenizer, advance)
            if not about["documents"]:
                raise UserError(empty_split_message(split, data))
            about["source"] = (
                data.validation_source if split == "validation" and data.validation_source else data.source
            )
            (folder / split / "store.json").write_text(json.dumps(about, indent=2) + "\n")
            seal(folder / split)


def token_dtype(tokenizer: Tokenizer) -> np.dtype:
    """The type that a tokenizer's ids are stored in."""
    return np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)


def _write_store(
    folder: Path, documents: Iterable[str], tokenizer: Tokenizer, advance: Callable[[int], None]
) -> dict[str, int | str | None]:
    """Streams documents into tokens.bin and documents.npy; returns the counts for store.json."""
    folder.mkdir()
    dtype = token_dtype(tokenizer)
    prefix = [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]
    starts, num_tokens, num_bytes = [], 0, 0
    with open(folder / "tokens.bin", "wb") as stream:
        for texts in text_batches(documents):
            for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
                if not ids:  # WordPiece has no tokens for white space
                    continue
                starts.append(num_tokens)
                np.array(prefix + ids, dtype).tofile(stream)
                num_tokens += len(prefix) + len(ids)
                num_bytes += (size := len(text.encode()))
                advance(size)
        np.array(prefix, dtype).tofile(stream)
    np.save(folder / "documents.npy", np.array(starts, np.int64))
    counts = {"tokens": num_tokens + len(prefix), "documents": len(starts), "bytes": num_bytes}
    return counts | {"dtype": dtype.name, "end_of_text": tokenizer.end_of_text, "tokenizer": tokenizer.digest}


def text_batches(documents: Iterable[str]) -> Iterator[list[str]]:
    """Documents in lists of about a million characters, to encode at once."""
    batch, size = [], 0
    for document in documents:
        batch.append(document)
        size += len(document)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


@contextlib.contextmanager
def _progress_bar(num_bytes: int) -> Iterator[Callable[[int], None]]:
    """A bar with rate and time left on standard error; none if that is not a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress:
        yield functools.partial(progress.advance, progress.add_task("tokenizing", total=num_bytes))


def _hash(*parts: object) -> str:
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()
