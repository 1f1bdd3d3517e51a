"""Intervals: Student's t for means, Wilson's for proportions, the bias-corrected bootstrap for everything else.

Axes: N items, G clusters, R resamples.
"""

import dataclasses
import math

import numpy as np
from scipy import stats

from lm.statistics.resampling import sum_by_cluster
from lm.statistics.weighted_mean import WeightedMean


@dataclasses.dataclass(frozen=True)
class Interval:
    """A confidence interval; NaN with fewer than two clusters.

    Attributes:
      low: lower end.
      high: upper end.
      standard_error: of the estimate, over clusters.
    """

    low: float
    high: float
    standard_error: float


NO_INTERVAL = Interval(math.nan, math.nan, math.nan)


def ratio_interval(total_G: np.ndarray, weight_G: np.ndarray, level: float = 0.95) -> Interval:
    """Interval of sum(total_G) / sum(weight_G) by Student's t with G - 1 degrees of freedom.

    The standard error is that of `WeightedMean`: a ratio of sums over clusters (Cochran 1977, section 6.3). Clusters
    without weight don't count.
    """
    total_G, weight_G = np.asarray(total_G, np.float64), np.asarray(weight_G, np.float64)
    mean = WeightedMean.from_clusters(total_G, weight_G).mean
    if not math.isfinite(mean):
        return NO_INTERVAL
    # Centred: the mean's square would cancel the digits of a small spread.
    centred = WeightedMean.from_clusters(total_G - mean * weight_G, weight_G)
    if centred.clusters < 2:
        return NO_INTERVAL
    error = centred.standard_error
    reach = float(stats.t.ppf((1 + level) / 2, centred.clusters - 1)) * error
    return Interval(mean - reach, mean + reach, error)


def mean_interval(
    values_N: np.ndarray,
    clusters_N: np.ndarray | None = None,
    level: float = 0.95,
    weights_N: np.ndarray | None = None,
) -> Interval:
    """`ratio_interval` of a (weighted) mean over items; without `clusters_N` each item is a cluster."""
    total_G, weight_G = _of_clusters(values_N, clusters_N, weights_N)
    return ratio_interval(total_G, weight_G, level)


def share_interval(
    right_N: np.ndarray,
    clusters_N: np.ndarray | None = None,
    level: float = 0.95,
    weights_N: np.ndarray | None = None,
) -> Interval:
    """`mean_interval` of values in [0, 1], such as an accuracy, kept `within_limits`."""
    total_G, weight_G = _of_clusters(right_N, clusters_N, weights_N)
    interval = ratio_interval(total_G, weight_G, level)
    clusters = np.count_nonzero(weight_G) if weights_N is None else effective_number(weight_G)
    return within_limits(interval, total_G.sum() / weight_G.sum(), (0.0, 1.0), float(clusters), level)


def effective_number(weights_N: np.ndarray) -> float:
    """The number of equal weights that leave a mean as uncertain as these do (Kish 1965)."""
    return float(weights_N.sum() ** 2 / np.square(weights_N).sum())


def within_limits(
    interval: Interval, value: float, limits: tuple[float, float], clusters: float, level: float = 0.95
) -> Interval:
    """Clips an interval to a metric's limits; uses Wilson's interval if the metric is at a limit.

    An accuracy of 100% shows no spread, so both Student's t and the bootstrap would claim [100%, 100%]. Wilson's
    interval then counts each cluster as one trial, since the data do not show how similar its items are.
    """
    if math.isnan(interval.low):
        return interval
    lowest, highest = limits
    if value in limits and math.isfinite(highest - lowest):
        low, high = wilson_interval((value - lowest) / (highest - lowest) * clusters, clusters, level)
        low, high = (lowest + (highest - lowest) * end for end in (low, high))
        return Interval(float(low), float(high), interval.standard_error)
    return Interval(max(interval.low, lowest), min(interval.high, highest), interval.standard_error)


def wilson_interval(
    right: np.ndarray | float, count: np.ndarray | float, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Interval of a proportion (Wilson 1927)."""
    z2 = stats.norm.ppf((1 + level) / 2) ** 2
    share = right / count
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    reach = np.sqrt(z2) * np.sqrt(share * (1 - share) / count + z2 / (4 * count**2)) / (1 + z2 / count)
    return np.clip(centre - reach, 0, share), np.clip(centre + reach, share, 1)  # rounding must not exclude the share


def bias_corrected_interval(observed: float, resampled_R: np.ndarray, level: float = 0.95) -> Interval:
    """The basic bootstrap interval, [2 t - q_high, 2 t - q_low] (Davison & Hinkley 1997, section 5.2).

    It mirrors the quantiles of the resamples at the observed value, so that a bias which resampling repeats is removed
    rather than added again.
    """
    resampled_R = resampled_R[np.isfinite(resampled_R)]
    if resampled_R.size < 2 or not np.isfinite(observed):
        return NO_INTERVAL
    low, high = np.quantile(resampled_R, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(2 * observed - high), float(2 * observed - low), float(resampled_R.std(ddof=1)))


def _of_clusters(
    values_N: np.ndarray, clusters_N: np.ndarray | None, weights_N: np.ndarray | None = None
) -> np.ndarray:
    """The weighted sum and the weight of each cluster, [2, G]."""
    values_N = np.asarray(values_N, np.float64)
    weights_N = np.ones_like(values_N) if weights_N is None else np.asarray(weights_N, np.float64)
    weighted_N = np.multiply(weights_N, values_N, out=np.zeros_like(values_N), where=weights_N != 0)
    sums_N2 = np.stack([weighted_N, weights_N], axis=1)
    return (sums_N2 if clusters_N is None else sum_by_cluster(sums_N2, clusters_N)).T
