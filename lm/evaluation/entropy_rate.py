"""Entropy rates: how random a model's own text is, compared with its loss on real text.

A model whose text is as predictable as the text that it learned from has an entropy rate equal to its loss. Braverman
et al. 2020 (Calibration, Entropy Rates, and Memory in Language Models, arXiv 1906.05664) find that the entropy of
generated text grows with its length instead, and correct it by looking one token ahead. Cao et al. 2025 (On the Entropy
Calibration of Language Models, arXiv 2511.11966) measure how the gap depends on the model's size.

All entropies and losses are in nats a token.

Axes: B documents, T positions, N predictions, G clusters, V vocabulary.
"""

import dataclasses
import math

import numpy as np
from scipy import optimize, stats
from scipy.special import logsumexp

from lm.errors import UserError
from lm.statistics.comparisons import Difference, paired_mean_difference
from lm.statistics.intervals import Interval, mean_interval
from lm.statistics.resampling import sum_by_cluster

_FARTHEST = 100.0  # of alpha from 0, in 1/nats: beyond, there is no optimum


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over documents.

    Attributes:
      value: the estimate.
      low: lower end of its interval.
      high: upper end.
      standard_error: over documents.
    """

    value: float
    low: float
    high: float
    standard_error: float


@dataclasses.dataclass(frozen=True)
class Drift:
    """A model's entropy rate and its loss, on the same prompts.

    Attributes:
      loss: of the true continuations.
      true_text: entropy of the predictions along the true continuations.
      entropy_rate: entropy of the predictions along the model's own continuations.
      gap: `entropy_rate` minus `loss`: 0 for a calibrated model.
      shift: `entropy_rate` minus `true_text`: the part of the gap that comes from reading its own text.
      exponent: `growth_exponent` of the model's own text.
      excess_exponent: that of its ratio to the true text.
    """

    loss: Estimate
    true_text: Estimate
    entropy_rate: Estimate
    gap: Difference
    shift: Difference
    exponent: Estimate
    excess_exponent: Estimate


def drift(loss_BT: np.ndarray, true_BT: np.ndarray, own_BT: np.ndarray) -> Drift:
    """Compares a model's text with real text.

    Args:
      loss_BT: negative log-likelihood of each token of a true continuation.
      true_BT: entropy of the prediction of each.
      own_BT: entropy of the prediction of each token of the model's continuation of the same prompt. If they are of
        fewer documents, the first ones, then what is paired is of these.
    """
    some = slice(len(own_BT))
    loss_B, true_B, own_B = (part[some].mean(axis=1, dtype=np.float64) for part in (loss_BT, true_BT, own_BT))
    return Drift(
        loss=mean_over_documents(loss_BT),
        true_text=mean_over_documents(true_BT),
        entropy_rate=mean_over_documents(own_BT),
        gap=paired_mean_difference(loss_B, own_B),
        shift=paired_mean_difference(true_B, own_B),
        exponent=growth_exponent(own_BT),
        excess_exponent=growth_exponent(own_BT, true_BT[some]),
    )


def mean_over_documents(values_BT: np.ndarray) -> Estimate:
    """The mean of all values, with the interval of Student's t over documents."""
    return _estimate(values_BT.mean(axis=1, dtype=np.float64))


def growth_exponent(entropy_BT: np.ndarray, compared_BT: np.ndarray | None = None) -> Estimate:
    """The exponent b of t^b that best fits the mean entropy at position t, from 1: the slope of its logarithm on log t.

    The interval is that of Student's t over documents, of the slope's linearization: what each document contributes to
    it (Deville 1999).

    Args:
      entropy_BT: entropy at each position of a generated text.
      compared_BT: the same of other texts for the same prompts; the exponent is then that of the ratio of the means.
        Entropy falls with more context in any text; the ratio shows what a model's own text adds.

    Raises:
      UserError: with fewer than two positions.
    """
    if entropy_BT.shape[1] < 2:
        raise UserError("an exponent needs texts of at least two tokens")
    log_T = np.log(np.arange(1, entropy_BT.shape[1] + 1))
    weights_T = (log_T - log_T.mean()) / np.square(log_T - log_T.mean()).sum()

    def linearized(values_BT: np.ndarray) -> np.ndarray:
        mean_T = values_BT.mean(axis=0, dtype=np.float64)
        return weights_T @ np.log(mean_T) + (values_BT / mean_T - 1) @ weights_T

    slopes_B = linearized(entropy_BT)
    return _estimate(slopes_B if compared_BT is None else slopes_B - linearized(compared_BT))


