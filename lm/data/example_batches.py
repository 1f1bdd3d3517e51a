"""Batches of examples of different lengths: a batch is a pure function of (seed, step), and there are few shapes.

The lengths of an example are rounded up to buckets (Khomenko et al. 2016), and each batch holds examples with the same
rounded lengths. So there is little padding, and a model is compiled only once for each combination of buckets.

Axes: b rows of this host's batch; the task names the other axes.

An example is a dict of arrays: those named in the task's `axes` are 1-D, such as {"tokens": [T]}, the others are
scalars. A batch stacks them, padded, and adds
    row_weights  [b] float32  1, or 0 for a filler row, which holds padding, and zeros for scalars
    index        [b] int32    index of the example, or -1
"""

import bisect
import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from lm.data.windows import host_rows
from lm.errors import UserError
from lm.types import HostBatch

Example = Mapping[str, np.ndarray]
# The padded length of each axis, in the order of the axes' names.
Shape = tuple[int, ...]

_ENDLESS = 2**62  # len() must fit a machine word


class _ExampleBatches:
    """What batches for training and for evaluation share: examples in groups, each of one shape."""

    def __init__(
        self,
        examples: Sequence[Example],
        axes: Mapping[str, str],
        padding: Mapping[str, int],
        batch_size: int,
        buckets: Sequence[int],
        host: int,
        hosts: int,
    ):
        if not examples:
            raise UserError("there are no examples to batch: name a source that has rows")
        self._examples = examples
        self._axes = axes
        self._axis_names = tuple(sorted(set(axes.values())))
        self._padding = padding
        self._batch_size = batch_size
        self._host_rows = host_rows(batch_size, host, hosts)
        self._lengths_NA = np.array([self._lengths(example) for example in examples], np.int64)
        shapes = [tuple(bucketed(length, buckets) for length in lengths) for lengths in self._lengths_NA.tolist()]
        self._groups = grouped(shapes, batch_size)

    @property
    def shapes(self) -> list[dict[str, int]]:
        """The padded lengths of batches, by axis."""
        return [dict(zip(self._axis_names, shape, strict=True)) for shape in self._groups]

    @property
    def tokens_per_epoch(self) -> int:
        """Sum of the examples' lengths, over all axes."""
        return int(self._lengths_NA.sum())

    @property
    def padding_share(self) -> float:
        """The share of an epoch's batches that is padding, filler rows included."""
        cells = sum(
            self._batches_of(members) * self._batch_size * sum(shape) for shape, members in self._groups.items()
        )
        return 1 - self.tokens_per_epoch / cells if cells else 0.0

    @property
    def _batches_per_epoch(self) -> int:
        return sum(map(self._batches_of, self._groups.values()))

    def _batches_of(self, members: np.ndarray) -> int:
        return math.ceil(len(members) / self._batch_size)

    def _lengths(self, example: Example) -> Shape:
        longest = dict.fromkeys(self._axis_names, 0)
        for name, axis in self._axes.items():
            longest[axis] = max(longest[axis], len(example[name]))
        return tuple(longest.values())

    def _plan(self, random: np.random.Generator | None = None) -> list[tuple[Shape, np.ndarray]]:
        """The shape and the example indices of each batch of an epoch, [batch_size], -1 for filler rows."""
        plan = []
        for shape, members in self._groups.items():
            order = np.full(self._batches_of(members) * self._batch_size, -1)
            order[: len(members)] = members if random is None else random.permutation(members)
            plan += [(shape, index) for index in order.reshape(-1, self._batch_size)]
        return plan if random is None else [plan[i] for i in random.permutation(len(plan))]

    def _assemble(self, shape: Shape, index: np.ndarray) -> HostBatch:
        index_b = index[self._host_rows].astype(np.int32)
        lengths = dict(zip(self._axis_names, shape, strict=True))
        batch = {name: self._stack(name, index_b, lengths) for name in self._examples[0]}
        return batch | {"row_weights": (index_b >= 0).astype(np.float32), "index": index_b}

    def _stack(self, name: str, index_b: np.ndarray, lengths: Mapping[str, int]) -> np.ndarray:
        dtype = np.asarray(self._examples[0][name]).dtype
        if name not in self._axes:
            return np.array([self._examples[i][name] if i >= 0 else 0 for i in index_b], dtype)
        padded = np.full((len(index_b), lengths[self._axes[name]]), self._padding.get(name, 0), dtype)
        for row, i in zip(padded, index_b, strict=True):
            if i >= 0:
                values = self._examples[i][name]
                row[: len(values)] = values
        return padded


