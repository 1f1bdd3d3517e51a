"""The noise floor: the calibration error due to chance, its test, and intervals that account for it.

A binned error is never negative, so chance makes it positive: a perfectly calibrated model measured on 300 items has an
ECE of about 0.07 with 15 bins. The percentile bootstrap adds the same bias again and covers the true value in 0 to 70%
of cases. Hence the floor, its test, and bias-corrected intervals.

Axes: N items, G clusters, M bins, R resamples, F features (the summed quantities).
"""

import dataclasses
import math

import numpy as np
from scipy import sparse

from lm.calibration.binning import Binning, BinTotals, weighted_totals
from lm.calibration.inputs import checked_clusters, checked_confidence, checked_correct, checked_weights
from lm.statistics.intervals import NO_INTERVAL, Interval, absolute_sum_interval, bias_corrected_interval

_DRAWN = 2**24  # draws in memory at a time


@dataclasses.dataclass(frozen=True)
class Floor:
    """What a perfectly calibrated model with these confidences would show.

    Attributes:
      mean: of the error.
      high: its 95% quantile.
      p: the share of such models whose error is at least the one observed: small where the model is not calibrated.
    """

    mean: float
    high: float
    p: float


def null_totals(
    confidence_N: np.ndarray,
    correct_N: np.ndarray,
    binning: Binning,
    *,
    resamples: int,
    rng: np.random.Generator,
    clusters_N: np.ndarray | None = None,
    weights_N: np.ndarray | None = None,
) -> BinTotals:
    """Totals, [R, M], of perfectly calibrated models (consistency resampling; Broecker & Smith 2007).

    Without clusters, each answer is drawn as correct with a probability equal to its confidence; items of one bin whose
    confidences agree to 2^-12 are drawn together, so the cost does not depend on N. With clusters, whose answers may
    depend on each other in unknown ways, each cluster's residuals keep or change their sign together (wild
    bootstrap; Cameron et al. 2008): that keeps what they share, and loses some power where the model is far off.

    Args:
      confidence_N: in [0, 1].
      correct_N: what was observed; used with clusters alone.
      binning: the bins.
      resamples: R.
      rng: randomness.
      clusters_N: the cluster of each item, 0 to G - 1.
      weights_N: how much each item counts; None: once.

    Raises:
      InputError: if an array is not as described.
    """
    confidence_N = checked_confidence(confidence_N).astype(np.float64)
    clusters_N = checked_clusters(clusters_N, len(confidence_N))
    weights_N = checked_weights(weights_N, len(confidence_N))
    count_M, _, confidence_M = observed_totals(confidence_N, confidence_N, binning, weights_N)
    if clusters_N is None:
        correct_RM = _drawn(confidence_N, binning, weights_N, resamples, rng)
    else:
        groups = int(clusters_N.max()) + 1
        cell_N = clusters_N * binning.bins + np.asarray(binning.index(confidence_N))
        residual_N = (checked_correct(correct_N, len(confidence_N)) - confidence_N) * (
            1 if weights_N is None else weights_N
        )
        residual_GM = np.bincount(cell_N, residual_N, groups * binning.bins).reshape(groups, binning.bins)
        signs_RG = rng.choice(np.array([-1.0, 1.0]), size=(resamples, groups))
        correct_RM = confidence_M + signs_RG @ residual_GM
    count_RM, confidence_RM = (np.broadcast_to(x, correct_RM.shape) for x in (count_M, confidence_M))
    return BinTotals(count_RM, correct_RM, confidence_RM)