def scaling_exponent(sizes_N: np.ndarray, gaps_N: np.ndarray) -> Estimate:
    """The exponent b of size^b that fits the gaps of models of several sizes best (Cao et al. 2025).

    Args:
      sizes_N: parameters of each model, or tokens that it learned from.
      gaps_N: entropy rate minus loss of each.

    Returns:
      The slope of log gap on log size, with the interval of Student's t with N - 2 degrees of freedom; NaN if a gap is
      not positive, or for fewer than three models or two sizes.
    """
    if len(sizes_N) < 3 or len(set(sizes_N)) < 2 or np.min(gaps_N) <= 0:
        return Estimate(math.nan, math.nan, math.nan, math.nan)
    line = stats.linregress(np.log(sizes_N), np.log(gaps_N))
    reach = float(stats.t.ppf(0.975, len(sizes_N) - 2) * line.stderr)
    return Estimate(float(line.slope), float(line.slope) - reach, float(line.slope) + reach, float(line.stderr))


@dataclasses.dataclass(frozen=True)
class LookAhead:
    """A correction of predictions: p(x) exp(-alpha H(x)), normalized, where H(x) is the entropy after x.

    Attributes:
      alpha: in 1/nats.
      standard_error: of `alpha`, over clusters.
      at_bound: whether there is no optimum, so that `alpha` is only large.
    """

    alpha: float
    standard_error: float
    at_bound: bool


def look_ahead_log_probs(log_probs_NV: np.ndarray, entropies_NV: np.ndarray, alpha: float) -> np.ndarray:
    """The corrected log-probabilities, float64 [N, V].

    Args:
      log_probs_NV: the model's.
      entropies_NV: the entropy of its next prediction after each token.
      alpha: weight of the entropies; 0 changes nothing.
    """
    moved_NV = np.asarray(log_probs_NV, np.float64) - alpha * np.asarray(entropies_NV, np.float64)
    return moved_NV - logsumexp(moved_NV, axis=-1, keepdims=True)


def fit_look_ahead(
    log_probs_NV: np.ndarray, entropies_NV: np.ndarray, labels_N: np.ndarray, clusters_N: np.ndarray | None = None
) -> LookAhead:
    """The alpha that minimizes the negative log-likelihood (Braverman et al. 2020).

    The likelihood is log-concave in alpha. At the optimum, the entropy that the corrected model expects after its token
    equals the mean entropy after the true one; alpha = 0 is among the choices, so the loss on these items never rises.

    Args:
      log_probs_NV: the model's log-probabilities.
      entropies_NV: the entropy of its next prediction after each token.
      labels_N: the true tokens.
      clusters_N: a number for each item, such as its document's, for the standard error; None: each is one of its own.
    """
    log_probs_NV, entropies_NV = np.asarray(log_probs_NV, np.float64), np.asarray(entropies_NV, np.float64)
    found_N = np.take_along_axis(entropies_NV, labels_N[:, None], axis=1)[:, 0]

    def moments(alpha: float) -> tuple[np.ndarray, np.ndarray]:
        """The slope of each item's loss, and the curvature."""
        p_NV = np.exp(look_ahead_log_probs(log_probs_NV, entropies_NV, alpha))
        expected_N = (p_NV * entropies_NV).sum(axis=1)
        return found_N - expected_N, (p_NV * np.square(entropies_NV - expected_N[:, None])).sum(axis=1)

    def slope(alpha: float) -> float:
        return float(moments(alpha)[0].mean())

    if slope(-_FARTHEST) >= 0 or slope(_FARTHEST) <= 0:
        return LookAhead(math.copysign(_FARTHEST, -slope(0.0)), math.nan, True)
    alpha = float(optimize.brentq(slope, -_FARTHEST, _FARTHEST, xtol=1e-6))
    slopes_N, curvature_N = moments(alpha)
    clusters_N = np.arange(labels_N.size) if clusters_N is None else clusters_N
    slopes_G = sum_by_cluster(slopes_N[:, None], clusters_N)
    return LookAhead(alpha, float(np.sqrt(np.square(slopes_G).sum()) / curvature_N.sum()), False)


def _estimate(values_B: np.ndarray) -> Estimate:
    interval: Interval = mean_interval(values_B)
    return Estimate(float(values_B.mean()), **dataclasses.asdict(interval))
