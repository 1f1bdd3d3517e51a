"""Outcomes of predictions: the few numbers per item that all calibration metrics are computed from.

Axes: N items, C classes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lm.calibration.inputs import ArrayLike, InputError, checked_labels, checked_logits
from lm.calibration.logits import Logits, map_chunks
from lm.types import AnyArray


class Outcomes(NamedTuple):
    """Per-item results, float32 [N].

    Attributes:
      confidence_N: the highest probability.
      correct_N: 1 where the label has the highest probability, else 0; 1/n in a tie of n classes, since breaking ties
        would make accuracy depend on the order of classes.
      nll_N: negative log-likelihood of the label, in nats; infinite if the label has probability 0.
      brier_N: squared distance between the probabilities and the one-hot label, 0 to 2 (Brier 1950).
      entropy_N: of the probabilities, in nats.
    """

    confidence_N: AnyArray
    correct_N: AnyArray
    nll_N: AnyArray
    brier_N: AnyArray
    entropy_N: AnyArray


def outcomes(
    labels: ArrayLike,
    *,
    logits: ArrayLike | None = None,
    log_probs: ArrayLike | None = None,
    probabilities: ArrayLike | None = None,
    normalize: bool = False,
) -> Outcomes:
    """Outcomes of each item.

    Args:
      labels: the true classes, 0 to C - 1, [N].
      logits: [N, C], or factors; or
      log_probs: [N, C]; or
      probabilities: [N, C]. `checked_logits` says what each of them may be.
      normalize: divide each row of `probabilities` by its sum.

    Returns:
      `Outcomes`, computed in float32 in chunks of items.

    Raises:
      InputError: as `checked_logits` and `checked_labels`. Under `jax.jit`, values cannot be checked and invalid items
        yield NaN.
    """
    checked = checked_logits(logits=logits, log_probs=log_probs, probabilities=probabilities, normalize=normalize)
    return Outcomes(*_checked(labels, checked, Outcomes._fields, is_normalized=logits is None))


def top_label(
    labels: ArrayLike,
    *,
    logits: ArrayLike | None = None,
    log_probs: ArrayLike | None = None,
    probabilities: ArrayLike | None = None,
    normalize: bool = False,
) -> tuple[AnyArray, AnyArray]:
    """Only `confidence_N` and `correct_N` of `outcomes`, at a fraction of the cost."""
    checked = checked_logits(logits=logits, log_probs=log_probs, probabilities=probabilities, normalize=normalize)
    confidence_N, correct_N = _checked(labels, checked, ("confidence_N", "correct_N"), is_normalized=logits is None)
    return confidence_N, correct_N


def _checked(labels: ArrayLike, logits: Logits, fields: tuple[str, ...], is_normalized: bool) -> tuple[AnyArray, ...]:
    labels_N = jnp.asarray(checked_labels(labels, logits.shape))
    found = _outcomes(logits, labels_N, normalized=is_normalized, fields=fields)
    if isinstance(found[0], jax.core.Tracer):
        return found
    on_host = tuple(np.asarray(values) for values in found)
    if np.isnan(on_host[0]).any():  # of factors, whose product is seen in chunks alone
        item = np.flatnonzero(np.isnan(on_host[0]))[0]
        raise InputError(f"logits of item {item} are too large for float32; scale the hidden states")
    return on_host


def mean_nll(logits: Logits, labels_N: AnyArray, weights_N: np.ndarray) -> float:
    """The mean negative log-likelihood, by weights with mean 1; that of items with weight 0 may be infinite."""
    nll_N = np.asarray(outcomes(labels_N, logits=logits).nll_N)
    return float(np.mean(np.where(weights_N > 0, weights_N * nll_N, 0), dtype=np.float64))


@jax.jit(static_argnames=("normalized", "fields"))
def _outcomes(logits: Logits, labels_N: Array, normalized: bool, fields: tuple[str, ...]) -> tuple[Array, ...]:
    def of_chunk(logits_NC: Array, labels_N: Array) -> tuple[Array, ...]:
        found = outcomes_of_chunk(logits_NC, labels_N, normalized)
        return tuple(getattr(found, field) for field in fields)

    return map_chunks(of_chunk, logits, labels_N)


def outcomes_of_chunk(logits_NC: Array, labels_N: Array, normalized: bool = False) -> Outcomes:
    """`Outcomes` of float32 logits in memory; NaN marks invalid items."""
    highest_N1 = logits_NC.max(axis=-1, keepdims=True)
    shifted_NC = logits_NC - highest_N1
    unnormalized_NC = jnp.exp(shifted_NC)
    normalizer_N = _sum(unnormalized_NC)
    label_shifted_N = jnp.take_along_axis(shifted_NC, labels_N[:, None], axis=-1)[:, 0]
    sharing_N = (shifted_NC == 0).sum(axis=-1)
    log_normalizer_N = jnp.log(normalizer_N)
    finite_NC = jnp.maximum(shifted_NC, jnp.finfo(jnp.float32).min)
    confidence_N = 1 / normalizer_N
    if normalized:
        total_N = normalizer_N * jnp.exp(highest_N1[:, 0])
        confidence_N = jnp.where(jnp.abs(total_N - 1) < 1e-3, confidence_N, jnp.nan)
    label_probability_N = jnp.exp(label_shifted_N) / normalizer_N
    return Outcomes(
        confidence_N=confidence_N,
        correct_N=jnp.where(jnp.isnan(confidence_N), jnp.nan, jnp.where(label_shifted_N < 0, 0.0, 1 / sharing_N)),
        nll_N=log_normalizer_N - label_shifted_N,
        brier_N=_sum(unnormalized_NC**2) / normalizer_N**2 - 2 * label_probability_N + 1,
        entropy_N=log_normalizer_N - _sum(unnormalized_NC * finite_NC) / normalizer_N,
    )


def _sum(values_NC: Array) -> Array:
    if values_NC.shape[-1] > 64:
        return values_NC.sum(axis=-1)
    # For short rows, a product with ones is three times as fast as a sum in XLA on CPU.
    return jnp.matmul(values_NC, jnp.ones(values_NC.shape[-1], values_NC.dtype), precision="highest")
