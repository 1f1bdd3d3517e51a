"""A metric over runs that differ only in their seed."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from lm.errors import UserError
from lm.statistics.intervals import mean_interval


@dataclasses.dataclass(frozen=True)
class SeedSummary:
    """A metric over runs that differ only in their seed.

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
    """Summarizes a metric's values over several seeds, such as `Metric.value` of each run.

    Raises:
      UserError: without values.
    """
    seeds = len(values)
    if not seeds:
        raise UserError("a summary over seeds needs at least one run")
    error = mean_interval(np.asarray(values)).standard_error
    return SeedSummary(float(np.mean(values)), error, error * math.sqrt(seeds), seeds)
