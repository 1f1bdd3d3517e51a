"""Two systems on the same items: their difference, its interval and its p-value.

Means are tested by Student's t over clusters. Other metrics are tested by swapping whole clusters of items between the
two systems: if they don't differ, every swap is as likely as what was observed, so the test is exact for any number of
clusters (Fisher's randomization test; Smucker et al. 2007), where a bootstrap rejects too often with few.

Axes: N items, G clusters, K sums, R resamples, S swaps.
"""

import dataclasses
import math
import sys

import numpy as np
from scipy import stats

from lm.errors import UserError
from lm.statistics.intervals import bias_corrected_interval, ratio_interval
from lm.statistics.metrics import Metric, Ratio, mean_metric
from lm.statistics.resampling import Resampler

_ROUNDING = 1e-9  # relative: smaller differences count as ties


@dataclasses.dataclass(frozen=True)
class Difference:
    """Other minus one, on the same items.

    Attributes:
      value: the difference as observed.
      low: lower end of the interval; NaN with fewer than two clusters, or if all clusters changed equally.
      high: upper end, likewise.
      p: two-sided p-value of no difference; never 0, and NaN with fewer than two clusters.
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
    """Compares a metric of two systems on the same items.

    Uses Student's t for means whose items have the same weights on both sides; otherwise the bias-corrected bootstrap
    for the interval and `swap_p_value` for p.

    Args:
      one: subtracted.
      other: the same metric of the same items in the same order.
      resamples: R.
      seed: of draws and swaps.
      level: of the interval.
      clusters_N: a number for each item; items that share it stay together.

    Raises:
      UserError: if the numbers of items differ.
    """
    items, others = len(one.statistics_NK), len(other.statistics_NK)
    if items != others:
        raise UserError(f"a paired comparison needs the same items: one side has {items}, the other {others}")
    if clusters_N is not None:
        one, other = one.in_clusters(clusters_N), other.in_clusters(clusters_N)
    one_GK, other_GK = np.asarray(one.statistics_NK), np.asarray(other.statistics_NK)
    if isinstance(one.of_sums, Ratio):
        (one_G, weight_G), (other_G, other_weight_G) = one.of_sums.parts(one_GK), one.of_sums.parts(other_GK)
        if np.array_equal(weight_G, other_weight_G):
            return _mean_difference(other_G - one_G, weight_G, level)
    resampler = Resampler(len(one_GK), resamples=resamples, seed=seed)
    resampled_R = one.of_sums(resampler.sums(other_GK)) - one.of_sums(resampler.sums(one_GK))
    one_SK, other_SK = resampler.swapped_sums(one_GK, other_GK)
    return resampled_difference(
        other.value - one.value, resampled_R, one.of_sums(other_SK) - one.of_sums(one_SK), level
    )


def paired_mean_difference(
    one_N: np.ndarray,
    other_N: np.ndarray,
    clusters_N: np.ndarray | None = None,
    level: float = 0.95,
    weights_N: np.ndarray | None = None,
) -> Difference:
    """`paired_difference` of (weighted) means over items."""
    one, other = mean_metric(one_N, weights_N), mean_metric(other_N, weights_N)
    return paired_difference(one, other, level=level, clusters_N=clusters_N)


def resampled_difference(
    value: float, resampled_R: np.ndarray, swapped_S: np.ndarray, level: float = 0.95
) -> Difference:
    """The difference, with its interval from resamples and p from swaps."""
    interval = bias_corrected_interval(value, resampled_R, level)
    return Difference(value, interval.low, interval.high, swap_p_value(swapped_S))


def swap_p_value(swapped_S: np.ndarray) -> float:
    """The share of swaps whose difference is at least as far from 0 as the first one, the observed.

    With all swaps this is the exact p-value; with R random ones it is (count + 1) / (R + 1), which is valid too
    (Phipson & Smyth 2010).
    """
    if not (swapped_S.size and math.isfinite(swapped_S[0])):
        return math.nan
    distance_S = np.abs(swapped_S[np.isfinite(swapped_S)])
    return float(np.mean(distance_S >= distance_S[0] - _ROUNDING * distance_S.max()))


def _mean_difference(change_G: np.ndarray, weight_G: np.ndarray, level: float) -> Difference:
    """From the clusters' sums of changes and weights."""
    interval = ratio_interval(change_G, weight_G, level)
    weight, clusters = weight_G.sum(), np.count_nonzero(weight_G)
    value = float(change_G.sum() / weight) if weight else math.nan
    if math.isnan(interval.low):
        return Difference(value, math.nan, math.nan, math.nan)
    if not change_G.any():
        return Difference(0.0, 0.0, 0.0, 1.0)
    if interval.standard_error <= _ROUNDING * abs(value):
        # All changed equally, so Student's t has no spread to use. Two of all swaps give a change this large.
        return Difference(value, math.nan, math.nan, max(2.0 ** (1 - clusters), sys.float_info.min))
    p = 2 * stats.t.sf(abs(value) / interval.standard_error, clusters - 1)
    return Difference(value, interval.low, interval.high, max(float(p), sys.float_info.min))
