"""Temperature scaling: divides all logits by one number, found by a safeguarded Newton method.

The negative log-likelihood is convex in the inverse temperature beta, so its derivative is increasing and has one root.
Newton steps on log(beta) find it, within a bracket that shrinks with every step. The scale of the logits is factored
out first, so logits that are a thousand times too large or too small work equally well.

Axes: N items, C classes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lm.calibration.logits import Logits, number_of_chunks, sum_chunks
from lm.types import AnyArray

# Temperatures between e^-12 and e^12 times the logits' scale. At a bound the likelihood has no optimum: every label is
# the highest class, or confidence carries no information.
_REACH = 12.0
_MOST_STEPS = 60
_PRECISION = 1e-6  # of log(beta)
_SAMPLE_EVERY = 16


class TemperatureFit(NamedTuple):
    """Result of `fit_temperature`; all scalars.

    Attributes:
      temperature: T, by which to divide logits.
      converged: whether the optimum was found to 1e-5 relative.
      at_bound: whether the optimum lies beyond the search range, so that T is only "very small" or "very large".
    """

    temperature: Array
    converged: Array
    at_bound: Array


@jax.jit
def fit_temperature(logits: Logits, labels_N: AnyArray) -> TemperatureFit:
    """The temperature that minimizes the negative log-likelihood of the labels (Guo et al. 2017, section 4.2).

    A pure function, which can be jitted and vmapped. Classes at -inf have probability 0 and are ignored.

    Args:
      logits: [N, C], or factors.
      labels_N: the true classes. A label at -inf makes every temperature equally bad, and `converged` False.
    """
    items = logits.shape[0]
    scale, label_total = sum_chunks(_scale_of_chunk, logits, labels_N)
    informative = scale > 1e-30 * items  # otherwise all logits of an item are equal; avoid T = 0
    scale = jnp.where(informative, scale / items, 1.0)
    # Every label has the highest logit (zero gaps): the likelihood increases with confidence without bound.
    all_on_top = (label_total == 0) & informative

    def search(start: Array, every: int) -> tuple[Array, Array]:
        def body(state: tuple) -> tuple:
            log_beta, low, high, _, steps = state
            beta = jnp.exp(log_beta) / scale
            first, second = sum_chunks(lambda *chunk: _slopes_of_chunk(beta, *chunk), logits, labels_N, every=every)
            low = jnp.where(first < 0, log_beta, low)
            high = jnp.where(first < 0, high, log_beta)
            # Newton step to the root of `first` in log(beta); bisect if it leaves the bracket or is not finite.
            wanted = log_beta - first / (beta * second)
            inside = (wanted > low) & (wanted < high)
            new = jnp.where(inside, wanted, (low + high) / 2)
            moved = jnp.abs(new - log_beta)
            # The error of Newton's method is about the square of its last step.
            return new, low, high, jnp.where(inside, moved**2, moved), steps + 1

        def goes_on(state: tuple) -> Array:
            *_, error, steps = state
            return (error > _PRECISION) & (steps < _MOST_STEPS) & ~all_on_top

        state = (start, jnp.float32(-_REACH), jnp.float32(_REACH), jnp.float32(jnp.inf), 0)
        log_beta, _, _, error, _ = jax.lax.while_loop(goes_on, body, state)
        return log_beta, error

    log_beta = jnp.float32(0)
    if number_of_chunks(logits) >= 4 * _SAMPLE_EVERY:
        # Locate the root on a sixteenth of the items, so that one or two passes over all of them suffice.
        log_beta, _ = search(log_beta, _SAMPLE_EVERY)
    log_beta, error = search(log_beta, 1)
    log_beta = jnp.where(all_on_top, _REACH, log_beta)
    at_bound = jnp.abs(log_beta) > _REACH - 0.01
    converged = ((error <= _PRECISION) | at_bound) & jnp.isfinite(label_total)
    return TemperatureFit(scale / jnp.exp(log_beta), converged, at_bound)


def _gaps(logits_NC: Array, labels_N: Array) -> tuple[Array, Array]:
    """Distances from the highest logit: of all classes, and of the label."""
    gaps_NC = logits_NC - logits_NC.max(axis=-1, keepdims=True)
    return gaps_NC, jnp.take_along_axis(gaps_NC, labels_N[:, None], axis=-1)[:, 0]


def _scale_of_chunk(logits_NC: Array, counts_N: Array, labels_N: Array) -> tuple[Array, Array]:
    gaps_NC, label_gap_N = _gaps(logits_NC, labels_N)
    finite_NC = jnp.isfinite(gaps_NC)
    mean_N = -jnp.where(finite_NC, gaps_NC, 0).sum(axis=-1) / finite_NC.sum(axis=-1)
    return (counts_N * mean_N).sum(), jnp.where(counts_N > 0, label_gap_N, 0).sum()


def _slopes_of_chunk(beta: Array, logits_NC: Array, counts_N: Array, labels_N: Array) -> tuple[Array, Array]:
    """Sums of the first and second derivative of the negative log-likelihood in beta."""
    gaps_NC, label_gap_N = _gaps(logits_NC, labels_N)
    weights_NC = jnp.exp(beta * gaps_NC)
    gaps_NC = jnp.maximum(gaps_NC, jnp.finfo(jnp.float32).min)  # 0 * -inf would be NaN
    ones_C = jnp.ones(gaps_NC.shape[-1], jnp.float32)
    weighted_NC = weights_NC * gaps_NC
    total_N, first_N, second_N = (
        jnp.matmul(x, ones_C, precision="highest") for x in (weights_NC, weighted_NC, weighted_NC * gaps_NC)
    )
    mean_N = first_N / total_N
    variance_N = second_N / total_N - mean_N**2
    return (counts_N * (mean_N - label_gap_N)).sum(), (counts_N * variance_N).sum()
