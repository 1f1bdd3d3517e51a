"""Corrupting text on the host: random numbers by row, and the operations that all kinds of corruption share.

Everything works on whole batches. Random numbers are drawn for each row of the global batch, so that a row is corrupted
in the same way whichever host holds it.

Axes: b rows of this host's batch, T tokens of a row, U units of a row (runs of tokens that are hidden together; there
are at most T).
"""

import abc
from collections.abc import Callable

import numpy as np

from lm.data.store import Corpus
from lm.data.windows import TrainBatches, ValidationBatches, host_rows
from lm.types import Batches, HostBatch

TRAINING, VALIDATION = 1, 2  # separate random streams for the splits, distinct from the order of windows


class RowRandom:
    """Random numbers for this host's rows of a batch.

    Args:
      key: non-negative integers that determine the numbers.
      batch_size: rows of the global batch.
      rows: those of this host.
    """

    def __init__(self, key: tuple[int, ...], batch_size: int, rows: slice):
        self._generator = np.random.default_rng(key)
        self._batch_size = batch_size
        self._rows = rows

    def uniform(self, *shape: int) -> np.ndarray:
        """Numbers in [0, 1), [b, *shape]."""
        return self._generator.random((self._batch_size, *shape))[self._rows]

    def integers(self, below: int | np.ndarray, *shape: int) -> np.ndarray:
        """Integers from 0 to `below` - 1, [b, *shape]; `below` must broadcast with that."""
        # The product can round up to `below`.
        return np.minimum((self.uniform(*shape) * below).astype(np.int64), np.asarray(below) - 1)

    def drawn_from(self, probabilities: np.ndarray, *shape: int) -> np.ndarray:
        """Indices sampled by a list of probabilities, [b, *shape]."""
        cumulative = np.cumsum(probabilities)
        return np.searchsorted(cumulative[:-1] / cumulative[-1], self.uniform(*shape), side="right")


Corruption = Callable[[HostBatch, RowRandom], HostBatch]


class CorruptedBatches:
    """Batches of corrupted windows, corrupted differently at each step: a pure function of (seed, step).

    Args:
      windows: `lm.data.windows.TrainBatches` or `ValidationBatches`.
      corrupt: from a batch of windows to a batch for a task.
      batch_size: rows of the global batch.
      key: non-negative integers that determine the corruption together with the step.
      host: index of this host.
      hosts: number of hosts.
    """

    def __init__(
        self,
        windows: Batches,
        corrupt: Corruption,
        batch_size: int,
        key: tuple[int, ...],
        host: int = 0,
        hosts: int = 1,
    ):
        self._windows, self._corrupt, self._batch_size, self._key = windows, corrupt, batch_size, key
        self._rows = host_rows(batch_size, host, hosts)

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, step: int) -> HostBatch:
        windows = self._windows[step]
        return self._corrupt(windows, RowRandom((*self._key, step), self._batch_size, self._rows))


class CorruptsWindows(abc.ABC):
    """The batches of a task that corrupts windows of text."""

    @property
    @abc.abstractmethod
    def window_length(self) -> int:
        """Tokens of a window."""

    @abc.abstractmethod
    def corrupt(self, windows: HostBatch, random: RowRandom) -> HostBatch:
        """A batch for the task from a batch of `lm.data.windows`."""

    def train_batches(
        self, corpus: Corpus, batch_size: int, seed: int, random_offsets: bool = False, host: int = 0, hosts: int = 1
    ) -> CorruptedBatches:
        """Shuffled windows of the training split, corrupted differently each time."""
        windows = TrainBatches(corpus.train, self.window_length, batch_size, seed, random_offsets, host, hosts)
        return CorruptedBatches(windows, self.corrupt, batch_size, (seed, TRAINING), host, hosts)

    def validation_batches(self, corpus: Corpus, batch_size: int, host: int = 0, hosts: int = 1) -> CorruptedBatches:
        """Consecutive windows of the validation split, always corrupted in the same way."""
        windows = ValidationBatches(corpus.validation, self.window_length, batch_size, host, hosts)
        return CorruptedBatches(windows, self.corrupt, batch_size, (0, VALIDATION), host, hosts)


