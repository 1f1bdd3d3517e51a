"""Windows of a token store and batches of them: a batch is a pure function of (seed, step).

So a run resumes exactly from its step alone, without seeking, and on a different number of hosts.

Axes: b rows of this host's batch, T positions in a window.

Every batch is a dict of [b, T] arrays:
    tokens     int32    what the model sees
    targets    int32    the stream's next token
    weights    float32  1 where the target counts, 0 at padding and where the target begins another document and no
                        end-of-text token comes between
    positions  int32    position in the segment, from 0 at each document's start and at the window's start
    segments   int32    the document of the window that a token belongs to, from 1; 0 at padding
"""

import functools
import math
from collections.abc import Callable, Iterator

import grain
import numpy as np

from lm.data.mixtures import Mixture
from lm.data.shards import ShardedText
from lm.data.store import TokenStore, TrainingText
from lm.errors import UserError
from lm.types import Batches, HostBatch

# From numbers of rows [b] in an endless order to a batch of them.
Rows = Callable[[np.ndarray], HostBatch]

ENDLESS = 2**62  # rows of an endless sequence: len() must fit a machine word


def window(store: TokenStore, start: int, length: int) -> HostBatch:
    """One window: the arrays of a batch without the batch axis, [T].

    Args:
      store: the stream.
      start: position of the window's first token.
      length: T. Positions beyond the last target of the stream are padding.
    """
    return {name: rows[0] for name, rows in _gather(store, np.array([start]), length).items()}


class TrainBatches:
    """Shuffled windows for training, endless; every window of a text comes once per epoch.

    `batches[step]` is a dict of [b, T] arrays with b = batch_size / hosts. The windows of the global batch are rows
    step * batch_size to (step + 1) * batch_size of an endless order, each epoch of which is a permutation of its own.

    Args:
      text: a stream, shards or a mixture of them.
      length: T.
      batch_size: rows of the global batch.
      seed: at least 0.
      random_offsets: shift each window of a stream by an offset in [0, T), redrawn each epoch, so that borders vary
        and the end of the stream, shorter than a window, is covered too. Shards cannot do this.
      host: index of this host; it gets the `host`-th part of the rows of each global batch.
      hosts: number of hosts.

    Raises:
      UserError: if hosts does not divide batch_size, if a stream is shorter than one window, or if shards have windows
        of another length.
    """

    def __init__(
        self,
        text: TrainingText,
        length: int,
        batch_size: int,
        seed: int,
        random_offsets: bool = False,
        host: int = 0,
        hosts: int = 1,
    ):
        self._rows = shuffled_rows(text, length, seed, random_offsets)
        self._batch_size = batch_size
        self._host_rows = np.arange(batch_size)[host_rows(batch_size, host, hosts)]

    def __len__(self) -> int:
        """Practically endless: larger than any training run needs."""
        return ENDLESS // self._batch_size

    def __getitem__(self, step: int) -> HostBatch:
        return self._rows(step * self._batch_size + self._host_rows)


def shuffled_rows(text: TrainingText, length: int, seed: int, random_offsets: bool) -> Rows:
    """The endless shuffled order of a text's windows, as a function from row numbers [b] to a batch of these rows.

    Raises:
      UserError: as `TrainBatches`.
    """
    match text:
        case TokenStore():
            return ShuffledWindows(text, length, seed, random_offsets)
        case ShardedText():
            return text.shuffled(length, seed, random_offsets)
        case Mixture():
            return text.rows([shuffled_rows(part, length, seed, random_offsets) for part in text.parts])
    raise TypeError(f"no windows of a {type(text).__name__}")


class ShuffledWindows:
    """Rows of an endless order of a stream's windows, each epoch of which is a permutation of its own.

    Args:
      store: the stream.
      length: T.
      seed: at least 0.
      random_offsets: as in `TrainBatches`.

    Raises:
      UserError: if the stream is shorter than one window.
    """

    def __init__(self, store: TokenStore, length: int, seed: int, random_offsets: bool = False):
        if store.num_tokens < length + 1:
            raise UserError(
                f"the training split has {store.num_tokens} tokens, fewer than a window of {length} and its target"
                f" ({length + 1}): set a smaller config.model.sequence_length or a larger config.data.source"
            )
        self._store = store
        self._length = length
        self._seed = seed
        self._random_offsets = random_offsets
        # Two epochs, for a batch that straddles them; a cache on the method would keep the object alive.
        self._epoch_starts = functools.lru_cache(maxsize=2)(self._make_epoch_starts)

    @property
    def num_windows(self) -> int:
        """Windows in an epoch."""
        return (self._store.num_tokens - 1) // self._length

    def __call__(self, rows_b: np.ndarray) -> HostBatch:
        """The windows of some rows of the order, which may lie in several epochs."""
        epochs_b, places_b = np.divmod(rows_b, self.num_windows)
        starts_b = np.empty_like(places_b)
        for epoch in np.unique(epochs_b).tolist():
            inside_b = epochs_b == epoch
            starts_b[inside_b] = self._epoch_starts(epoch)[places_b[inside_b]]
        return _gather(self._store, starts_b, self._length)

    def _make_epoch_starts(self, epoch: int) -> np.ndarray:
        random = np.random.default_rng((self._seed, epoch))
        starts = random.permutation(self.num_windows) * self._length
        if self._random_offsets:
            starts += random.integers(self._length, size=self.num_windows)
        return np.minimum(starts, self._store.num_tokens - 1 - self._length)


