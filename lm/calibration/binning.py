"""Bins of confidence, and the sums over each bin that binned calibration errors are computed from.

Sums are integers: they never saturate, are exact for any number of items, and are bitwise the same however items are
distributed over batches, devices and hosts.

Axes: N items, M bins. A leading "..." stands for any axes, such as one of buckets or resamples.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lm.calibration.inputs import (
    ArrayLike,
    InputError,
    checked_confidence,
    checked_correct,
    checked_count,
    checked_numbers,
    checked_weights,
)
from lm.types import AnyArray

# A value in [0, 1] is an integer number of steps of 2^-24, the spacing of float32 just below 1. Sums of the upper and
# of the lower 12 of these 24 bits fit an int32 for this many items:
_LIMB_BITS = 12
_ITEMS_PER_UPDATE = 2**31 // 2**_LIMB_BITS - 1


@dataclasses.dataclass(frozen=True)
class Binning:
    """Bins of confidence: intervals (a, b], with 0 in the first.

    Attributes:
      bins: number of bins, M.
      edges: the M + 1 edges from 0 to 1, or None for equal widths; see `equal_mass`.
      scheme: name of the scheme, for the specification.
    """

    bins: int = 15
    edges: tuple[float, ...] | None = None
    scheme: str = "equal_width"

    def __post_init__(self):
        object.__setattr__(self, "bins", checked_count(self.bins, "bins"))
        if self.edges is None:
            return
        edges = tuple(checked_numbers(self.edges, "edges").tolist())
        if len(edges) != self.bins + 1 or np.any(np.diff(edges) <= 0) or (edges[0], edges[-1]) != (0, 1):
            raise InputError(f"{self.bins} bins need {self.bins + 1} rising edges from 0 to 1, not {edges}")
        object.__setattr__(self, "edges", edges)

    def index(self, confidence_N: AnyArray) -> Array:
        """The bin of each confidence, int32. Computed in float32: with 5 bins, 0.6 is in the third."""
        confidence_N = jnp.asarray(confidence_N, jnp.float32)
        if self.edges is not None:
            inner = jnp.asarray(self.edges[1:-1], jnp.float32)
            return jnp.searchsorted(inner, confidence_N, side="left").astype(jnp.int32)
        return jnp.clip(jnp.ceil(confidence_N * self.bins) - 1, 0, self.bins - 1).astype(jnp.int32)

    def all_edges(self) -> np.ndarray:
        """The M + 1 edges."""
        return np.linspace(0, 1, self.bins + 1) if self.edges is None else np.asarray(self.edges)

    def specification(self) -> dict[str, object]:
        """The definition of the bins, to report with a result."""
        return {"bins": self.bins, "scheme": self.scheme, "edges": "(a, b], 0 in the first"}


def equal_mass(confidence: ArrayLike, bins: int = 15) -> Binning:
    """Bins with about the same number of these confidences each; fewer bins if ties span an edge."""
    bins = checked_count(bins, "bins")
    ordered = np.sort(checked_confidence(confidence).astype(np.float32))
    last_of_each = np.ceil(np.arange(1, bins) * ordered.size / bins).astype(int) - 1
    inner = np.unique(ordered[np.maximum(last_of_each, 0)])
    inner = inner[(inner > 0) & (inner < ordered[-1])]
    edges = (0.0, *inner.tolist(), 1.0)
    return Binning(len(edges) - 1, edges, "equal_mass")


def near_edges(confidence: ArrayLike, binning: Binning) -> float:
    """The share of confidences within 1e-6 of an inner edge, where libraries disagree on the bin.

    Votes (k/10) and verbalized confidences (0.8, 0.9) lie there. Above 1%, prefer `smooth_ece`.
    """
    inner = binning.all_edges()[1:-1]
    distance = np.abs(checked_confidence(confidence).astype(np.float64)[:, None] - inner[None, :])
    return float((distance < 1e-6).any(axis=1).mean()) if inner.size else 0.0


class BinSums(NamedTuple):
    """Sums over each bin, as integers that `merge` and `jax.lax.psum` add exactly.

    Attributes:
      count: number of items, int32 [..., M].
      correct: sum of `correct`, int32 [..., M, 3]: integer part, then two groups of 12 binary digits.
      confidence: sum of confidences, likewise.
      invalid: number of items with NaN, int32 [...]; any makes every error NaN.
    """

    count: Array  # type: ignore[assignment]  # hides tuple.count, which nobody needs here
    correct: Array
    confidence: Array
    invalid: Array

    @classmethod
    def init(cls, binning: Binning, leading: tuple[int, ...] = ()) -> "BinSums":
        """Empty sums."""
        count = jnp.zeros((*leading, binning.bins), jnp.int32)
        limbs = jnp.zeros((*leading, binning.bins, 3), jnp.int32)
        return cls(count, limbs, limbs, jnp.zeros(leading, jnp.int32))

    def merge(self, other: "BinSums") -> "BinSums":
        """Sums over the items of both."""
        return self.sum_of(jax.tree.map(lambda a, b: jnp.stack([a, b]), self, other))

    @classmethod
    def sum_of(cls, stacked: "BinSums") -> "BinSums":
        """Sums over the first axis of stacked sums."""
        return cls(*(values.sum(axis=0, dtype=jnp.int32) for values in stacked)).carried()

    def carried(self) -> "BinSums":
        """The same sums with digits carried, as needed after a `psum`."""
        return self._replace(correct=_carry(self.correct), confidence=_carry(self.confidence))

    def totals(self) -> "BinTotals":
        """The sums as float64 on the host."""
        units = 2.0 ** -(_LIMB_BITS * np.arange(3))
        correct, confidence = (np.asarray(limbs, np.float64) @ units for limbs in (self.correct, self.confidence))
        count = np.asarray(self.count, np.float64)
        invalid = np.asarray(self.invalid)[..., None] > 0
        return BinTotals(*(np.where(invalid, np.nan, values) for values in (count, correct, confidence)))


def update(
    sums: BinSums,
    confidence_N: Array,
    correct_N: Array,
    binning: Binning,
    *,
    mask_N: Array | None = None,
    bucket_N: Array | None = None,
) -> BinSums:
    """Adds items to the sums. A pure function, to be jitted with its caller.

    Args:
      sums: from `BinSums.init`, with one leading axis if there are buckets.
      confidence_N: in [0, 1].
      correct_N: in [0, 1].
      binning: as in `init`.
      mask_N: False for items to ignore, such as padding.
      bucket_N: index on the leading axis for each item.
    """
    items = confidence_N.shape[0]
    mask_N = jnp.ones(items, bool) if mask_N is None else mask_N.astype(bool)
    for start in range(0, items, _ITEMS_PER_UPDATE):
        part = slice(start, start + _ITEMS_PER_UPDATE)
        bucket = None if bucket_N is None else bucket_N[part]
        new = _sums_of(confidence_N[part], correct_N[part], mask_N[part], bucket, binning, sums.count.shape[:-1])
        sums = sums.merge(new)
    return sums


def _sums_of(
    confidence_N: Array,
    correct_N: Array,
    mask_N: Array,
    bucket_N: Array | None,
    binning: Binning,
    leading: tuple[int, ...],
) -> BinSums:
    confidence_N = confidence_N.astype(jnp.float32)
    correct_N = correct_N.astype(jnp.float32)
    valid_N = ~(jnp.isnan(confidence_N) | jnp.isnan(correct_N))
    counted_N = mask_N & valid_N
    digits = [jnp.ones_like(confidence_N, jnp.int32)]
    for values in (correct_N, confidence_N):
        steps = jnp.round(jnp.where(counted_N, values, 0) * 2.0 ** (2 * _LIMB_BITS)).astype(jnp.int32)
        digits += [steps >> _LIMB_BITS, steps & (2**_LIMB_BITS - 1)]
    cells = int(np.prod(leading, dtype=int)) * binning.bins
    cell_N = binning.index(jnp.where(counted_N, confidence_N, 0))
    if bucket_N is not None:
        cell_N = cell_N + bucket_N.astype(jnp.int32) * binning.bins
    cell_N = jnp.where(counted_N & (cell_N >= 0), cell_N, cells)  # out of range: dropped
    count, *limbs = (
        jnp.zeros(cells, jnp.int32).at[cell_N].add(values, mode="drop").reshape(*leading, binning.bins)
        for values in digits
    )
    correct, confidence = (
        _carry(jnp.stack([jnp.zeros_like(count), high, low], axis=-1)) for high, low in (limbs[:2], limbs[2:])
    )
    wrong_N = (mask_N & ~valid_N).astype(jnp.int32)
    bucket_N = jnp.zeros_like(wrong_N) if bucket_N is None else bucket_N
    invalid = jax.ops.segment_sum(wrong_N, bucket_N, cells // binning.bins).reshape(leading)
    return BinSums(count, correct, confidence, invalid)


def _carry(limbs: Array) -> Array:
    high, middle, low = limbs[..., 0], limbs[..., 1], limbs[..., 2]
    middle = middle + (low >> _LIMB_BITS)
    digit = 2**_LIMB_BITS - 1
    return jnp.stack([high + (middle >> _LIMB_BITS), middle & digit, low & digit], axis=-1)


class BinTotals(NamedTuple):
    """Sums over each bin as float64 numpy arrays [..., M], the input of `lm.calibration.errors`."""

    count: np.ndarray  # type: ignore[assignment]  # hides tuple.count, which nobody needs here
    correct: np.ndarray
    confidence: np.ndarray


def bin_totals(
    confidence: ArrayLike, correct: ArrayLike, binning: Binning, weights: ArrayLike | None = None
) -> BinTotals:
    """Totals of items in memory.

    Args:
      confidence: in [0, 1], [N].
      correct: in [0, 1], [N].
      binning: the bins.
      weights: how much each item counts, [N]; then `count` holds sums of weights.

    Raises:
      InputError: if an array is not as described.
    """
    confidence_N = checked_confidence(confidence)
    correct_N = checked_correct(correct, len(confidence_N))
    weights_N = checked_weights(weights, len(confidence_N))
    if weights_N is not None:
        return weighted_totals(confidence_N, correct_N, binning, weights_N)
    return _update_jitted(BinSums.init(binning), jnp.asarray(confidence_N), jnp.asarray(correct_N), binning).totals()


def weighted_totals(
    confidence_N: np.ndarray, correct_N: np.ndarray, binning: Binning, weights_N: np.ndarray | None = None
) -> BinTotals:
    """Totals in float64, which `bin_totals` rounds to steps of 2^-24; without `weights_N` each item counts once."""
    bin_N = np.asarray(binning.index(confidence_N))
    weights_N = np.ones(len(bin_N)) if weights_N is None else weights_N
    columns = (weights_N, weights_N * correct_N, weights_N * np.asarray(confidence_N, np.float64))
    return BinTotals(*(np.bincount(bin_N, column_N, binning.bins) for column_N in columns))


_update_jitted = jax.jit(update, static_argnames="binning")