def _drawn(
    confidence_N: np.ndarray,
    binning: Binning,
    weights_N: np.ndarray | None,
    resamples: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """How much is right in each bin if each answer is right with a probability equal to its confidence, [R, M]."""
    bin_N = np.asarray(binning.index(confidence_N))
    cell_N = bin_N * 4096 + np.minimum((confidence_N * 4096).astype(np.int64), 4095)
    weight_N = np.ones(1)
    if weights_N is not None:  # drawn together if they also have the same weight
        weight_N, number_N = np.unique(weights_N, return_inverse=True)
        cell_N = cell_N * weight_N.size + number_N
    cells, cell_N = np.unique(cell_N, return_inverse=True)
    size_K = np.bincount(cell_N)
    mean_K = np.clip(np.bincount(cell_N, confidence_N) / size_K, 0, 1)
    bin_K, weight_K = cells // weight_N.size // 4096, weight_N[cells % weight_N.size]
    features_KM = sparse.csr_array((weight_K, (np.arange(cells.size), bin_K)), shape=(cells.size, binning.bins))
    rows = max(1, _DRAWN // cells.size)
    return np.concatenate(
        [
            rng.binomial(size_K, mean_K, size=(min(rows, resamples - start), cells.size)) @ features_KM
            for start in range(0, resamples, rows)
        ]
    )


def observed_totals(
    confidence_N: np.ndarray, correct_N: np.ndarray, binning: Binning, weights_N: np.ndarray | None = None
) -> BinTotals:
    """Totals, [M], computed as in `null_totals`, so that ties with the draws are exact.

    `bin_totals` rounds confidences to 2^-24: enough to break such a tie, and with few clusters ties decide the p-value.
    """
    return weighted_totals(confidence_N, correct_N, binning, weights_N)


def floor_of(observed: float, null_R: np.ndarray) -> Floor:
    """The floor, from an error's values under perfect calibration. The p-value is never 0: R draws cannot show that."""
    # Rounding must not make an error look different from the same error of a resample.
    exceeding = np.count_nonzero(np.abs(null_R) >= abs(observed) - 1e-12)
    null_R = np.abs(null_R)
    return Floor(float(null_R.mean()), float(np.quantile(null_R, 0.95)), float((exceeding + 1) / (null_R.size + 1)))


def bin_features(
    confidence_N: np.ndarray,
    correct_N: np.ndarray,
    binning: Binning,
    bins: int | None = None,
    weights_N: np.ndarray | None = None,
) -> sparse.csr_array:
    """Features whose sums are totals: indicators of the bin, then times correct, then times confidence, [N, 3 M].

    Args:
      confidence_N: in [0, 1].
      correct_N: in [0, 1].
      binning: the bins.
      bins: M, where it should be more than the binning has; the rest stay empty.
      weights_N: how much each item counts; None: once.
    """
    bin_N, bins = np.asarray(binning.index(confidence_N)), bins or binning.bins
    values_N3 = np.stack([np.ones(len(bin_N)), correct_N, confidence_N], axis=1).astype(np.float64)
    values_N3 = values_N3 if weights_N is None else values_N3 * weights_N[:, None]
    column_N3 = bin_N[:, None] + bins * np.arange(3)
    return sparse.csr_array(
        (values_N3.ravel(), column_N3.ravel(), 3 * np.arange(len(bin_N) + 1)), shape=(len(bin_N), 3 * bins)
    )


def totals_of_sums(sums_RF: np.ndarray) -> BinTotals:
    """The totals that `bin_features` sum to."""
    return BinTotals(*np.split(sums_RF, 3, axis=-1))


def ece_interval(observed: BinTotals, resampled: BinTotals, level: float = 0.95) -> Interval:
    """Interval of `lm.calibration.errors.ece`, from 0 to 1, by `absolute_sum_interval`.

    Its lower end is 0 unless the error is significant in one tail at (1 - level) / 2.

    Args:
      observed: totals, [M].
      resampled: totals of resamples, [R, M].
      level: of the interval.
    """
    interval = absolute_sum_interval(_shares_of_gaps(observed), _shares_of_gaps(resampled), level)
    return Interval(interval.low, min(interval.high, 1.0), interval.standard_error)


def _shares_of_gaps(totals: BinTotals) -> np.ndarray:
    return (totals.correct - totals.confidence) / totals.count.sum(axis=-1, keepdims=True)


def error_interval(observed: float, resampled_R: np.ndarray, floor: Floor, level: float = 0.95) -> Interval:
    """`bias_corrected_interval` of an error that is 0 for a calibrated model, where `ece_interval` does not apply.

    It starts at 0 unless the test of calibration rejects at 1 - level: near 0 the bootstrap alone covers the true
    value in only half of the cases, while the test works. It never ends below the observed error minus the mean of the
    floor. There is none where every item has a confidence of 1 and is right.
    """
    if observed == 0 and not resampled_R.any():  # sure and right on every item: no spread, which is no proof
        return NO_INTERVAL
    interval = bias_corrected_interval(observed, resampled_R, level)
    if math.isnan(interval.low):
        return interval
    low = 0.0 if floor.p > 1 - level else max(interval.low, 0.0)
    high = min(max(interval.high, observed - floor.mean, 0.0), 1.0)
    return Interval(low, high, interval.standard_error)
