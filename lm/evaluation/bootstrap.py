"""Figures that know their uncertainty: any function of sums over items, with bootstrap intervals and paired tests.

Accuracy, F1, Matthews correlation, BLEU: each is a function of sums over items (counts of right answers, of matched
n-grams). So a resample of the items is a resample of the sums, and no figure has to be computed from texts again.

Axes: N items, K sums, R resamples.
"""

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Metric:
    """A figure of N items.

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
