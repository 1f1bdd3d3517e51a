"""Calibration errors: distances between accuracy and confidence.

Binned errors are functions of `BinTotals` along the last axis, so that a thousand resamples are one call. The functions
at the end take labels and logits and return the error with its specification, without which numbers cannot be compared:
the defaults of libraries alone differ by a factor of two.

Axes: N items, C classes, M bins. A leading "..." stands for any axes.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import fft, special

from lm.calibration.binning import Binning, BinTotals, bin_totals, equal_mass
from lm.calibration.inputs import (
    ArrayLike,
    InputError,
    checked_clusters,
    checked_confidence,
    checked_correct,
    checked_count,
    checked_labels,
    checked_logits,
    checked_share,
    checked_weights,
)
from lm.calibration.logits import whole
from lm.calibration.noise_floor import (
    Floor,
    bin_features,
    ece_interval,
    error_interval,
    floor_of,
    null_totals,
    observed_totals,
    totals_of_sums,
)
from lm.calibration.outcomes import top_label
from lm.statistics.intervals import Interval, bias_corrected_interval
from lm.statistics.resampling import Resampler


def ece(totals: BinTotals) -> np.ndarray:
    """Expected calibration error: bins' |accuracy - confidence|, weighted by their items (Naeini et al. 2015)."""
    return np.abs(totals.correct - totals.confidence).sum(axis=-1) / totals.count.sum(axis=-1)


def ece_floor(totals: BinTotals) -> np.ndarray:
    """The mean ECE of a calibrated model with these confidences and independent items.

    A bin's gap is treated as normal, with variance n c (1 - c): accurate for the many items of a training run. `Floor`
    is simulated and also right for few items.
    """
    confidence = totals.confidence / np.maximum(totals.count, 1)
    deviation = np.sqrt(totals.count * confidence * (1 - confidence))
    return math.sqrt(2 / math.pi) * deviation.sum(axis=-1) / totals.count.sum(axis=-1)


def signed_gap(totals: BinTotals) -> np.ndarray:
    """Mean confidence minus accuracy: positive if the model is overconfident."""
    return (totals.confidence - totals.correct).sum(axis=-1) / totals.count.sum(axis=-1)


def mce(totals: BinTotals) -> np.ndarray:
    """Maximum calibration error: the largest |accuracy - confidence| of a non-empty bin (Naeini et al. 2015)."""
    return np.abs(_gaps(totals)).max(axis=-1)


def rms(totals: BinTotals) -> np.ndarray:
    """Root of the bins' squared gaps, weighted by their items (Hendrycks et al. 2019; Kumar et al. 2019)."""
    return np.sqrt((_weights(totals) * _gaps(totals) ** 2).sum(axis=-1))


def rms_debiased(totals: BinTotals) -> np.ndarray:
    """`rms` without what chance contributes to each bin's square, at least 0 (Kumar et al. 2019, eq. 13).

    The variance of a bin with a single item is unknown; it counts as 0.
    """
    accuracy = totals.correct / np.maximum(totals.count, 1)
    chance = accuracy * (1 - accuracy) / np.maximum(totals.count - 1, 1)
    squares = np.where(totals.count >= 2, _gaps(totals) ** 2 - chance, 0.0)
    return np.sqrt(np.maximum((_weights(totals) * squares).sum(axis=-1), 0.0))


BINNED_ERRORS: dict[str, Callable[[BinTotals], np.ndarray]] = {
    "ece": ece,
    "mce": mce,
    "rms": rms,
    "rms_debiased": rms_debiased,
    "signed_gap": signed_gap,
}


def _gaps(totals: BinTotals) -> np.ndarray:
    return (totals.correct - totals.confidence) / np.where(totals.count > 0, totals.count, 1)


def _weights(totals: BinTotals) -> np.ndarray:
    return totals.count / totals.count.sum(axis=-1, keepdims=True)


def smooth_ece(confidence: ArrayLike, correct: ArrayLike, weights: ArrayLike | None = None) -> float:
    """smECE: the calibration error after smoothing with a width equal to the error itself (Blasiok & Nakkiran 2023).

    Without bins, it does not jump when a confidence crosses an edge. Residuals are smoothed by a Gaussian reflected at
    0 and 1, whose width is found by bisection to 2^-10, as in the authors' code. They are held on a grid of 1,024
    cells, which changes the result by less than 1e-5.

    Args:
      confidence: in [0, 1], [N].
      correct: in [0, 1], [N].
      weights: how much each item counts, [N]; None: once.

    Raises:
      InputError: if an array is not as described.
    """
    confidence_N, correct_N, share_N = _checked_items(confidence, correct, weights)
    residual_N = share_N * (correct_N - confidence_N)
    cells = GridCells.of(confidence_N)
    return float(smooth_ece_of_residuals(cells.share(residual_N)))


