"""Calibrators that map logits z to W z + b: biases, vector and matrix scaling, free or penalized.

All start from temperature scaling, so that no fit depends on the scale of the logits, and minimize the mean negative
log-likelihood plus a penalty, a convex objective, by L-BFGS.

Axes: N items, C classes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from lm.calibration.logits import FactoredLogits, Logits, sum_chunks, whole
from lm.calibration.temperature import fit_temperature
from lm.types import AnyArray

Weights = dict[str, Array]

_MOST_STEPS = 500
_PRECISION = 1e-5  # of the gradient's largest entry; the objective is in nats


class AffineFit(NamedTuple):
    """Result of an affine fit.

    Attributes:
      scale: the diagonal of W, scalar or [C], or the matrix W, [C, C].
      bias: [C].
      converged: whether the gradient became as small as float32 allows.
      at_bound: whether the initial temperature hit its search bound.
    """

    scale: Array
    bias: Array
    converged: Array
    at_bound: Array


def fit_affine(
    logits: Logits,
    labels_N: AnyArray,
    *,
    free: tuple[str, ...],
    start: str = "temperature",
    penalty: Callable[[Weights, int, Array], Array] | None = None,
    strength: float = 1.0,
) -> AffineFit:
    """Fits the free parts of softmax((s + diag(v) + M) z / T + b); the other parts keep their initial values.

    Args:
      logits: [N, C], or factors.
      labels_N: the true classes.
      free: some of "log_scale" (log s), "diagonal" (v), "off_diagonal" (M, with zero diagonal) and "bias" (b).
      start: "temperature" takes T from temperature scaling, "identity" takes 1.
      penalty: function of (free parts, N, strength), added to the mean negative log-likelihood.
      strength: passed to the penalty.
    """
    return _fit_affine(logits, labels_N, free, start, penalty, jnp.float32(strength))


@jax.jit(static_argnames=("free", "start", "penalty"))
def _fit_affine(
    logits: Logits, labels_N: AnyArray, free: tuple[str, ...], start: str, penalty: Callable | None, strength: Array
) -> AffineFit:
    items, classes = logits.shape
    first = fit_temperature(logits, labels_N)
    inverse_temperature = 1 / first.temperature if start == "temperature" else jnp.float32(1)
    shapes = {"log_scale": (), "diagonal": (classes,), "off_diagonal": (classes, classes), "bias": (classes,)}
    zeros = {name: jnp.zeros(shapes[name], jnp.float32) for name in free}

    def of_chunk(weights: Weights, logits_NC: Array, counts_N: Array, labels_N: Array) -> Array:
        mapped_NC = _map(weights, _finite_differences(logits_NC) * inverse_temperature)
        mapped_NC = jnp.where(jnp.isfinite(logits_NC), mapped_NC, -jnp.inf)
        log_probs_NC = jax.nn.log_softmax(mapped_NC, axis=-1)
        return -(counts_N * jnp.take_along_axis(log_probs_NC, labels_N[:, None], axis=-1)[:, 0]).sum() / items

    def value_and_gradient(weights: Weights) -> tuple[Array, Weights]:
        # Differentiate chunk by chunk: the gradient of the sum would keep every chunk's intermediate results.
        value, gradient = sum_chunks(lambda *chunk: jax.value_and_grad(of_chunk)(weights, *chunk), logits, labels_N)
        if penalty is not None:
            more, more_gradient = jax.value_and_grad(penalty)(weights, items, strength)
            value, gradient = value + more, jax.tree.map(jnp.add, gradient, more_gradient)
        return value, gradient

    weights, converged = _minimize(value_and_gradient, zeros)
    scale = _scale(weights, classes) * inverse_temperature
    bias = weights.get("bias", jnp.zeros(classes, jnp.float32))
    return AffineFit(scale, bias - bias.mean(), converged, first.at_bound)


def _finite_differences(logits_NC: Array) -> Array:
    """Logits minus their row's mean, which leaves the softmax unchanged; 0 for classes at -inf."""
    finite_NC = jnp.isfinite(logits_NC)
    total_N1 = jnp.where(finite_NC, logits_NC, 0).sum(axis=-1, keepdims=True)
    return jnp.where(finite_NC, logits_NC - total_N1 / finite_NC.sum(axis=-1, keepdims=True), 0)


