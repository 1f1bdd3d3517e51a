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


def absolute_sum_interval(gap_M: np.ndarray, gap_RM: np.ndarray, level: float = 0.95) -> Interval:
    """Interval of a sum of absolute values |gap_1| + ... + |gap_M|, each of which is known with an error.

    Errors make the sum of the estimates too large, by how much depends on how many of the true gaps are near 0, and
    there resampling alone fails. So a value of the sum is in the interval unless a test rejects it (hybrid resampling:
    Chuang & Lai 2000, Statistica Sinica 10): with the gaps that have this sum and are the most likely, given normal
    errors, the share of sums up to the observed one lies between (1 - level) / 2 and (1 + level) / 2. True gaps of 0
    are thus covered with probability (1 + level) / 2.

    Args:
      gap_M: the estimates.
      gap_RM: the estimates on resamples, whose deviations from `gap_M` are taken for errors.
      level: of the interval, at least; its tails are equal.

    Returns:
      The interval, from 0 up; none if a gap is not finite, or if nothing varies.
    """
    error_RM = gap_RM - gap_M
    spread_M = error_RM.var(axis=0)
    if not (np.isfinite(spread_M).all() and spread_M.any() and len(error_RM) > 1):
        return NO_INTERVAL
    size_M, sign_M = np.abs(gap_M), np.where(gap_M < 0, -1, 1)
    observed = size_M.sum()

    def share_below(total: float) -> float:
        likely_M = sign_M * _most_likely_sizes(size_M, spread_M, total)
        return float(np.mean(np.abs(likely_M + error_RM).sum(axis=1) <= observed))

    def end(share: float) -> float:
        low, high = 0.0, observed + 10 * float(np.sqrt(spread_M).sum())
        if share_below(low) <= share:
            return low
        while high - low > 1e-6 * observed + 1e-9:
            middle = (low + high) / 2
            low, high = (middle, high) if share_below(middle) > share else (low, middle)
        return high

    error = np.abs(gap_RM).sum(axis=1).std(ddof=1)
    return Interval(end((1 + level) / 2), end((1 - level) / 2), float(error))


def _most_likely_sizes(size_M: np.ndarray, spread_M: np.ndarray, total: float) -> np.ndarray:
    """The sizes with this sum that are closest to the given ones in units of their spread.

    Least squares make each size smaller (or larger) by a multiple of its variance, but not negative.
    """
    varies_M = spread_M > 0
    limit_M = np.divide(size_M, spread_M, out=np.full_like(size_M, -np.inf), where=varies_M)
    order_K = np.argsort(-limit_M)[: np.count_nonzero(varies_M)]
    # The multiple, if the sizes with the k highest limits are those above 0: right for the first k where it is at least
    # the next limit.
    multiple_K = (np.cumsum(size_M[order_K]) - total) / np.cumsum(spread_M[order_K])
    next_K = np.append(limit_M[order_K][1:], -np.inf)
    multiple = multiple_K[np.argmax(multiple_K >= next_K)]
    return np.where(varies_M, np.maximum(size_M - multiple * spread_M, 0), size_M)


def _of_clusters(
    values_N: np.ndarray, clusters_N: np.ndarray | None, weights_N: np.ndarray | None = None
) -> np.ndarray:
    """The weighted sum and the weight of each cluster, [2, G]."""
    values_N = np.asarray(values_N, np.float64)
    weights_N = np.ones_like(values_N) if weights_N is None else np.asarray(weights_N, np.float64)
    weighted_N = np.multiply(weights_N, values_N, out=np.zeros_like(values_N), where=weights_N != 0)
    sums_N2 = np.stack([weighted_N, weights_N], axis=1)
    return (sums_N2 if clusters_N is None else sum_by_cluster(sums_N2, clusters_N)).T
