"""Tokenizing a corpus that is larger than a disk or a machine: files of text become shards of windows.

Shard k of N holds the documents of input files k, k + N, k + 2N, ..., so that shards are made independently, by any
number of processes and hosts. `lm.data.shards` says what is in them and reads them. Beside each finished shard lies a
record with its checksum and a digest of what it was made from; a shard that has both is kept when the work goes on. The
index, which makes the folder a corpus, is written when all shards are there.
"""

import dataclasses
import functools
import hashlib
import importlib.util
import itertools
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from lm.data.cache import checksum, seal
from lm.data.cleaning import STREAM_STEPS, clean
from lm.data.config import DataConfig, TokenizerConfig
from lm.data.readers import FileReader
from lm.data.remote import (
    find_remote,
    is_remote,
    join,
    local_copy,
    read_all,
    read_bytes,
    remove,
    size,
    sizes,
    upload,
    write_bytes,
)
from lm.data.shards import BEGINNING, FORMAT, INDEX, TOKENIZER_FILES, VALIDATION, encoded, save_tokenizer
from lm.data.sources import empty_split_message, is_validation, open_reader
from lm.data.store import text_batches, token_dtype
from lm.data.tokenizers import Tokenizer, train_tokenizer
from lm.errors import UserError
from lm.files import with_digest

# The windows are read in random order, so each is compressed for itself.
_WRITER = "group_size:1"
_BEGINNING = 10_000_000  # tokens
_COUNTS = ("windows", "documents", "tokens", "text_bytes")


@dataclasses.dataclass(frozen=True)
class ShardsConfig:
    """How text becomes shards.

    Attributes:
      data: the text: `source`, whose files may be remote, `field`, `document_separator`, `cleaning`, and the share
        `validation_fraction` of documents that is held out. The settings for training have no effect.
      tokenizer: trained on the first part of the text, or read from `path`.
      window: tokens of a window. A model reads them whole or cut into equal parts.
      shards: number of shards, at most one per input file. 0: one per file.
      tokenizer_characters: how much text the tokenizer is trained on; it is taken from all files alike.
    """

    data: DataConfig = DataConfig(validation_fraction=0.001)
    tokenizer: TokenizerConfig = TokenizerConfig(vocab_size=32_768)
    window: int = 2048
    shards: int = 0
    tokenizer_characters: int = 100_000_000

    def __post_init__(self):
        if self.window < 1 or self.shards < 0 or self.tokenizer_characters < 1:
            raise UserError(
                "config.window and config.tokenizer_characters must be at least 1, config.shards at least 0"
            )
        if not 0 < self.data.validation_fraction < 1:
            raise UserError(
                f"config.data.validation_fraction must be between 0 and 1, got {self.data.validation_fraction}: "
                "shards hold out some documents for validation"
            )
        for name in ("validation_source", "mixed_source"):
            if getattr(self.data, name) is not None:
                raise UserError(f"config.data.{name} has no effect on shards: leave it out")
        for name in set(self.data.cleaning) & set(STREAM_STEPS):
            raise UserError(f"config.data.cleaning: {name} would have to see all shards at once: leave it out")


