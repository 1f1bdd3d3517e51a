"""Sources of documents, each named by one string, `SCHEME:REST`.

    python:stdlib          the standard library of the running Python, without its tests
    text:GLOB              text files, one document a file or one between blank lines; ** reaches into subfolders
    jsonl:GLOB             JSON lines, the text in one field
    tfds:NAME[/CONFIG]     a tensorflow-datasets set, with its own splits; read without TensorFlow

A new source is one function or class that gives a `Reader`, and one entry in `READERS`.
"""

import hashlib
import importlib.util
import json
import os
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lm.data.config import DataConfig, Split
from lm.data.files import check_surrogates, decode, find_files, parse_object, read_lines
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
        """Every file that the documents are made of, in reading order."""
        ...

    def documents(self, split: Split) -> Iterator[str]:
        """Yields the documents of a split, or all of them where the source has no splits of its own."""
        ...


@dataclass(frozen=True)
class FileReader:
    """Files, each read into documents by one function."""

    files: Sequence[Path]
    read: Callable[[Path], Iterator[str]]
    has_splits: bool = False

    def documents(self, split: Split) -> Iterator[str]:
        """Yields the documents of all files in order, whatever the split."""
        for file in self.files:
            yield from self.read(file)


class TfdsReader:
    """A prepared tensorflow-datasets set (array_record), read row by row without TensorFlow."""

    has_splits = True

    def __init__(self, name: str, config: DataConfig):
        self._name = name
        self._field = config.field
        self._expressions = {"train": config.train_split, "validation": config.validation_split}
        self._builder = tfds_builder(name)
        self.files = sorted(file for file in map(Path, self._builder.data_path.iterdir()) if file.is_file())

    def documents(self, split: Split) -> Iterator[str]:
        """Yields the texts of the rows that the split expression selects."""
        rows = self._rows(split)
        for i in range(len(rows)):
            row = rows[i]
            text = row.get(self._field)
            if not isinstance(text, bytes | str):
                raise UserError(_no_field(f"tfds:{self._name}", self._field, row))
            yield decode(text, f"row {i} of tfds:{self._name}") if isinstance(text, bytes) else text

    def _rows(self, split: Split) -> Sequence[dict]:
        return tfds_rows(self._builder, self._name, self._expressions[split], f"config.data.{split}_split")


class Source:
    """Documents of the training and the validation split of a data config.

    Raises:
      UserError: if a source string is malformed or names nothing that can be read.
    """

    def __init__(self, config: DataConfig):
        self._config = config
        self._reader = _open_reader("source", config.source, config)
        self._validation_reader = None
        if config.validation_source is not None:
            self._validation_reader = _open_reader("validation_source", config.validation_source, config)

    @property
    def num_bytes(self) -> int:
        """Size of all files in bytes: an upper bound of the text, for progress bars."""
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
        """Hash of the content: of all files' bytes and the settings that make documents of them.

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
    """Whether a document belongs to validation: a hash of its text alone decides.

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
        f"the {split} split is empty: the documents of {config.source} are split by their content; make more of them"
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
        raise UserError(f"cannot read {file}: {error.strerror}; mend it, or leave it out of the source") from error


def _open_reader(key: str, spec: str, config: DataConfig) -> Reader:
    scheme, colon, rest = spec.partition(":")
    if not colon or scheme not in READERS:
        known = ", ".join(f"{name}:" for name in READERS)
        raise UserError(f"config.data.{key} must start with one of {known}; got {spec!r}")
    return READERS[scheme](rest, config)


def _python(rest: str, config: DataConfig) -> Reader:
    if rest != "stdlib":
        raise UserError(f"config.data.source: python: knows only python:stdlib, got 'python:{rest}'")
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [file for file in root.rglob("*.py") if not _NOT_LIBRARY & set(file.relative_to(root).parts)]
    return FileReader(sorted(files), _whole_file)


def _text(pattern: str, config: DataConfig) -> Reader:
    by_line = config.document_separator == "blank_line"
    return FileReader(find_files(f"text:{pattern}", pattern), _blank_line_documents if by_line else _whole_file)


def _jsonl(pattern: str, config: DataConfig) -> Reader:
    return FileReader(find_files(f"jsonl:{pattern}", pattern), lambda file: _json_lines(file, config.field))


READERS: dict[str, Callable[[str, DataConfig], Reader]] = {
    "python": _python,
    "text": _text,
    "jsonl": _jsonl,
    "tfds": TfdsReader,
}


def _whole_file(file: Path) -> Iterator[str]:
    yield "".join(read_lines(file))


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


def _json_lines(file: Path, field: str) -> Iterator[str]:
    for number, line in enumerate(read_lines(file), start=1):
        if not line.strip():
            continue
        place = f"{file}:{number}"
        row = parse_object(line, place)
        if not isinstance(row.get(field), str):
            raise UserError(_no_field(place, field, row))
        check_surrogates(row[field], field, place)
        yield row[field]


def _no_field(place: str, field: str, row: dict) -> str:
    fault = f"the field {field!r} is not text" if field in row else f"there is no field {field!r}"
    return f"{place}: {fault}; set config.data.field to one of {', '.join(map(str, row))}"


def tfds_rows(builder, name: str, split: str, key: str) -> Sequence[dict]:
    """Rows of the part of a set that a split expression selects, such as "train[:90%]".

    Raises:
      UserError: naming `key`, if the set has no such split.
    """
    try:
        if not builder.info.splits[split].num_examples:
            return ()  # as_data_source fails on an empty slice
        return builder.as_data_source(split=split)
    except (ValueError, KeyError) as error:
        known = ", ".join(builder.info.splits)
        raise UserError(f"{key}: tfds:{name} has no split {split!r}; it has {known}") from error


def tfds_builder(name: str):
    """The set's builder, prepared if TensorFlow is there to do it.

    Raises:
      UserError: if there is no such set, or none that is prepared in a format that TensorFlow isn't needed for.
    """
    import tensorflow_datasets as tfds  # takes a second, and only this source needs it

    # Read here, not by the library: it looks at the environment only once, when it is imported.
    data_dir = os.environ.get("TFDS_DATA_DIR")
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except (ValueError, ImportError) as error:
        raise UserError(
            f"tensorflow-datasets knows no set {name!r}, or it needs a configuration, as in glue/sst2: "
            "see https://www.tensorflow.org/datasets/catalog"
        ) from error
    if builder.is_prepared():
        return _array_record(builder, name)
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            f"tfds:{name} is not prepared in {builder.data_dir}: set TFDS_DATA_DIR to the folder that has it, "
            "or pip install 'calibrated-lm[tfds]' and run again"
        )
    builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    try:
        builder.download_and_prepare()
    except Exception as error:  # anything, from a lost connection to a missing checksum
        reason = str(error).partition("\n")[0]
        raise UserError(f"tfds:{name} could not be prepared in {builder.data_dir}: {reason}") from error
    return builder


def _array_record(builder, name: str):
    file_format = builder.info.file_format.value
    if file_format not in ("array_record", "parquet"):
        raise UserError(
            f"tfds:{name} in {builder.data_dir} is prepared as {file_format}, which only TensorFlow reads: prepare it "
            f"again with tfds.builder({name!r}, file_format='array_record').download_and_prepare()"
        )
    return builder