def _checked_items(
    confidence: ArrayLike, correct: ArrayLike, weights: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Confidences, correctness, and each item's share of the weight."""
    confidence_N = checked_confidence(confidence)
    correct_N = checked_correct(correct, len(confidence_N))
    weights_N = checked_weights(weights, len(confidence_N))
    weights_N = np.ones(len(confidence_N)) if weights_N is None else weights_N
    return confidence_N, correct_N, weights_N / weights_N.sum()


GRID = 1024  # cells of confidence


@dataclasses.dataclass(frozen=True)
class GridCells:
    """Position of confidences on the grid, between the centres of two cells.

    Attributes:
      left_N: the cell with its centre below; clipped to the grid.
      right_N: the cell with its centre above; clipped to the grid.
      right_share_N: share of an item that goes to the right cell.
    """

    left_N: np.ndarray
    right_N: np.ndarray
    right_share_N: np.ndarray

    @classmethod
    def of(cls, confidence_N: np.ndarray) -> "GridCells":
        """Locates confidences."""
        place_N = np.asarray(confidence_N, np.float64) * GRID - 0.5
        left_N = np.floor(place_N).astype(int)
        right_share_N = place_N - left_N
        return cls(np.clip(left_N, 0, GRID - 1), np.clip(left_N + 1, 0, GRID - 1), right_share_N)

    def share(self, values_N: np.ndarray) -> np.ndarray:
        """Sums of the values over cells, [1024]."""
        right_N = values_N * self.right_share_N
        return np.bincount(self.left_N, values_N - right_N, GRID) + np.bincount(self.right_N, right_N, GRID)


def smooth_ece_of_residuals(residuals: np.ndarray) -> np.ndarray:
    """smECE from sums of (correct - confidence) / N over cells, [..., 1024] to [...]."""
    # In cosines, the eigenfunctions of heat flow between reflecting walls, smoothing is a product.
    spectrum = fft.dct(residuals, axis=-1)
    frequencies = np.pi * np.arange(GRID)

    def at(sigma: np.ndarray) -> np.ndarray:
        return np.abs(fft.idct(spectrum * np.exp(-0.5 * (sigma[..., None] * frequencies) ** 2), axis=-1)).sum(axis=-1)

    low, high = np.zeros(residuals.shape[:-1]), np.ones(residuals.shape[:-1])
    for _ in range(10):
        middle = (low + high) / 2
        too_narrow = (at(middle) > middle) & (middle >= 1e-3)
        low, high = np.where(too_narrow, middle, low), np.where(too_narrow, high, middle)
    return at(high)


@dataclasses.dataclass(frozen=True)
class CumulativeError:
    """Errors of the cumulative residual, which need no bins (Arrieta-Ibarra et al. 2022; Gupta et al. 2021).

    Attributes:
      maximum: the largest |sum of residuals up to some confidence| / N: Kolmogorov-Smirnov, ECCE-MAD.
      range: the largest minus the smallest such sum, which adds errors of both signs: Kuiper, ECCE-R.
      maximum_p: probability of at least this `maximum` for a calibrated model with independent items.
      range_p: likewise for `range`.
      floor: of `maximum`, for a calibrated model with these confidences and independent items.
    """

    maximum: float
    range: float
    maximum_p: float
    range_p: float
    floor: Floor


def cumulative_error(confidence: ArrayLike, correct: ArrayLike, weights: ArrayLike | None = None) -> CumulativeError:
    """Kolmogorov-Smirnov and Kuiper errors with p-values. Equal confidences enter the sum together.

    Under calibration the sum is a random walk of known variance, sum of c (1 - c); the p-values are those of its
    limit, Brownian motion.

    Raises:
      InputError: if confidences or correctness are not in [0, 1], [N].
    """
    confidence_N, correct_N, share_N = _checked_items(confidence, correct, weights)
    order_N = np.argsort(confidence_N, kind="stable")
    sorted_N, share_N = confidence_N[order_N].astype(np.float64), share_N[order_N]
    walk_N = np.cumsum(share_N * (correct_N[order_N] - sorted_N))
    at_ends_of_ties = walk_N[np.append(sorted_N[1:] != sorted_N[:-1], True)]
    maximum = float(np.abs(at_ends_of_ties).max())
    extent = float(max(at_ends_of_ties.max(), 0.0) - min(at_ends_of_ties.min(), 0.0))
    deviation = math.sqrt(float((share_N**2 * sorted_N * (1 - sorted_N)).sum()))
    if deviation == 0:
        p = 1.0 if maximum == 0 else 0.0
        return CumulativeError(maximum, extent, p, p, Floor(0.0, 0.0, p))
    maximum_p = _maximum_p(maximum / deviation)
    # Of Brownian motion on [0, 1], the largest |W| has mean sqrt(pi / 2) and 95% quantile 2.2414.
    floor = Floor(math.sqrt(math.pi / 2) * deviation, 2.2414 * deviation, maximum_p)
    return CumulativeError(maximum, extent, maximum_p, _range_p(extent / deviation), floor)


def _maximum_p(x: float) -> float:
    """P(the largest |W(t)| for t in [0, 1] exceeds x) for Brownian motion W."""
    if x <= 0.1:
        return 1.0
    k = np.arange(100)
    terms = (-1.0) ** k / (2 * k + 1) * np.exp(-(((2 * k + 1) * np.pi / x) ** 2) / 8)
    below = 4 / np.pi * terms.sum()
    # In the tail the difference from 1 would be rounding error; use the leading reflections.
    return float(np.clip(1 - below if x < 4 else 4 * special.ndtr(-x), 0, 1))


def _range_p(x: float) -> float:
    """P(the range of W(t) for t in [0, 1] exceeds x) (Feller 1951)."""
    if x <= 0.1:
        return 1.0
    k = np.arange(1, 100)
    # The density 8 sum (-1)^(k-1) k^2 phi(k x), integrated from x to infinity.
    return float(np.clip(8 * ((-1.0) ** (k - 1) * k * special.ndtr(-k * x)).sum(), 0, 1)) if x > 0.7 else 1.0


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number with its specification. `float(estimate)` is the number.

    Attributes:
      value: the number.
      specification: bins, scheme, edge rule, norm, and what counts as confidence.
      interval: its confidence interval; None if none was computed.
      floor: what a perfectly calibrated model would show, and the p-value of calibration; None likewise.
    """

    value: float
    specification: dict[str, object]
    interval: Interval | None = None
    floor: Floor | None = None

    def __float__(self) -> float:
        return self.value


def calibration_error(
    labels: ArrayLike,
    *,
    logits: ArrayLike | None = None,
    log_probs: ArrayLike | None = None,
    probabilities: ArrayLike | None = None,
    normalize: bool = False,
    kind: str = "ece",
    scheme: str = "equal_width",
    bins: int = 15,
    clusters: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """A binned calibration error of the predicted class's probability, with its interval, noise floor and p-value.

    Args:
      labels: the true classes, [N].
      logits: [N, C]; or
      log_probs: [N, C]; or
      probabilities: [N, C]. `lm.calibration.inputs.checked_logits` says what each of them may be.
      normalize: divide each row of `probabilities` by its sum.
      kind: "ece", "mce", "rms", "rms_debiased" or "signed_gap".
      scheme: "equal_width" or "equal_mass".
      bins: number of bins.
      clusters: the document, prompt or seed that makes items dependent, [N].
      weights: how much each item counts, [N]; not for "rms_debiased".
      resamples: of the floor and the bootstrap; 0: neither interval nor floor.
      level: of the interval.
      seed: of the resamples.

    Raises:
      InputError: as `outcomes` does, or for an unknown kind or scheme.
    """
    if kind not in BINNED_ERRORS:
        raise InputError(f"kind must be one of {', '.join(BINNED_ERRORS)}; got {kind!r}")
    if scheme not in ("equal_width", "equal_mass"):
        raise InputError(f"scheme must be equal_width or equal_mass, got {scheme!r}")
    if weights is not None and kind == "rms_debiased":
        raise InputError("kind rms_debiased counts items, so it takes no weights")
    checked_share(level, "level")
    resamples, seed = checked_count(resamples, "resamples", 0), checked_count(seed, "seed", 0)
    confidence_N, correct_N = map(
        np.asarray,
        top_label(labels, logits=logits, log_probs=log_probs, probabilities=probabilities, normalize=normalize),
    )
    clusters_N = checked_clusters(clusters, len(confidence_N))
    weights_N = checked_weights(weights, len(confidence_N))
    binning = Binning(bins) if scheme == "equal_width" else equal_mass(confidence_N, bins)
    specification = {"error": kind, "confidence": "probability of the predicted class", **binning.specification()}
    if not resamples:
        return Estimate(
            float(BINNED_ERRORS[kind](bin_totals(confidence_N, correct_N, binning, weights_N))), specification
        )
    found = resampled_error(
        confidence_N,
        correct_N,
        binning,
        kind,
        clusters_N=clusters_N,
        weights_N=weights_N,
        resamples=resamples,
        level=level,
        seed=seed,
    )
    return Estimate(found.value, specification, found.interval, found.floor)


class ResampledError(NamedTuple):
    """A binned error with its interval and floor.

    Attributes:
      value: of the items.
      interval: from resamples, without the bias that chance gives the error.
      floor: what a perfectly calibrated model would show, and the p-value of calibration.
      null: totals of such models, [R, M].
    """

    value: float
    interval: Interval
    floor: Floor
    null: BinTotals


def resampled_error(
    confidence_N: np.ndarray,
    correct_N: np.ndarray,
    binning: Binning,
    kind: str = "ece",
    *,
    clusters_N: np.ndarray | None = None,
    weights_N: np.ndarray | None = None,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> ResampledError:
    """A binned error of checked arrays. Arguments are those of `calibration_error`; clusters are numbered."""
    error = BINNED_ERRORS[kind]
    if weights_N is not None:  # items that don't count show nothing about the spread either
        counted_N = weights_N > 0
        confidence_N, correct_N, weights_N = confidence_N[counted_N], correct_N[counted_N], weights_N[counted_N]
        clusters_N = None if clusters_N is None else np.unique(clusters_N[counted_N], return_inverse=True)[1]
    value = float(error(bin_totals(confidence_N, correct_N, binning, weights_N)))
    rng = np.random.default_rng(seed + 1)
    null = null_totals(
        confidence_N, correct_N, binning, resamples=resamples, rng=rng, clusters_N=clusters_N, weights_N=weights_N
    )
    floor = floor_of(float(error(observed_totals(confidence_N, correct_N, binning, weights_N))), error(null))
    resampler = Resampler(len(confidence_N), resamples=resamples, seed=seed, clusters_N=clusters_N)
    features_NF = bin_features(confidence_N, correct_N, binning, weights_N=weights_N)
    totals = totals_of_sums(resampler.sums(features_NF))
    if clusters_N is not None and resampler.groups < 2:
        floor = Floor(floor.mean, floor.high, math.nan)
    if kind == "ece":
        interval = ece_interval(totals_of_sums(features_NF.sum(axis=0)), totals, level)
    elif kind == "signed_gap":
        interval = bias_corrected_interval(value, error(totals), level)
    else:
        interval = error_interval(value, error(totals), floor, level)
    return ResampledError(value, interval, floor, null)


def expected_calibration_error(
    labels: ArrayLike,
    *,
    logits: ArrayLike | None = None,
    log_probs: ArrayLike | None = None,
    probabilities: ArrayLike | None = None,
    normalize: bool = False,
    bins: int = 15,
) -> Estimate:
    """ECE with equal-width bins as in Guo et al. (2017): `calibration_error` with its defaults and no resamples."""
    return calibration_error(
        labels,
        logits=logits,
        log_probs=log_probs,
        probabilities=probabilities,
        normalize=normalize,
        bins=bins,
        resamples=0,
    )


def class_bin_totals(
    labels_N: np.ndarray, probabilities_NC: np.ndarray, bins: int, weights_N: np.ndarray | None = None
) -> BinTotals:
    """Totals over equal-width bins of each class's probability, [C, M]; `correct` counts items of the class."""
    items, classes = probabilities_NC.shape
    cell_NC = np.asarray(Binning(bins).index(probabilities_NC)) + bins * np.arange(classes, dtype=np.int64)
    weights_N = np.ones(items) if weights_N is None else weights_N
    columns = (np.repeat(weights_N, classes), (weights_N[:, None] * probabilities_NC.astype(np.float64)).ravel())
    count, confidence = (np.bincount(cell_NC.ravel(), each, classes * bins) for each in columns)
    of_class = np.bincount(cell_NC[np.arange(items), labels_N], weights_N, classes * bins)
    return BinTotals(*(each.reshape(classes, bins) for each in (count, of_class, confidence)))


def classwise_ece(
    labels: ArrayLike,
    *,
    logits: ArrayLike | None = None,
    log_probs: ArrayLike | None = None,
    probabilities: ArrayLike | None = None,
    normalize: bool = False,
    bins: int = 15,
) -> Estimate:
    """Classwise (static) calibration error: the ECE of each class's own probability, averaged over classes.

    Nixon et al. (2019); Kull et al. (2019, eq. 3). Unlike ECE it covers every probability, not only the highest;
    with many classes nearly all of them fall into the first bin. Needs [N, C] probabilities in memory.
    """
    given = checked_logits(logits=logits, log_probs=log_probs, probabilities=probabilities, normalize=normalize)
    labels_N = np.asarray(checked_labels(labels, given.shape))
    binning = Binning(bins)
    totals = class_bin_totals(labels_N, special.softmax(np.asarray(whole(given)), axis=-1), binning.bins)
    specification = {"error": "ece, mean over classes", "confidence": "probability of each class"}
    return Estimate(float(ece(totals).mean()), {**specification, **binning.specification()})
