"""How sure one can be of a calibration error: what chance alone would give, intervals, and paired comparisons.

A binned error is never negative, so chance makes it positive: a perfectly calibrated model measured on 300 items has an
ECE of about 0.07 with 15 bins. The usual percentile bootstrap adds the same bias once more and covers the truth in 0 to
70% of cases. Hence the floor, its test, and intervals that take the bias off.

Items that share a document, a prompt or a seed are not independent: given `clusters_N`, whole clusters are resampled.

Axes: N items, G clusters, M bins, R resamples, F features (whatever is summed).
"""

import dataclasses
import math
from collections.abc import Callable, Iterator

import numpy as np
from scipy import stats

from lm.calibration.binning import Binning, BinTotals

_CHUNK_NUMBERS = 2**24  # of resampling weights held at a time


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
) -> BinTotals:
    """Totals, [R, M], of models for which the confidences are right (consistency resampling; Broecker & Smith 2007).

    Without clusters each answer is drawn right with the probability that is its confidence; items of one bin whose
    confidences agree to 2^-12 are drawn together, so the cost does not depend on N. With clusters, where answers of one
    cluster depend on each other in unknown ways, each cluster's residuals keep or change their sign together (wild
    bootstrap; Cameron et al. 2008): that keeps what they share, and loses some power where the model is far off.

    Args:
      confidence_N: in [0, 1].
      correct_N: what was observed; used with clusters alone.
      binning: the bins.
      resamples: R.
      rng: randomness.
      clusters_N: the cluster of each item, 0 to G - 1.
    """
    confidence_N = np.asarray(confidence_N, np.float64)
    bin_N = np.asarray(binning.index(confidence_N))
    count_M, confidence_M = (np.bincount(bin_N, w, binning.bins) for w in (None, confidence_N))
    if clusters_N is not None:
        residual_N = np.asarray(correct_N, np.float64) - confidence_N
        groups = int(clusters_N.max()) + 1
        cell_N = clusters_N * binning.bins + bin_N
        residual_GM = np.bincount(cell_N, residual_N, groups * binning.bins).reshape(groups, binning.bins)
        signs_RG = rng.choice(np.array([-1.0, 1.0]), size=(resamples, groups))
        correct_RM = confidence_M + signs_RG @ residual_GM
    else:
        fine_N = np.minimum((confidence_N * 4096).astype(np.int64), 4095)
        cells, cell_N = np.unique(bin_N * 4096 + fine_N, return_inverse=True)
        size_K = np.bincount(cell_N)
        mean_K = np.clip(np.bincount(cell_N, confidence_N) / size_K, 0, 1)
        drawn_RK = rng.binomial(size_K, mean_K, size=(resamples, cells.size))
        correct_RM = drawn_RK @ np.eye(binning.bins)[cells // 4096]
    count_RM, confidence_RM = (np.broadcast_to(x, correct_RM.shape) for x in (count_M, confidence_M))
    return BinTotals(count_RM.astype(np.float64), correct_RM, confidence_RM)


def floor_of(observed: float, null_R: np.ndarray) -> Floor:
    """The floor, from an error's values under perfect calibration. The p-value is never 0: R draws can't show that."""
    # Rounding must not make an error look different from the same error of a resample.
    exceeding = np.count_nonzero(np.abs(null_R) >= abs(observed) - 1e-12)
    null_R = np.abs(null_R)
    return Floor(float(null_R.mean()), float(np.quantile(null_R, 0.95)), (exceeding + 1) / (null_R.size + 1))


class Resampler:
    """Draws items, or whole clusters of items, with replacement: the same draws for everything that is compared.

    The draws are never copies of items: they are counts, which weight sums.
    """

    def __init__(self, items: int, *, resamples: int, seed: int, clusters_N: np.ndarray | None = None):
        """Args as in `null_totals`; `seed` makes the draws."""
        self.resamples, self._seed, self._clusters_N = resamples, seed, clusters_N
        self._groups = items if clusters_N is None else int(clusters_N.max()) + 1

    def counts(self) -> Iterator[np.ndarray]:
        """How often each cluster is drawn, [r, G] at a time, R rows in all; the same at each call."""
        rng = np.random.default_rng(self._seed)
        at_a_time = max(1, _CHUNK_NUMBERS // self._groups)
        for start in range(0, self.resamples, at_a_time):
            rows = min(at_a_time, self.resamples - start)
            drawn = np.empty((rows, self._groups), np.float32)
            for row in drawn:
                row[:] = np.bincount(rng.integers(0, self._groups, self._groups), minlength=self._groups)
            yield drawn

    def sums(self, features_NF: np.ndarray) -> np.ndarray:
        """Resampled sums of features over items, [R, F] in float64."""
        features_GF = features_NF
        if self._clusters_N is not None:
            features_GF = np.zeros((self._groups, features_NF.shape[1]))
            np.add.at(features_GF, self._clusters_N, features_NF)
        # Single precision products of features less their mean: what is common to all items adds exactly.
        mean_F = features_GF.mean(axis=0)
        centred_GF = (features_GF - mean_F).astype(np.float32)
        return np.concatenate([counts @ centred_GF + self._groups * mean_F for counts in self.counts()])

    def evaluate(self, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """`function(weights_rN) -> [r]` for the weight that each resample gives each item, [R] in all."""
        return np.concatenate([function(self._of_items(counts)) for counts in self.counts()])

    def _of_items(self, counts_RG: np.ndarray) -> np.ndarray:
        return counts_RG if self._clusters_N is None else counts_RG[:, self._clusters_N]


def bin_features(confidence_N: np.ndarray, correct_N: np.ndarray, binning: Binning) -> np.ndarray:
    """Features whose sums are totals: indicators of the bin, then times correct, then times confidence, [N, 3 M]."""
    is_in_NM = np.eye(binning.bins)[np.asarray(binning.index(confidence_N))]
    weights = (np.ones(len(confidence_N)), np.asarray(correct_N, np.float64), np.asarray(confidence_N, np.float64))
    return np.concatenate([is_in_NM * weight_N[:, None] for weight_N in weights], axis=1)


def totals_of_sums(sums_RF: np.ndarray) -> BinTotals:
    """The totals that `bin_features` sum to; counts that rounding made negative are 0."""
    count, correct, confidence = np.split(sums_RF, 3, axis=-1)
    return BinTotals(np.maximum(np.round(count), 0), correct, confidence)


@dataclasses.dataclass(frozen=True)
class Interval:
    """An interval that should hold the truth in a stated share of cases, and a standard error."""

    low: float
    high: float
    standard_error: float


def bias_corrected_interval(observed: float, resampled_R: np.ndarray, level: float = 0.95) -> Interval:
    """The basic bootstrap interval, [2 t - q_high, 2 t - q_low] (Davison & Hinkley 1997, section 5.2).

    It mirrors the quantiles of the resamples at the observed value, so that a bias which resampling repeats is taken
    off rather than added again. For an error that can't be negative, use `error_interval`.
    """
    resampled_R = resampled_R[np.isfinite(resampled_R)]
    if resampled_R.size < 2 or not np.isfinite(observed):
        return Interval(math.nan, math.nan, math.nan)
    low, high = np.quantile(resampled_R, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(2 * observed - high), float(2 * observed - low), float(resampled_R.std(ddof=1)))


def error_interval(observed: float, resampled_R: np.ndarray, floor: Floor, level: float = 0.95) -> Interval:
    """`bias_corrected_interval` of an error that is 0 for a calibrated model.

    It starts at 0 unless the test of calibration rejects at 1 - level: near 0 the bootstrap alone covers the truth in
    half of the cases, while the test is right there. It never ends below the observed error less the floor's mean.
    """
    interval = bias_corrected_interval(observed, resampled_R, level)
    low = 0.0 if floor.p > 1 - level else max(interval.low, 0.0)
    high = max(interval.high, observed - floor.mean, 0.0)
    return Interval(low, high, interval.standard_error)


@dataclasses.dataclass(frozen=True)
class Difference:
    """After minus before, on the same items.

    Attributes:
      value: the difference as observed.
      low: lower end of the interval.
      high: upper end.
      p: two-sided, of no difference.
    """

    value: float
    low: float
    high: float
    p: float


def paired_difference(
    before: float, after: float, before_R: np.ndarray, after_R: np.ndarray, level: float = 0.95
) -> Difference:
    """Compares two values by their differences over the same resamples.

    The interval is `bias_corrected_interval`'s; the p-value is the share of resampled differences that lie at least as
    far from their mean as the mirrored observed one, 2 d - mean, does from 0.
    """
    value, resampled_R = after - before, after_R - before_R
    interval = bias_corrected_interval(value, resampled_R, level)
    if not np.isfinite(interval.low):
        return Difference(value, interval.low, interval.high, math.nan)
    centre = resampled_R[np.isfinite(resampled_R)]
    corrected = 2 * value - centre.mean()
    p = (np.count_nonzero(np.abs(centre - centre.mean()) >= abs(corrected) - 1e-12) + 1) / (centre.size + 1)
    return Difference(value, interval.low, interval.high, float(p))


def mean_interval(values_N: np.ndarray, clusters_N: np.ndarray | None = None, level: float = 0.95) -> Interval:
    """Interval of a mean by its standard error over items or clusters and Student's t (G - 1 degrees of freedom).

    Clusters of different sizes are treated as a ratio of sums (Cochran 1977, section 6.3).
    """
    values_N = np.asarray(values_N, np.float64)
    if not np.isfinite(values_N).all():
        return Interval(math.nan, math.nan, math.nan)
    centred_N = values_N - values_N.mean()
    centred_G = centred_N if clusters_N is None else np.bincount(clusters_N, centred_N)
    groups = centred_G.size
    if groups < 2:
        return Interval(math.nan, math.nan, math.nan)
    error = math.sqrt((centred_G**2).sum() * groups / (groups - 1)) / values_N.size
    reach = stats.t.ppf((1 + level) / 2, groups - 1) * error
    return Interval(float(values_N.mean() - reach), float(values_N.mean() + reach), error)


def paired_mean_difference(
    before_N: np.ndarray, after_N: np.ndarray, clusters_N: np.ndarray | None = None, level: float = 0.95
) -> Difference:
    """Compares two means over the same items by Student's t on the items' (clusters') differences."""
    change_N = np.asarray(after_N, np.float64) - np.asarray(before_N, np.float64)
    interval = mean_interval(change_N, clusters_N, level)
    value = float(change_N.mean())
    if not np.isfinite(interval.low):
        return Difference(value, math.nan, math.nan, math.nan)
    groups = change_N.size if clusters_N is None else int(clusters_N.max()) + 1
    if interval.standard_error == 0:
        return Difference(value, interval.low, interval.high, 1.0 if value == 0 else 0.0)
    p = 2 * stats.t.sf(abs(value) / interval.standard_error, groups - 1)
    return Difference(value, interval.low, interval.high, float(p))


def wilson_interval(right: np.ndarray, count: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Interval of a proportion (Wilson 1927)."""
    z2 = stats.norm.ppf((1 + level) / 2) ** 2
    share = right / count
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    reach = np.sqrt(z2) * np.sqrt(share * (1 - share) / count + z2 / (4 * count**2)) / (1 + z2 / count)
    return np.clip(centre - reach, 0, share), np.clip(centre + reach, share, 1)  # rounding must not leave out the share