class ValidationBatches:
    """Consecutive windows in order: every target of the stream occurs exactly once, with weight 1.

    The last window is padded, and rows missing from the last batch are padding throughout, so that all hosts have the
    same number of batches of the same shape.

    Args:
      store: the stream.
      length: T.
      batch_size: rows of the global batch.
      host: index of this host.
      hosts: number of hosts.

    Raises:
      UserError: if hosts does not divide batch_size, or if the stream has no target.
    """

    def __init__(self, store: TokenStore, length: int, batch_size: int, host: int = 0, hosts: int = 1):
        if store.num_tokens < 2:
            raise UserError(
                "the validation split has fewer than 2 tokens, so there is nothing to predict: set a larger "
                "config.data.validation_fraction or config.data.validation_source"
            )
        self._store = store
        self._length = length
        self._batch_size = batch_size
        self._host_rows = host_rows(batch_size, host, hosts)

    def __len__(self) -> int:
        """Number of batches, the same on every host."""
        return math.ceil((self._store.num_tokens - 1) / (self._length * self._batch_size))

    def __getitem__(self, index: int) -> HostBatch:
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        rows = index * self._batch_size + np.arange(self._batch_size)
        return _gather(self._store, rows[self._host_rows] * self._length, self._length)


class MixedBatches:
    """Batches of one text in which a share of the rows comes from another.

    Args:
      first: batches for training.
      second: with equally many rows and the same arrays.
      share: of the rows that come from `second`; rounded to whole rows of this host's part.

    Raises:
      UserError: if one of the texts would have no rows.
    """

    def __init__(self, first: Batches, second: Batches, share: float):
        self._first, self._second = first, second
        self._rows = mixed_rows(share, len(next(iter(first[0].values()))))

    def __len__(self) -> int:
        """Practically endless, like its parts."""
        return min(len(self._first), len(self._second))

    def __getitem__(self, step: int) -> HostBatch:
        first, second = self._first[step], self._second[step]
        return {
            name: np.concatenate([second[name][: self._rows], values[self._rows :]]) for name, values in first.items()
        }


def mixed_rows(share: float, rows: int, field: str = "config.data.mixed_share") -> int:
    """How many rows of a batch come from the other text.

    Raises:
      UserError: if one of the texts would have no rows; the message names the field.
    """
    mixed = round(share * rows)
    if not 0 < mixed < rows:
        raise UserError(
            f"{field}={share} of {rows} windows is {mixed} when rounded: choose a share that leaves windows of both "
            "texts, or a larger config.training.batch_size"
        )
    return mixed


def prefetch(batches: Batches, start: int = 0, threads: int = 1, buffer: int = 4) -> Iterator[HostBatch]:
    """Yields batches[start], batches[start + 1], ... prepared ahead of time by threads.

    Args:
      batches: `TrainBatches`, `ValidationBatches` or any other sequence.
      start: first index, as the step to resume from.
      threads: how many prepare batches; 0 prepares each one on demand.
      buffer: how many batches to keep ready.
    """
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer if threads else 0)
    return iter(grain.MapDataset.source(batches)[start:].to_iter_dataset(options))


def host_rows(batch_size: int, host: int, hosts: int) -> slice:
    """The rows of a global batch that belong to one of several hosts.

    Raises:
      UserError: if hosts does not divide batch_size.
    """
    if batch_size % hosts:
        raise UserError(f"config.training.batch_size={batch_size} must be divisible by the number of hosts, {hosts}")
    share = batch_size // hosts
    return slice(host * share, (host + 1) * share)


def _gather(store: TokenStore, starts: np.ndarray, length: int) -> HostBatch:
    """All rows at once: windows that start at `starts` [b], padded where they leave the stream."""
    last = store.num_tokens - 1  # the last token is a target and never an input
    index = starts[:, None] + np.arange(length + 1)  # [b, T + 1]
    inside = index[:, :-1] < last
    index = np.minimum(index, last)
    stream = np.asarray(store.tokens)[index]
    document = np.searchsorted(store.document_starts, index, side="right")  # counted from 1
    predicted = inside if store.has_end_of_text else document[:, 1:] == document[:, :-1]
    index, document = index[:, :-1], document[:, :-1]
    segment_starts = np.maximum(store.document_starts[document - 1], starts[:, None])
    batch = {
        "tokens": stream[:, :-1].astype(np.int32),
        "targets": stream[:, 1:].astype(np.int32),
        "weights": predicted.astype(np.float32),
        "positions": (index - segment_starts).astype(np.int32),
        "segments": (document - document[:, :1] + 1).astype(np.int32),
    }
    if inside.all():
        return batch
    return {name: values * inside.astype(values.dtype) for name, values in batch.items()}
