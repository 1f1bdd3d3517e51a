"""Means that carry their uncertainty, as sums that merge by addition.

Axes: B clusters (rows of a batch, each a window of text).
"""

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class WeightedMean:
    """A weighted mean over clustered items, stored as float64 sums so that merging loses nothing.

    Tokens of one window are correlated, so they don't count as independent: the standard error is that of a ratio of
    sums over clusters (linearization; Cochran 1977, section 6.3). With one item per cluster and equal weights it is the
    familiar s / sqrt(n).

    Attributes:
      total: sum of weight times value.
      weight: sum of weights.
      total_squared: sum over clusters of (cluster total) squared.
      total_weight: sum over clusters of cluster total times cluster weight.
      weight_squared: sum over clusters of (cluster weight) squared.
      clusters: how many clusters have any weight.
    """

    total: float = 0.0
    weight: float = 0.0
    total_squared: float = 0.0
    total_weight: float = 0.0
    weight_squared: float = 0.0
    clusters: int = 0

    @classmethod
    def from_clusters(cls, total_B: np.ndarray, weight_B: np.ndarray) -> "WeightedMean":
        """Sums over clusters, from each cluster's sum of weight times value and its sum of weights."""
        total_B, weight_B = np.asarray(total_B, np.float64), np.asarray(weight_B, np.float64)
        return cls(
            total=float(total_B.sum()),
            weight=float(weight_B.sum()),
            total_squared=float(np.square(total_B).sum()),
            total_weight=float((total_B * weight_B).sum()),
            weight_squared=float(np.square(weight_B).sum()),
            clusters=int(np.count_nonzero(weight_B)),
        )

    def __add__(self, other: "WeightedMean") -> "WeightedMean":
        """The mean over both."""
        mine, others = dataclasses.astuple(self), dataclasses.astuple(other)
        return WeightedMean(*(a + b for a, b in zip(mine, others, strict=True)))

    @property
    def mean(self) -> float:
        """The weighted mean; NaN where there is no weight."""
        return self.total / self.weight if self.weight else math.nan

    @property
    def standard_error(self) -> float:
        """The standard error of `mean`; NaN with fewer than two clusters."""
        if self.clusters < 2:
            return math.nan
        mean = self.mean
        squares = self.total_squared - 2 * mean * self.total_weight + mean**2 * self.weight_squared
        return math.sqrt(max(squares, 0.0) * self.clusters / (self.clusters - 1)) / self.weight
