"""Figures that know their uncertainty: any function of sums over items, with bootstrap intervals and paired tests.

Accuracy, F1, Matthews correlation, BLEU: each is a function of sums over items (counts of right answers, of matched
n-grams). So a resample of the items is a resample of the sums, and no figure has to be computed from texts again.

Axes: N items, G clusters of items, K sums, R resamples.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lm.errors import UserError

_CHUNK_NUMBERS = 2**22  # of resampling counts held at a time: 32 MiB


@dataclasses.dataclass(frozen=True)
class Interval:
    """An interval that should hold the truth in a stated share of cases; NaN where there is too little to say."""

    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Metric:
    """A figure of N items.

    Items are what is resampled, so they must be independent: where several share a document or a prompt, make each
    document one item by `in_clusters`.

    Attributes:
      statistics_NK: what is summed over items.
      of_sums: from sums [..., K] to the figure [...]; NaN where it is not defined.
    """

    statistics_NK: np.ndarray
    of_sums: Callable[[np.ndarray], np.ndarray]

    @property
    def value(self) -> float:
        """The figure over all items."""
        return float(self.of_sums(np.asarray(self.statistics_NK, np.float64).sum(axis=0)))

    @property
    def standard_error(self) -> float:
        """The jackknife's standard error (Tukey 1958), which for a mean is s / sqrt(N).

        NaN with fewer than two items, and where the figure is not defined without one of them.
        """
        statistics_NK = np.asarray(self.statistics_NK, np.float64)
        items = len(statistics_NK)
        if items < 2:
            return math.nan
        without_one_N = self.of_sums(statistics_NK.sum(axis=0) - statistics_NK)
        return float(without_one_N.std() * math.sqrt(items - 1))

    def in_clusters(self, clusters_N: np.ndarray) -> "Metric":
        """The same figure, whose items are the clusters: items with the same number in `clusters_N`."""
        return Metric(sum_by_cluster(self.statistics_NK, clusters_N), self.of_sums)

    def resampled(self, resamples: int = 1000, seed: int = 0) -> np.ndarray:
        """The figure of so many resamples of the items, [R]; the same draws for all metrics of as many items."""
        return self.of_sums(_resampled_sums(self.statistics_NK, resamples, seed))

    def interval(
        self, resamples: int = 1000, seed: int = 0, level: float = 0.95, clusters_N: np.ndarray | None = None
    ) -> Interval:
        """The bootstrap's percentile interval (Efron 1979).

        Chance that no item has shown is beyond it: the interval of an accuracy of 100% is that one point.

        Args:
          resamples: R.
          seed: of the draws.
          level: the share of cases in which the interval should hold the truth.
          clusters_N: resample whole clusters, as `in_clusters` makes them.
        """
        metric = self if clusters_N is None else self.in_clusters(clusters_N)
        return _percentiles(metric.resampled(resamples, seed), level)


def mean_metric(values_N: np.ndarray, weights_N: np.ndarray | None = None) -> Metric:
    """The (weighted) mean of a value over items; NaN without weight.

    Weights of 0 and 1 make it a mean over some of the items; how many these are then varies between resamples.
    """
    values_N = np.asarray(values_N, np.float64)
    weights_N = np.ones_like(values_N) if weights_N is None else np.asarray(weights_N, np.float64)
    return Metric(np.stack([weights_N * values_N, weights_N], axis=1), _ratio_of_two)


def sum_by_cluster(statistics_NK: np.ndarray, clusters_N: np.ndarray) -> np.ndarray:
    """Sums of the items that have the same number, [G, K]; numbers that no item has are no cluster.

    Raises:
      ValueError: if there isn't one number for each item.
    """
    items, sums = np.shape(statistics_NK)
    if np.shape(clusters_N) != (items,):
        raise ValueError(f"{items} items, but clusters of shape {np.shape(clusters_N)}")
    clusters, cluster_N = np.unique(clusters_N, return_inverse=True)
    statistics_GK = np.zeros((len(clusters), sums))
    np.add.at(statistics_GK, cluster_N, statistics_NK)
    return statistics_GK


def divide(numerator: np.ndarray, denominator: np.ndarray, undefined: float) -> np.ndarray:
    """numerator / denominator, and `undefined` where the denominator is 0."""
    numerator, denominator = np.broadcast_arrays(numerator, denominator)
    out = np.full(numerator.shape, undefined, np.float64)
    return np.divide(numerator, denominator, out=out, where=denominator != 0)


def intervals(
    metrics: Mapping[str, Metric], resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, Interval]:
    """`Metric.interval` of each metric; those that share an array of statistics are resampled together."""
    sums: dict[int, np.ndarray] = {}
    for metric in metrics.values():
        if id(metric.statistics_NK) not in sums:
            sums[id(metric.statistics_NK)] = _resampled_sums(metric.statistics_NK, resamples, seed)
    return {
        name: _percentiles(metric.of_sums(sums[id(metric.statistics_NK)]), level) for name, metric in metrics.items()
    }


@dataclasses.dataclass(frozen=True)
class Difference:
    """Other minus one, on the same items.

    Attributes:
      value: the difference as observed.
      low: lower end of the interval.
      high: upper end.
      p: two-sided, of no difference. Never 0: R draws can't show that.
    """

    value: float
    low: float
    high: float
    p: float


def paired_difference(
    one: Metric,
    other: Metric,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    clusters_N: np.ndarray | None = None,
) -> Difference:
    """Compares a figure of two systems on the same items, by their difference over the same resamples.

    The p-value is the share of resampled differences that lie at least as far from their mean as the observed one lies
    from 0 (Koehn 2004, centred as by Riezler and Maxwell 2005; sacreBLEU's paired bootstrap is the same).

    Args:
      one: subtracted.
      other: of the same items in the same order.
      resamples: R.
      seed: of the draws.
      level: of the interval.
      clusters_N: resample whole clusters, as `Metric.in_clusters` makes them.

    Raises:
      UserError: where the numbers of items differ.
    """
    items, others = len(one.statistics_NK), len(other.statistics_NK)
    if items != others:
        raise UserError(f"a paired comparison needs the same items: one side has {items}, the other {others}")
    if clusters_N is not None:
        one, other = one.in_clusters(clusters_N), other.in_clusters(clusters_N)
    value = other.value - one.value
    difference_R = _finite(other.resampled(resamples, seed) - one.resampled(resamples, seed))
    interval = _percentiles(difference_R, level)
    if not (math.isfinite(value) and math.isfinite(interval.low)):
        return Difference(value, math.nan, math.nan, math.nan)
    # Rounding must not make a difference of 0 look smaller than those of resamples.
    as_far = np.count_nonzero(np.abs(difference_R - difference_R.mean()) >= abs(value) - 1e-12)
    return Difference(value, interval.low, interval.high, (as_far + 1) / (difference_R.size + 1))


@dataclasses.dataclass(frozen=True)
class SeedSummary:
    """A figure over runs that differ in their seed alone.

    Attributes:
      mean: over the runs.
      standard_error: of the mean; NaN with one run.
      spread: the standard deviation between runs; NaN with one run.
      seeds: how many runs.
    """

    mean: float
    standard_error: float
    spread: float
    seeds: int


def seed_summary(values: Sequence[float]) -> SeedSummary:
    """Sums up a figure's values of several seeds, such as `Metric.value` of each run.

    Raises:
      UserError: without values.
    """
    seeds = len(values)
    if not seeds:
        raise UserError("a summary over seeds needs at least one run")
    spread = float(np.std(values, ddof=1)) if seeds > 1 else math.nan
    return SeedSummary(float(np.mean(values)), spread / math.sqrt(seeds), spread, seeds)


def _resampled_sums(statistics_NK: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Sums over R resamples of the items, [R, K]. Items are weighted by how often they are drawn, never copied."""
    statistics_NK = np.asarray(statistics_NK, np.float64)
    items = len(statistics_NK)
    if items < 2:
        return np.full((resamples, statistics_NK.shape[1]), math.nan)
    random = np.random.default_rng(seed)
    at_a_time = max(1, _CHUNK_NUMBERS // items)
    chunks = []
    for start in range(0, resamples, at_a_time):
        counts_rN = np.empty((min(at_a_time, resamples - start), items))
        for counts_N in counts_rN:  # ten times as fast as a draw of multinomial counts
            counts_N[:] = np.bincount(random.integers(items, size=items), minlength=items)
        chunks.append(counts_rN @ statistics_NK)
    return np.concatenate(chunks)


def _percentiles(values_R: np.ndarray, level: float) -> Interval:
    values_R = _finite(values_R)
    if values_R.size < 2:
        return Interval(math.nan, math.nan)
    low, high = np.quantile(values_R, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def _finite(values_R: np.ndarray) -> np.ndarray:
    return values_R[np.isfinite(values_R)]


def _ratio_of_two(sums: np.ndarray) -> np.ndarray:
    return divide(sums[..., 0], sums[..., 1], math.nan)