class TrainExampleBatches(_ExampleBatches):
    """Shuffled examples for training, endless; every example comes once per epoch.

    Each epoch redraws which examples of a group share a batch, and the order of the batches.

    Args:
      examples: dicts with the same names.
      axes: the axis of each 1-D array, such as {"tokens": "T", "segments": "T"}; arrays that share an axis are padded
        to the same length.
      padding: value to pad each array with; 0 by default.
      batch_size: rows of the global batch.
      seed: at least 0.
      buckets: lengths, increasing; longer examples are padded to a multiple of the last. Where a shape would have fewer
        examples than a batch, they join longer ones.
      host: index of this host; it gets the `host`-th part of the rows of each global batch.
      hosts: number of hosts.

    Raises:
      UserError: if hosts does not divide batch_size, or if there are no examples.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        axes: Mapping[str, str],
        padding: Mapping[str, int],
        batch_size: int,
        seed: int,
        buckets: Sequence[int],
        host: int = 0,
        hosts: int = 1,
    ):
        super().__init__(examples, axes, padding, batch_size, buckets, host, hosts)
        self._seed = seed
        # Two epochs, for threads that read ahead; a cache on the method would keep the object alive.
        self._epoch_plan = functools.lru_cache(maxsize=2)(self._make_epoch_plan)

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches in which every example comes once."""
        return self._batches_per_epoch

    def __len__(self) -> int:
        """Practically endless: larger than any training run needs."""
        return _ENDLESS // self._batch_size

    def __getitem__(self, step: int) -> HostBatch:
        epoch, place = divmod(step, self.steps_per_epoch)
        return self._assemble(*self._epoch_plan(epoch)[place])

    def _make_epoch_plan(self, epoch: int) -> list[tuple[Shape, np.ndarray]]:
        return self._plan(np.random.default_rng((self._seed, epoch)))


class EvaluationExampleBatches(_ExampleBatches):
    """Every example once, those of similar length together; `index` identifies them.

    Arguments and errors are those of `TrainExampleBatches`, without its seed.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        axes: Mapping[str, str],
        padding: Mapping[str, int],
        batch_size: int,
        buckets: Sequence[int],
        host: int = 0,
        hosts: int = 1,
    ):
        super().__init__(examples, axes, padding, batch_size, buckets, host, hosts)
        self._batches = self._plan()

    def __len__(self) -> int:
        """Number of batches, the same on every host."""
        return len(self._batches)

    def __getitem__(self, index: int) -> HostBatch:
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        return self._assemble(*self._batches[index])


def bucketed(length: int, buckets: Sequence[int]) -> int:
    """The first bucket that is long enough, or the first multiple of the last bucket."""
    if length > buckets[-1]:
        return math.ceil(length / buckets[-1]) * buckets[-1]
    return buckets[bisect.bisect_left(buckets, length)]


def grouped(shapes: Sequence[Shape], least: int) -> dict[Shape, np.ndarray]:
    """Groups examples by padded shape, so that few groups are smaller than a batch.

    Args:
      shapes: of each example.
      least: a smaller group joins the smallest group that is at least as long on every axis, if there is one.

    Returns:
      Indices of examples by shape, the smaller shapes first, in the order of the examples.
    """
    groups: dict[Shape, list[int]] = {}
    for i, shape in enumerate(shapes):
        groups.setdefault(shape, []).append(i)
    by_size = sorted(groups, key=lambda shape: (sum(shape), shape))
    for place, shape in enumerate(by_size):
        if len(groups[shape]) < least:
            larger = (other for other in by_size[place + 1 :] if all(np.less_equal(shape, other)))
            if (other := next(larger, None)) is not None:
                groups[other] += groups.pop(shape)
    return {shape: np.sort(groups[shape]) for shape in by_size if shape in groups}
