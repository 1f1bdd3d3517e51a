"""Temperature scaling: divides all logits by one number, found by a safeguarded Newton method.

The negative log-likelihood is convex in the inverse temperature beta, so its derivative is increasing and has one root.
Newton steps on log(beta) find it, within a bracket that shrinks with every step and begins with all that float32 can
hold. Whether there is a positive root at all is known beforehand, from the derivative at both ends.

Axes: N items, C classes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lm.calibration.logits import Logits, number_of_chunks, sum_chunks
from lm.types import AnyArray

_LIMIT = 86.0  # of |log(beta)|: float32 holds its exponential and the inverse of that
_BEYOND = 12.0  # where there is no optimum, the temperature is e^12 times more or less than the logits' scale
_LEAP = 6.0  # longest step of log(beta)
_MOST_STEPS = 100
_PRECISION = 1e-6  # of log(beta)
_SAMPLE_EVERY = 16
_LOWEST = -150.0  # exp of less is 0 in float32


class TemperatureFit(NamedTuple):
    """Result of `fit_temperature`; all scalars.

    Attributes:
      temperature: T, by which to divide logits.
      converged: whether the optimum was found to 1e-5 relative.
      at_bound: whether there is no optimum, because every label has the highest logit or confidence carries no
        information, so that T is only "very small" or "very large".
      scale: of the logits: the geometric mean, over items, of the distance between the two highest. Unlike a mean of
        all logits it hardly depends on those that mark impossible classes, such as -1e9.
    """

    temperature: Array
    converged: Array
    at_bound: Array
    scale: Array


@jax.jit
def fit_temperature(logits: Logits, labels_N: AnyArray, weights_N: AnyArray | None = None) -> TemperatureFit:
    """The temperature that minimizes the negative log-likelihood of the labels (Guo et al. 2017, section 4.2).

    A pure function, which can be jitted and vmapped. Classes at -inf have probability 0 and are ignored.

    Args:
      logits: [N, C], or factors.
      labels_N: the true classes. A label at -inf makes every temperature equally bad, and `converged` False.
      weights_N: how much each item counts; None: all the same.
    """
    weights_N = jnp.ones(logits.shape[0], jnp.float32) if weights_N is None else jnp.asarray(weights_N, jnp.float32)
    items = (logits, labels_N, weights_N)
    log_scale, informative, label_total, slope_at_0 = sum_chunks(_facts_of_chunk, *items)
    is_informative = informative > 0
    scale = jnp.exp(log_scale / jnp.where(is_informative, informative, 1))
    is_all_on_top = label_total == 0  # the likelihood increases with confidence without bound
    at_bound = is_all_on_top | (slope_at_0 >= 0) | ~is_informative

    def search(start: Array, every: int) -> tuple[Array, Array]:
        def body(state: tuple) -> tuple:
            log_beta, low, high, _, steps = state
            beta = jnp.exp(log_beta)
            slope, curvature = sum_chunks(lambda *chunk: _slopes_of_chunk(beta, *chunk), *items, every=every)
            low = jnp.where(slope < 0, log_beta, low)
            high = jnp.where(slope < 0, high, log_beta)
            # Newton step to the root of the slope; bisect if it leaves the bracket or is not finite.
            wanted = log_beta - slope / curvature
            inside = (wanted > low) & (wanted < high)
            new = jnp.clip(jnp.where(inside, wanted, (low + high) / 2), log_beta - _LEAP, log_beta + _LEAP)
            moved = jnp.abs(new - log_beta)
            # The error of Newton's method is about the square of its last step.
            return new, low, high, jnp.where(inside, moved**2, moved), steps + 1

        def goes_on(state: tuple) -> Array:
            *_, error, steps = state
            return (error > _PRECISION) & (steps < _MOST_STEPS) & ~at_bound

        state = (start, jnp.float32(-_LIMIT), jnp.float32(_LIMIT), jnp.float32(jnp.inf), 0)
        log_beta, _, _, error, _ = jax.lax.while_loop(goes_on, body, state)
        return log_beta, error

    log_beta = start = -jnp.log(scale)
    if number_of_chunks(logits) >= 4 * _SAMPLE_EVERY:
        # Locate the root on a sixteenth of the items, so that one or two passes over all of them suffice.
        log_beta, _ = search(start, _SAMPLE_EVERY)
        log_beta = jnp.where(jnp.abs(log_beta - start) < _BEYOND, log_beta, start)  # the sample may have no root
    log_beta, error = search(log_beta, 1)
    beyond = start + jnp.where(is_all_on_top, _BEYOND, -_BEYOND)
    log_beta = jnp.where(at_bound, jnp.where(is_informative, beyond, 0.0), log_beta)
    converged = ((error <= _PRECISION) | at_bound) & jnp.isfinite(label_total)
    return TemperatureFit(jnp.exp(-log_beta), converged, at_bound, scale)


def _gaps(logits_NC: Array, labels_N: Array) -> tuple[Array, Array]:
    """Distances from the highest logit: of all classes, and of the label."""
    gaps_NC = logits_NC - logits_NC.max(axis=-1, keepdims=True)
    return gaps_NC, jnp.take_along_axis(gaps_NC, labels_N[:, None], axis=-1)[:, 0]


def _facts_of_chunk(
    logits_NC: Array, counts_N: Array, labels_N: Array, weights_N: Array
) -> tuple[Array, Array, Array, Array]:
    """Sums over items: log distance of the two highest logits, items that have one, gap of the label, slope at 0."""
    gaps_NC, label_gap_N = _gaps(logits_NC, labels_N)
    counts_N = counts_N * weights_N
    second_N = jnp.where(gaps_NC < 0, gaps_NC, -jnp.inf).max(axis=-1)
    has_second_N = jnp.where(jnp.isfinite(second_N), counts_N, 0)
    log_second_N = jnp.log(jnp.where(jnp.isfinite(second_N), -second_N, 1.0))
    finite_NC = jnp.isfinite(gaps_NC)
    number_N = finite_NC.sum(axis=-1)
    mean_N = (jnp.where(finite_NC, gaps_NC, 0) / number_N[:, None]).sum(axis=-1)
    label_gap_N = jnp.where(counts_N > 0, label_gap_N, 0)
    slope_N = jnp.where(counts_N > 0, mean_N - label_gap_N, 0)
    return (has_second_N * log_second_N).sum(), has_second_N.sum(), label_gap_N.sum(), (counts_N * slope_N).sum()


def _slopes_of_chunk(
    beta: Array, logits_NC: Array, counts_N: Array, labels_N: Array, weights_N: Array
) -> tuple[Array, Array]:
    """Sums of the first and second derivative of the negative log-likelihood in beta, times beta and beta squared."""
    gaps_NC, label_gap_N = _gaps(logits_NC, labels_N)
    counts_N = counts_N * weights_N
    scaled_NC = jnp.maximum(beta * gaps_NC, _LOWEST)
    odds_NC = jnp.exp(scaled_NC)
    weighted_NC = odds_NC * scaled_NC
    ones_C = jnp.ones(gaps_NC.shape[-1], jnp.float32)
    total_N, first_N, second_N = (
        jnp.matmul(x, ones_C, precision="highest") for x in (odds_NC, weighted_NC, weighted_NC * scaled_NC)
    )
    mean_N = first_N / total_N
    variance_N = second_N / total_N - mean_N**2
    slope_N = jnp.where(counts_N > 0, mean_N - beta * label_gap_N, 0)
    return (counts_N * slope_N).sum(), (counts_N * variance_N).sum()
