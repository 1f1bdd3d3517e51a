"""Outcomes of predictions: the few numbers per item that all calibration metrics are computed from.

Axes: N items, C classes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

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


def outcomes(labels_N: AnyArray, *, logits: Logits | None = None, log_probs: Logits | None = None) -> Outcomes:
    """Outcomes of each item.

    Args:
      labels_N: the true classes, 0 to C - 1.
      logits: [N, C] in any floating dtype, or factors; -inf for impossible classes.
      log_probs: [N, C], instead of `logits`, if they are normalized. The kind is never guessed from the values: logits
        that happen to lie in [0, 1] are logits.

    Returns:
      `Outcomes`, computed in float32 in chunks of items.

    Raises:
      ValueError: if not exactly one of `logits` and `log_probs` is given, shapes do not match, a label is out of range,
        an item has NaN, +inf or no finite logit, or `log_probs` are not normalized. Under `jax.jit`, values cannot be
        checked and invalid items yield NaN.
    """
    return Outcomes(*_checked(labels_N, logits, log_probs, Outcomes._fields))


def top_label(
    labels_N: AnyArray, *, logits: Logits | None = None, log_probs: Logits | None = None
) -> tuple[AnyArray, AnyArray]:
    """Only `confidence_N` and `correct_N` of `outcomes`, at a fraction of the cost."""
    confidence_N, correct_N = _checked(labels_N, logits, log_probs, ("confidence_N", "correct_N"))
    return confidence_N, correct_N


def _checked(
    labels_N: AnyArray, logits: Logits | None, log_probs: Logits | None, fields: tuple[str, ...]
) -> tuple[AnyArray, ...]:
    given = _exactly_one(logits, log_probs)
    labels_N = _checked_labels(labels_N, given.shape)
    found = _outcomes(given, labels_N, normalized=log_probs is not None, fields=fields)
    if isinstance(found[0], jax.core.Tracer):
        return found
    on_host = tuple(np.asarray(values) for values in found)
    _check_confidence(on_host[0])
    return on_host


def _exactly_one(logits: Logits | None, log_probs: Logits | None) -> Logits:
    if (logits is None) == (log_probs is None):
        raise ValueError("give exactly one of logits= and log_probs=")
    given = logits if log_probs is None else log_probs
    assert given is not None
    if len(given.shape) != 2 or given.shape[0] < 1 or given.shape[1] < 2:
        raise ValueError(f"logits must be [items, classes] with at least 1 item and 2 classes, not {given.shape}")
    return given


def _checked_labels(labels_N: AnyArray, shape: tuple[int, ...]) -> Array:
    if labels_N.shape != (shape[0],):
        raise ValueError(f"labels must have shape ({shape[0]},) like the logits' items, not {labels_N.shape}")
    if not jnp.issubdtype(labels_N.dtype, jnp.integer):
        raise ValueError(f"labels must be integers, not {labels_N.dtype}")
    if not isinstance(labels_N, jax.core.Tracer):
        wrong = np.flatnonzero((np.asarray(labels_N) < 0) | (np.asarray(labels_N) >= shape[1]))
        if wrong.size:
            item = wrong[0]
            raise ValueError(f"label {labels_N[item]} of item {item} is not one of the classes 0 to {shape[1] - 1}")
    return jnp.asarray(labels_N, jnp.int32)


def _check_confidence(confidence_N: np.ndarray) -> None:
    wrong = np.flatnonzero(np.isnan(confidence_N))
    if wrong.size:
        raise ValueError(
            f"item {wrong[0]} ({wrong.size} in all) has NaN, +inf, no finite logit, or log_probs whose probabilities "
            "don't sum to 1"
        )


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