@dataclasses.dataclass(frozen=True)
class Job:
    """The shards to make. It is small and can be sent to other processes.

    Attributes:
      config: of the shards.
      output: the folder that they go to, local or remote.
      files: of the text, in order.
      shards: their number.
      tokenizer: digest of `tokenizer.json` in the folder; empty before it is there.
    """

    config: ShardsConfig
    output: str
    files: tuple[str, ...]
    shards: int
    tokenizer: str = ""

    @classmethod
    def of(cls, config: ShardsConfig, output: str) -> "Job":
        """The job that a config describes.

        Raises:
          UserError: if the source has no files, or fewer than shards.
        """
        files = _files(config.data)
        if config.shards > len(files):
            raise UserError(
                f"config.shards={config.shards}, but config.data.source={config.data.source} has {len(files)} files, "
                "and a file is not divided: choose at most as many shards, or split the files"
            )
        return cls(config, output, tuple(files), config.shards or len(files))

    def with_tokenizer(self, may_train: bool = True) -> "Job":
        """The job with its tokenizer in the folder.

        Args:
          may_train: whether this process makes it if it is missing and has to be trained.

        Raises:
          UserError: if it cannot be made, or the folder holds another one.
        """
        path, config = join(self.output, TOKENIZER_FILES[0]), self.config.tokenizer
        kept = _load_tokenizer(self.output, config.end_of_text) if read_bytes(path) is not None else None
        if config.kind != "file" and kept is None and not may_train:
            raise UserError(
                f"{path} is missing, which part 0 makes: start the other parts when it is there, or name a tokenizer "
                "with config.tokenizer.kind=file and config.tokenizer.path"
            )
        if config.kind == "file" or kept is None:
            made = train_tokenizer(config, lambda _: self._sample())
            if kept is not None and kept.digest != made.digest:
                raise UserError(f"{path} is not config.tokenizer.path={config.path}: choose another --output")
            save_tokenizer(made, self.output)
            kept = made
        return dataclasses.replace(self, tokenizer=kept.digest)

    def write(self, shard: int) -> bool:
        """Makes a shard, unless it is there already; returns whether it had to.

        Raises:
          UserError: if its text cannot be read, or it cannot be written.
        """
        inputs = self._inputs(shard)
        record = self.record(shard)
        if record is not None and record["inputs"] != inputs:
            raise UserError(f"{self.path(shard)} was made from other text or settings: choose another --output")
        if record is not None and _is_whole(self.path(shard), record["file"]):
            return False
        remove(join(self.output, INDEX))  # of shards of which this one was damaged
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / "shard"
            counts, held_out = self._write_windows(shard, local)
            np.savez(Path(folder) / "held_out.npz", allow_pickle=False, **held_out)
            upload(Path(folder) / "held_out.npz", f"{self.path(shard)}.npz")
            upload(local, self.path(shard))
            about = counts | {"inputs": inputs, "file": checksum(local)}
        write_bytes(f"{self.path(shard)}.json", json.dumps(about).encode())  # last: where it is, the shard is complete
        return True

    def finish(self) -> int:
        """Writes the validation split and the index if all shards are there; returns how many are missing.

        Raises:
          UserError: if no document was held out, or the text is shorter than a window.
        """
        found = sizes(self.output)
        missing = [shard for shard in range(self.shards) if f"{self.name(shard)}.json" not in found]
        if missing:
            return len(missing)
        shards = []
        for shard, record in enumerate(self.records()):
            if not record or record["file"]["bytes"] != found.get(self.name(shard)):
                return 1
            shards.append({"name": self.name(shard), "file": record["file"]} | {key: record[key] for key in _COUNTS})
        if not any(each["windows"] for each in shards):
            raise UserError(f"no shard has the {self.config.window + 1} tokens of config.window: make it smaller")
        tokenizer = _tokenizer_of(self)
        self._write_validation(tokenizer)
        index = {
            "format": FORMAT,
            "window": self.config.window,
            "dtype": token_dtype(tokenizer).name,
            "end_of_text": tokenizer.end_of_text,
            "tokenizer": self.tokenizer,
            "shards": shards,
        }
        write_bytes(join(self.output, INDEX), (json.dumps(with_digest(index)) + "\n").encode())
        return 0

    def name(self, shard: int) -> str:
        """File name of a shard."""
        return f"train-{shard:05d}-of-{self.shards:05d}.array_record"

    def path(self, shard: int) -> str:
        """Where a shard is."""
        return join(self.output, self.name(shard))

    def record(self, shard: int) -> dict[str, Any] | None:
        """What is recorded about a finished shard; None if it is not finished, or the record is damaged."""
        return _parsed(read_bytes(f"{self.path(shard)}.json"))

    def records(self) -> list[dict[str, Any]]:
        """What is recorded about all shards; those that are not finished are empty."""
        names = [f"{self.path(shard)}.json" for shard in range(self.shards)]
        return [_parsed(content) or {} for content in read_all(names)]

    def _own(self, shard: int) -> Sequence[str]:
        return self.files[shard :: self.shards]

    def _inputs(self, shard: int) -> str:
        """Digest of what a shard is made from: names and sizes of its files, and the settings."""
        data = self.config.data
        settings = [data.field, data.document_separator, data.cleaning, data.validation_fraction, self.config.window]
        files = [(name, size(name)) for name in self._own(shard)]
        content = json.dumps([FORMAT, data.source.partition(":")[0], files, settings, self.tokenizer])
        return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()

    def _documents(self, files: Sequence[str], held_out: bool) -> Iterator[str]:
        data = self.config.data
        texts = itertools.chain.from_iterable(_read(name, data) for name in files)
        chosen = (text for text in texts if is_validation(text, data.validation_fraction) == held_out)
        return clean(chosen, data.cleaning)

    def _sample(self) -> Iterator[str]:
        """Training documents for the tokenizer, as many characters of each file."""
        share = max(1, self.config.tokenizer_characters // len(self.files))
        for name in self.files:
            left = share
            for text in self._documents([name], held_out=False):
                yield text
                left -= len(text)
                if left <= 0:
                    break

    def _write_windows(self, shard: int, local: Path) -> tuple[dict[str, int], dict[str, np.ndarray]]:
        """Writes the windows of a shard; returns its counts, its documents for validation and, of the first, tokens."""
        tokenizer, windows = _tokenizer_of(self), _Windows(self.config.window)
        beginning = [np.array([], token_dtype(tokenizer))]
        counts = dict.fromkeys(_COUNTS, 0)
        writer = ArrayRecordWriter(str(local), _WRITER)
        for ids, num_bytes in _encoded_documents(tokenizer, self._documents(self._own(shard), held_out=False)):
            counts["documents"] += 1
            counts["text_bytes"] += num_bytes
            if shard == 0 and counts["tokens"] < _BEGINNING:
                beginning.append(ids)
            counts["tokens"] += len(ids)
            windows.add(ids)
            for record in windows.complete():
                writer.write(record)
                counts["windows"] += 1
        writer.close()
        held_out = _stream(tokenizer, self._documents(self._own(shard), held_out=True))
        return counts, held_out | {"beginning": np.concatenate(beginning)[:_BEGINNING]}

    def _write_validation(self, tokenizer: Tokenizer) -> None:
        """Joins the held-out documents of all shards into a token store; the first training tokens lie beside it."""
        parts = []
        for shard in range(self.shards):
            with local_copy(f"{self.path(shard)}.npz") as path, np.load(path) as part:
                parts.append(dict(part))
        lengths = [len(part["tokens"]) for part in parts]
        starts = [
            part["starts"] + before for part, before in zip(parts, itertools.accumulate([0, *lengths]), strict=False)
        ]
        document_starts = np.concatenate(starts)
        if not len(document_starts):
            raise UserError(empty_split_message("validation", self.config.data))
        end = [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]
        tokens = np.concatenate([*(part["tokens"] for part in parts), np.array(end, token_dtype(tokenizer))])
        counts = {"tokens": len(tokens), "documents": len(document_starts)}
        about = counts | {"bytes": sum(int(part["text_bytes"]) for part in parts), "dtype": token_dtype(tokenizer).name}
        about |= {
            "end_of_text": tokenizer.end_of_text,
            "tokenizer": tokenizer.digest,
            "source": self.config.data.source,
        }
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            tokens.tofile(folder / "tokens.bin")
            np.save(folder / "documents.npy", document_starts)
            np.save(folder / BEGINNING, parts[0]["beginning"])
            (folder / "store.json").write_text(json.dumps(about, indent=2) + "\n")
            seal(folder)
            for file in sorted(folder.iterdir()):
                write_bytes(join(self.output, VALIDATION, file.name), file.read_bytes())


def check_beam() -> None:
    """Checks that Apache Beam is installed.

    Raises:
      UserError: if not.
    """
    if importlib.util.find_spec("apache_beam") is None:
        raise UserError("--beam needs another package: pip install 'calibrated-lm[beam]'")


def make_shards(
    job: Job,
    shards: Sequence[int],
    beam_options: Sequence[str] | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Makes shards: in this process, one after another, or with Apache Beam.

    Args:
      job: with its tokenizer.
      shards: which ones.
      beam_options: options of the pipeline, such as `--runner=FlinkRunner`; an empty list is Beam's local runner.
      report: is called with a line about each shard, unless Beam makes them.

    Raises:
      UserError: if one cannot be made.
    """
    if beam_options is None:
        for shard in shards:
            report(f"{job.name(shard)} {'made' if job.write(shard) else 'kept'}")
        return
    import apache_beam
    from apache_beam.options.pipeline_options import PipelineOptions

    try:
        with apache_beam.Pipeline(
            options=PipelineOptions(["--default_sdk_harness_log_level=WARNING", *beam_options])
        ) as pipeline:
            numbers = pipeline | apache_beam.Create(list(shards)) | apache_beam.Reshuffle()
            numbers | apache_beam.Map(job.write)
    except UserError:
        raise
    except Exception as error:  # of some runners only the text of what a worker raised arrives
        if found := re.search(r"UserError: (.+?)(?: \[while running|\\n|\n|$)", str(error)):
            raise UserError(found[1]) from error
        raise


class _Windows:
    """Cuts a stream of documents into windows of L + 1 tokens. Each begins with the last token of the previous one.

    Args:
      length: L.
    """

    def __init__(self, length: int):
        self._length = length
        self._parts: list[np.ndarray] = []
        self._starts: list[int] = []  # of documents, in what is left of the stream
        self._size = 0

    def add(self, ids: np.ndarray) -> None:
        """Appends a document."""
        self._starts.append(self._size)
        self._parts.append(ids)
        self._size += len(ids)

    def complete(self) -> Iterator[bytes]:
        """Yields the records of the windows that are complete, and forgets them."""
        count = (self._size - 1) // self._length
        if count < 1:
            return
        stream = np.concatenate(self._parts)
        starts = np.array(self._starts)
        for begin in range(0, count * self._length, self._length):
            first, last = np.searchsorted(starts, (begin + 1, begin + self._length + 1))
            yield encoded(stream[begin : begin + self._length + 1], starts[first:last] - begin)
        left = count * self._length
        self._parts, self._size = [stream[left:]], self._size - left
        self._starts = (starts[starts >= left] - left).tolist()


def _encoded_documents(tokenizer: Tokenizer, documents: Iterator[str]) -> Iterator[tuple[np.ndarray, int]]:
    """The tokens of each document, the end-of-text token before them, and its bytes."""
    prefix = [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]
    for texts in text_batches(documents):
        for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
            if ids:
                yield np.array(prefix + ids, token_dtype(tokenizer)), len(text.encode())


def _stream(tokenizer: Tokenizer, documents: Iterator[str]) -> dict[str, np.ndarray]:
    """Documents as one stream: `tokens`, `starts` of documents, and `text_bytes`."""
    found = list(_encoded_documents(tokenizer, documents))
    lengths = [len(ids) for ids, _ in found]
    tokens = np.concatenate([np.array([], token_dtype(tokenizer)), *(ids for ids, _ in found)])
    starts = np.array(list(itertools.accumulate([0, *lengths]))[: len(lengths)], np.int64)
    return {"tokens": tokens, "starts": starts, "text_bytes": np.array(sum(num_bytes for _, num_bytes in found))}


def _parsed(content: bytes | None) -> dict[str, Any] | None:
    try:
        record = json.loads(content or b"")
        return record if {"inputs", "file", *_COUNTS} <= record.keys() else None
    except (ValueError, AttributeError):
        return None


def _files(data: DataConfig) -> list[str]:
    rest = data.source.partition(":")[2]
    return find_remote(rest) if is_remote(rest) else [str(file) for file in _file_reader(data, data.source).files]


def _file_reader(data: DataConfig, source: str) -> FileReader:
    reader = open_reader("source", source, data)
    if not isinstance(reader, FileReader):
        raise UserError(f"config.data.source={data.source}: shards are made of files: text:, jsonl: or parquet:")
    return reader


@functools.lru_cache(maxsize=1)
def _read_function(data: DataConfig) -> Callable[[Path], Iterator[str]]:
    """How a file becomes documents."""
    scheme = data.source.partition(":")[0]
    # Any file will do for its reader, but the standard library is not named by files.
    return _file_reader(data, data.source if scheme == "python" else f"{scheme}:{__file__}").read


def _read(name: str, data: DataConfig) -> Iterator[str]:
    """The documents of a file."""
    with local_copy(name) as path:
        yield from _read_function(data)(path)


def _load_tokenizer(folder: str, end_of_text: bool) -> Tokenizer:
    with tempfile.TemporaryDirectory() as name:
        for file in TOKENIZER_FILES:
            if (content := read_bytes(join(folder, file))) is not None:
                (Path(name) / file).write_bytes(content)
        return Tokenizer.load(name, end_of_text)


@functools.lru_cache(maxsize=1)
def _tokenizer_of(job: Job) -> Tokenizer:
    """Loaded once in each process."""
    return _load_tokenizer(job.output, job.config.tokenizer.end_of_text)


def _is_whole(name: str, expected: dict[str, int]) -> bool:
    """Whether a file is as it was written. A remote one is compared by its size alone, without reading it."""
    if is_remote(name):
        return sizes(name).get(name.rpartition("/")[2]) == expected["bytes"]
    path = Path(name).expanduser()
    return path.is_file() and checksum(path) == expected