def units_of(begins_bT: np.ndarray, allowed_bT: np.ndarray, segments_bT: np.ndarray) -> np.ndarray:
    """The index of each token's unit, from 0 in each row, [b, T].

    Args:
      begins_bT: whether a token begins a unit.
      allowed_bT: tokens that may be hidden; units never extend beyond a run of them.
      segments_bT: units never cross from one into the next.
    """
    begins_bT = begins_bT | ~allowed_bT
    begins_bT[:, 1:] |= ~allowed_bT[:, :-1] | (segments_bT[:, 1:] != segments_bT[:, :-1])
    begins_bT[:, 0] = True
    return np.cumsum(begins_bT, axis=1) - 1


def joined_units(units_bT: np.ndarray, lengths_bU: np.ndarray) -> np.ndarray:
    """Whether each token begins a span, where consecutive spans take `lengths_bU` units, [b, T].

    Args:
      units_bT: unit of each token, from 0.
      lengths_bU: units of each span, at least 1.
    """
    batch, length = units_bT.shape
    begins_bU = np.zeros((batch, length + 1), bool)
    starts_bU = np.cumsum(lengths_bU, axis=1) - lengths_bU
    np.put_along_axis(begins_bU, np.minimum(starts_bU, length), True, axis=1)
    first_bT = np.diff(units_bT, axis=1, prepend=-1) > 0
    return first_bT & np.take_along_axis(begins_bU, units_bT, axis=1)


def chosen_units(units_bT: np.ndarray, allowed_bT: np.ndarray, budget_b: np.ndarray, random: RowRandom) -> np.ndarray:
    """Chooses whole units in random order, skipping those that no longer fit the budget.

    Args:
      units_bT: unit of each token, from 0.
      allowed_bT: tokens that may be chosen: all or none of a unit.
      budget_b: tokens to choose in each row, at most.
      random: for the order.

    Returns:
      Whether each token is chosen, [b, T].
    """
    batch, length = units_bT.shape
    order_bU = np.argsort(random.uniform(length), axis=1)
    flat = (np.arange(batch)[:, None] * length + units_bT)[allowed_bT]
    sizes_bU = np.bincount(flat, minlength=batch * length).reshape(batch, length)
    sizes_bU = np.take_along_axis(sizes_bU, order_bU, axis=1)
    left_b1 = budget_b[:, None]
    chosen_bU = np.zeros((batch, length), bool)
    while True:
        # A unit that does not fit now never will, so each round takes the units before the first that does not fit.
        fitting_bU = np.where(chosen_bU | (sizes_bU > left_b1), 0, sizes_bU)
        taken_bU = (fitting_bU > 0) & (np.cumsum(fitting_bU, axis=1) <= left_b1)
        if not taken_bU.any():
            break
        chosen_bU |= taken_bU
        left_b1 = left_b1 - (sizes_bU * taken_bU).sum(axis=1, keepdims=True)
    by_unit_bU = np.empty_like(chosen_bU)
    np.put_along_axis(by_unit_bU, order_bU, chosen_bU, axis=1)
    return np.take_along_axis(by_unit_bU, units_bT, axis=1) & allowed_bT


def compacted(keep_bT: np.ndarray, length: int, *arrays_bT: np.ndarray) -> list[np.ndarray]:
    """Moves the kept values of each row to the front, followed by zeros up to `length`: [b, length] each.

    Values that don't fit are dropped.
    """
    places_bT = np.cumsum(keep_bT, axis=1) - 1
    rows, columns = np.nonzero(keep_bT & (places_bT < length))
    results = []
    for values_bT in arrays_bT:
        result = np.zeros((len(keep_bT), length), values_bT.dtype)
        result[rows, places_bT[rows, columns]] = values_bT[rows, columns]
        results.append(result)
    return results


def positions_in_segments(segments_bT: np.ndarray) -> np.ndarray:
    """Each token's position in its run of equal segments, from 0, int32 [b, T]."""
    index_T = np.arange(segments_bT.shape[1], dtype=np.int32)
    starts_bT = np.zeros(segments_bT.shape, np.int32)
    starts_bT[:, 1:] = np.where(segments_bT[:, 1:] != segments_bT[:, :-1], index_T[1:], 0)
    return index_T - np.maximum.accumulate(starts_bT, axis=1)
