"""Sources of documents, each named by one string, `SCHEME:REST`.

    python:stdlib          the standard library of the running Python, without tests
    text:GLOB              text files, one document per file or separated by blank lines; ** matches subfolders
    jsonl:GLOB             JSON lines, or arrays of objects, with the text in one field
    parquet:GLOB           Apache Parquet with the text in one column
    tfds:NAME[/CONFIG]     a tensorflow-datasets set, with its own splits; read without TensorFlow

A new source is a file with a function or a class that gives a `lm.data.readers.Reader`, and an entry in `READERS`.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from lm.data.config import DataConfig, Split
from lm.data.readers import Reader, json_objects, parquet_files, python_source, text_files
from lm.data.remote import is_remote
from lm.data.tfds import TfdsReader
from lm.errors import UserError

READERS: dict[str, Callable[[str, DataConfig], Reader]] = {
    "python": python_source,
    "text": text_files,
    "jsonl": json_objects,
    "parquet": parquet_files,
    "tfds": TfdsReader,
}


class Source:
    """Documents of the training and the validation split of a data config.

    Raises:
      UserError: if a source string is malformed or nothing readable matches it.
    """

    def __init__(self, config: DataConfig):
        self._config = config
        self._reader = open_reader("source", config.source, config)
        self._validation_reader = None
        if config.validation_source is not None:
            self._validation_reader = open_reader("validation_source", config.validation_source, config)

    @property
    def num_bytes(self) -> int:
        """Size of all files in bytes: an upper bound on the size of the text, for progress bars."""
        return sum(file.stat().st_size for file in self._files())

    def documents(self, split: Split) -> Iterator[str]:
        """Yields the documents of a split, always in the same order.

        Raises:
          UserError: if a file cannot be read as its source says, or if the split is empty.
        """
        empty = True
        for document in self._split(split):
            empty = False
            yield document
        if empty:
            raise UserError(empty_split_message(split, self._config))

    def fingerprint(self) -> str:
        """Hash of the content: the bytes of all files and the settings by which they become documents.

        Neither paths nor modification times count, so a moved corpus keeps its fingerprint.

        Raises:
          UserError: if a file cannot be opened.
        """
        config = self._config
        schemes = [source and source.partition(":")[0] for source in (config.source, config.validation_source)]
        settings = [schemes, config.train_split, config.validation_split, config.validation_fraction]
        settings += [config.field, config.document_separator]
        digest = hashlib.blake2b(json.dumps(settings).encode(), digest_size=16)
        for reader in (self._reader, self._validation_reader):
            files = reader.files if reader else ()
            digest.update(len(files).to_bytes(8))
            for file in files:
                digest.update(_file_digest(file))
        return digest.hexdigest()

    def _files(self) -> list[Path]:
        return [*self._reader.files, *(self._validation_reader.files if self._validation_reader else ())]

    def _split(self, split: Split) -> Iterator[str]:
        reader = self._reader
        if self._validation_reader is not None:
            reader = self._validation_reader if split == "validation" else self._reader
        documents = reader.documents(split)
        if self._validation_reader is not None or reader.has_splits:
            return documents
        fraction = self._config.validation_fraction
        return (text for text in documents if is_validation(text, fraction) == (split == "validation"))


def is_validation(text: str, fraction: float) -> bool:
    """Whether a document belongs to validation, decided by a hash of its text alone.

    So equal documents never straddle the split, and neither file names nor their order matter.
    """
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest) < fraction * 2**64


def empty_split_message(split: Split, config: DataConfig) -> str:
    """One line that says why a split may have no documents and which config keys to change."""
    if config.validation_source is not None or config.source.startswith("tfds:"):
        key = "validation_source" if split == "validation" and config.validation_source is not None else "source"
        return f"the {split} split is empty: config.data.{key}={getattr(config, key)} gave no documents"
    message = (
        f"the {split} split is empty: the documents of {config.source} are split by their content; get more of them"
    )
    if config.source.startswith("text:"):
        message += " with config.data.document_separator=blank_line"
    change = "larger" if split == "validation" else "smaller"
    return f"{message}, set a {change} config.data.validation_fraction, or set config.data.validation_source"


def _file_digest(file: Path) -> bytes:
    try:
        with open(file, "rb") as stream:
            return hashlib.file_digest(stream, "blake2b").digest()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}; fix it, or leave it out of the source") from error


def open_reader(key: str, spec: str, config: DataConfig) -> Reader:
    """The reader of a source string.

    Args:
      key: of `config.data` that holds it, for messages.
      spec: the string.
      config: how to read it.

    Raises:
      UserError: if it is malformed or nothing readable matches it.
    """
    scheme, colon, rest = spec.partition(":")
    if is_remote(rest):
        raise UserError(
            f"config.data.{key}={spec} is remote: make shards of it with experiments.tokenize_corpus, and train from "
            "shards:DIR"
        )
    if not colon or scheme not in READERS:
        known = ", ".join(f"{name}:" for name in READERS)
        raise UserError(f"config.data.{key} must start with one of {known}; got {spec!r}")
    return READERS[scheme](rest, config)
