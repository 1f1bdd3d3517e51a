"""Metrics with uncertainty and direction: any function of sums over items.

Accuracy, F1, Matthews correlation, BLEU: each is a function of sums over items (correct answers, matched n-grams). So
resampling items means resampling sums, and nothing is recomputed from texts.

Axes: N items, G clusters of items, K sums, R resamples.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from lm.statistics.intervals import NO_INTERVAL, Interval, bias_corrected_interval, ratio_interval, within_limits
from lm.statistics.resampling import Resampler, sum_by_cluster

Better = Literal["lower", "higher"]
SHARE = (0.0, 1.0)
UNLIMITED = (-math.inf, math.inf)


@dataclasses.dataclass(frozen=True)
class Ratio:
    """A mean as a function of sums: a ratio of sums; NaN where the denominator is 0.

    Attributes:
      numerator: the columns of values times weights.
      denominator: the columns of weights.
    """

    numerator: Sequence[int] = (0,)
    denominator: Sequence[int] = (1,)

    def parts(self, sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Numerator and denominator of sums [..., K], [...] each."""
        numerator, denominator = (sums[..., each].sum(axis=-1) for each in (self.numerator, self.denominator))
        return np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)

    def __call__(self, sums: np.ndarray) -> np.ndarray:
        """The mean of sums [..., K], [...]."""
        return divide(*self.parts(sums), math.nan)


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric of N items.

    Items are resampled, so they must be independent: if several share a document or a prompt, merge them into one item
    with `in_clusters`.

    Attributes:
      statistics_NK: the statistics to sum over items.
      of_sums: from sums [..., K] to the metric [...]; NaN where undefined. A `Ratio` is a mean and uses Student's t for
        interval and test.
      better: which direction is better; None if neither.
      limits: the metric's lowest and highest possible value.
    """

    statistics_NK: np.ndarray
    of_sums: Callable[[np.ndarray], np.ndarray]
    better: Better | None = None
    limits: tuple[float, float] = UNLIMITED

    @property
    def value(self) -> float:
        """The metric over all items."""
        return float(self.of_sums(np.asarray(self.statistics_NK, np.float64).sum(axis=0)))

    def in_clusters(self, clusters_N: np.ndarray) -> "Metric":
        """The same metric with clusters as items: items with the same number in `clusters_N` are merged."""
        return dataclasses.replace(self, statistics_NK=sum_by_cluster(self.statistics_NK, clusters_N))

    def resampled(self, resamples: int = 1000, seed: int = 0) -> np.ndarray:
        """The metric on R resamples of the items, [R]; metrics with equally many items share the draws."""
        return self.of_sums(_resampled_sums(self, resamples, seed))

    def interval(
        self, resamples: int = 1000, seed: int = 0, level: float = 0.95, clusters_N: np.ndarray | None = None
    ) -> Interval:
        """Student's t for means, the bias-corrected bootstrap for other metrics, both `within_limits`.

        Args:
          resamples: R.
          seed: of the draws.
          level: of confidence.
          clusters_N: resample whole clusters, as `in_clusters` makes them.
        """
        metric = self if clusters_N is None else self.in_clusters(clusters_N)
        return intervals({"": metric}, resamples, seed, level)[""]


def mean_metric(
    values_N: ArrayLike,
    weights_N: ArrayLike | None = None,
    better: Better | None = None,
    limits: tuple[float, float] = UNLIMITED,
) -> Metric:
    """The (weighted) mean of a value over items; NaN without weight.

    Weights of 0 and 1 select a subset of the items.
    """
    values_N = np.asarray(values_N, np.float64)
    weights_N = np.ones_like(values_N) if weights_N is None else np.asarray(weights_N, np.float64)
    weighted_N = np.multiply(weights_N, values_N, out=np.zeros_like(values_N), where=weights_N != 0)
    return Metric(np.stack([weighted_N, weights_N], axis=1), Ratio(), better, limits)


def divide(numerator: np.ndarray, denominator: np.ndarray, undefined: float) -> np.ndarray:
    """numerator / denominator; `undefined` where the denominator is 0."""
    numerator, denominator = np.broadcast_arrays(numerator, denominator)
    out = np.full(numerator.shape, undefined, np.float64)
    return np.divide(numerator, denominator, out=out, where=denominator != 0)


def intervals(
    metrics: Mapping[str, Metric], resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, Interval]:
    """`Metric.interval` of each metric; those that share an array of statistics are resampled together."""
    sums: dict[int, np.ndarray] = {}
    found = {}
    for name, metric in metrics.items():
        key = id(metric.statistics_NK)
        if not isinstance(metric.of_sums, Ratio) and key not in sums:
            sums[key] = _resampled_sums(metric, resamples, seed)
        found[name] = _interval(metric, sums.get(key), level)
    return found


def _interval(metric: Metric, sums_RK: np.ndarray | None, level: float) -> Interval:
    value, clusters = metric.value, len(metric.statistics_NK)
    if isinstance(metric.of_sums, Ratio):
        total_N, weight_N = metric.of_sums.parts(np.asarray(metric.statistics_NK))
        interval, clusters = ratio_interval(total_N, weight_N, level), int(np.count_nonzero(weight_N))
    elif sums_RK is None or clusters < 2:
        return NO_INTERVAL
    else:
        interval = bias_corrected_interval(value, metric.of_sums(sums_RK), level)
    return within_limits(interval, value, metric.limits, clusters, level)


def _resampled_sums(metric: Metric, resamples: int, seed: int) -> np.ndarray:
    statistics_NK = np.asarray(metric.statistics_NK)
    return Resampler(len(statistics_NK), resamples=resamples, seed=seed).sums(statistics_NK)