def _scale(weights: Weights, classes: int) -> Array:
    scale = jnp.exp(weights.get("log_scale", jnp.float32(0))) + weights.get("diagonal", jnp.zeros(classes))
    if "off_diagonal" not in weights:
        return scale
    return jnp.diag(scale) + without_diagonal(weights["off_diagonal"])


def _map(weights: Weights, logits_NC: Array) -> Array:
    scale = _scale(weights, logits_NC.shape[-1])
    mapped_NC = logits_NC * scale[None] if scale.ndim == 1 else jnp.matmul(logits_NC, scale.T, precision="highest")
    return mapped_NC + weights["bias"][None] if "bias" in weights else mapped_NC


def without_diagonal(matrix_CC: Array) -> Array:
    """The matrix with zeros on its diagonal."""
    return matrix_CC * (1 - jnp.eye(matrix_CC.shape[0]))


def _minimize(value_and_gradient: Callable[[Weights], tuple[Array, Weights]], start: Weights) -> tuple[Weights, Array]:
    optimizer = optax.lbfgs(memory_size=20)

    @jax.custom_vjp
    def value_of(weights: Weights) -> Array:
        return value_and_gradient(weights)[0]

    value_of.defvjp(value_and_gradient, lambda gradient, scale: (jax.tree.map(lambda g: g * scale, gradient),))
    with_gradient = optax.value_and_grad_from_state(value_of)

    def body(state: tuple[Weights, Any, Array, Array, Array]) -> tuple[Weights, Any, Array, Array, Array]:
        weights, memory, _, best, stalled = state
        value, gradient = with_gradient(weights, state=memory)
        updates, memory = optimizer.update(gradient, memory, weights, value=value, grad=gradient, value_fn=value_of)
        largest = optax.tree.max(jax.tree.map(jnp.abs, gradient))
        # In float32 the value stops decreasing before the gradient vanishes; stop there.
        stalled = jnp.where(value < best - 1e-7 * jnp.abs(best), 0, stalled + 1)
        return optax.apply_updates(weights, updates), memory, largest, jnp.minimum(value, best), stalled

    def goes_on(state: tuple) -> Array:
        _, memory, largest, _, stalled = state
        steps = optax.tree.get(memory, "count")
        return (steps == 0) | ((steps < _MOST_STEPS) & (largest > _PRECISION) & (stalled < 5))

    state = (start, optimizer.init(start), jnp.float32(jnp.inf), jnp.float32(jnp.inf), jnp.int32(0))
    weights, _, largest, _, stalled = jax.lax.while_loop(goes_on, body, state)
    return weights, (largest <= _PRECISION) | ((stalled >= 5) & (largest < 1e-2))


@jax.jit
def apply_affine(scale: Array, bias: Array, logits: Logits) -> Logits:
    """Logits W z + b, in the form of `logits`: factors stay factors unless W is a matrix."""
    scale, bias = jnp.asarray(scale), jnp.asarray(bias)
    if isinstance(logits, FactoredLogits) and scale.ndim < 2:
        hidden_ND, output_CD = jnp.asarray(logits.hidden_ND), jnp.asarray(logits.output_CD)
        scale_C = jnp.broadcast_to(scale, output_CD.shape[:1])
        if scale.ndim:
            output_CD = output_CD - output_CD.mean(axis=0, keepdims=True)  # subtracts each row's mean from the logits
        ones_N1 = jnp.ones((hidden_ND.shape[0], 1), hidden_ND.dtype)
        output = jnp.concatenate([output_CD * scale_C[:, None], jnp.broadcast_to(bias, scale_C.shape)[:, None]], axis=1)
        return FactoredLogits(jnp.concatenate([hidden_ND, ones_N1], axis=1), output)
    logits_NC = whole(logits)
    bias = jnp.atleast_2d(bias)
    if scale.ndim < 2:
        # The row's mean matters only if classes are scaled differently.
        centred_NC = _finite_differences(logits_NC) if scale.ndim else logits_NC
        return jnp.where(jnp.isfinite(logits_NC), centred_NC * jnp.atleast_2d(scale) + bias, logits_NC)
    mapped_NC = jnp.matmul(_finite_differences(logits_NC), scale.T, precision="highest") + bias
    return jnp.where(jnp.isfinite(logits_NC), mapped_NC, logits_NC)
