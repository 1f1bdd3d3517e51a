"""Rank correlation with an interval over clusters.

Axes: N items, G groups of equal values, R resamples.
"""

import dataclasses
import math

import numpy as np

from lm.statistics.intervals import NO_INTERVAL, Interval, bias_corrected_interval
from lm.statistics.resampling import Resampler


@dataclasses.dataclass(frozen=True)
class Correlation:
    """A correlation.

    Attributes:
      value: from -1 to 1; NaN with fewer than two different values on either side.
      interval: of the bootstrap over clusters.
    """

    value: float
    interval: Interval


def spearman(
    one_N: np.ndarray,
    other_N: np.ndarray,
    clusters_N: np.ndarray | None = None,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Correlation:
    """Spearman's correlation of ranks, with the mean rank for ties (Spearman 1904).

    Args:
      one_N: numbers.
      other_N: numbers of the same items.
      clusters_N: a number for each item; whole clusters are resampled.
      resamples: R.
      seed: of the draws.
      level: of the interval.

    Raises:
      ValueError: if the numbers of items differ.
    """
    one_N, other_N = np.asarray(one_N, np.float64), np.asarray(other_N, np.float64)
    if one_N.shape != other_N.shape:
        raise ValueError(f"{one_N.size} and {other_N.size} items: give the same ones")
    if one_N.size < 2:
        return Correlation(math.nan, NO_INTERVAL)

    def of_weights(weights_RN: np.ndarray) -> np.ndarray:
        weights_RN = weights_RN.astype(np.float64)
        return _pearson(_ranks(one_N, weights_RN), _ranks(other_N, weights_RN), weights_RN)

    value = float(of_weights(np.ones((1, one_N.size)))[0])
    resampler = Resampler(one_N.size, resamples=resamples, seed=seed, clusters_N=clusters_N)
    interval = bias_corrected_interval(value, resampler.evaluate(of_weights), level)
    clipped = dataclasses.replace(interval, low=max(interval.low, -1.0), high=min(interval.high, 1.0))
    return Correlation(value, NO_INTERVAL if math.isnan(interval.low) else clipped)


def _ranks(values_N: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """The rank of each item where items count as often as their weights say, [R, N]."""
    distinct_G, group_N = np.unique(values_N, return_inverse=True)
    member_NG = group_N[:, None] == np.arange(distinct_G.size)
    count_RG = weights_RN @ member_NG
    middle_RG = np.cumsum(count_RG, axis=1) - count_RG / 2
    return middle_RG[:, group_N]


def _pearson(one_RN: np.ndarray, other_RN: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    total_R1 = weights_RN.sum(axis=1, keepdims=True)
    one_RN = one_RN - (weights_RN * one_RN).sum(axis=1, keepdims=True) / total_R1
    other_RN = other_RN - (weights_RN * other_RN).sum(axis=1, keepdims=True) / total_R1
    product_R, one_R, other_R = (
        (weights_RN * each_RN).sum(axis=1) for each_RN in (one_RN * other_RN, one_RN**2, other_RN**2)
    )
    scale_R = np.sqrt(one_R * other_R)
    return np.divide(product_R, scale_R, out=np.full_like(scale_R, np.nan), where=scale_R > 1e-9)
