"""Calibrators that map logits z to W z + b: biases, vector and matrix scaling, free or penalized.

All start from temperature scaling, so that no fit depends on the scale of the logits, and minimize the mean negative
log-likelihood plus a penalty, a convex objective, by L-BFGS.

Two kinds of classes need care. Classes that an item rules out, at -inf or far below the others (as -1e9 marks options
that a question lacks), would swamp the row's mean: they take no part in the map. Classes that the items hardly have
would get a probability of 0, which costs every later item of theirs dearly: their own parameters are the mean of the
other classes'.

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
RULED_OUT = 1000.0  # nats below the highest class, at the fitted temperature
EVERYTHING = 1e38  # a reach that leaves out -inf alone


class AffineFit(NamedTuple):
    """Result of an affine fit.

    Attributes:
      scale: the diagonal of W, scalar or [C], or the matrix W, [C, C].
      bias: [C].
      reach: how far below an item's highest logit those of possible classes may lie; others keep their distance.
      converged: whether the gradient became as small as float32 allows.
      at_bound: whether the initial temperature hit its search bound.
    """

    scale: Array
    bias: Array
    reach: Array
    converged: Array
    at_bound: Array


def fit_affine(
    logits: Logits,
    labels_N: AnyArray,
    weights_N: AnyArray,
    is_rare_C: AnyArray,
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
      weights_N: how much each item counts, with mean 1.
      is_rare_C: classes whose own parameters are the mean of the others'.
      free: some of "log_scale" (log s), "diagonal" (v), "off_diagonal" (M, with zero diagonal) and "bias" (b).
      start: "temperature" takes T from temperature scaling, "identity" takes 1.
      penalty: function of (free parts, N, strength), added to the mean negative log-likelihood.
      strength: passed to the penalty.
    """
    weights_N, is_rare_C = jnp.asarray(weights_N, jnp.float32), jnp.asarray(is_rare_C)
    return _fit_affine(logits, labels_N, weights_N, is_rare_C, free, start, penalty, jnp.float32(strength))


@jax.jit(static_argnames=("free", "start", "penalty"))
def _fit_affine(
    logits: Logits,
    labels_N: AnyArray,
    weights_N: Array,
    is_rare_C: Array,
    free: tuple[str, ...],
    start: str,
    penalty: Callable | None,
    strength: Array,
) -> AffineFit:
    items, classes = logits.shape
    first = fit_temperature(logits, labels_N, weights_N)
    reach = jnp.minimum(RULED_OUT * jnp.maximum(first.temperature, first.scale), EVERYTHING)
    if isinstance(logits, FactoredLogits):
        reach = jnp.float32(EVERYTHING)  # no product of factors marks a class as impossible
    inverse_temperature = 1 / first.temperature if start == "temperature" else jnp.float32(1)
    shapes = {"log_scale": (), "diagonal": (classes,), "off_diagonal": (classes, classes), "bias": (classes,)}
    zeros = {name: jnp.zeros(shapes[name], jnp.float32) for name in free}

    def tied(weights: Weights) -> Weights:
        return _tied(weights, is_rare_C)

    def of_chunk(weights: Weights, logits_NC: Array, counts_N: Array, labels_N: Array, weights_N: Array) -> Array:
        weights = tied(weights)
        bias_C = weights.get("bias", jnp.zeros(classes, jnp.float32))
        mapped_NC = _map(_scale(weights, classes) * inverse_temperature, bias_C, reach, logits_NC)
        log_probs_NC = jax.nn.log_softmax(mapped_NC, axis=-1)
        nll_N = -jnp.take_along_axis(log_probs_NC, labels_N[:, None], axis=-1)[:, 0]
        counts_N = counts_N * weights_N
        return (counts_N * jnp.where(counts_N > 0, nll_N, 0)).sum() / items

    def value_and_gradient(weights: Weights) -> tuple[Array, Weights]:
        # Differentiate chunk by chunk: the gradient of the sum would keep every chunk's intermediate results.
        value, gradient = sum_chunks(
            lambda *chunk: jax.value_and_grad(of_chunk)(weights, *chunk), logits, labels_N, weights_N
        )
        if penalty is not None:
            more, more_gradient = jax.value_and_grad(lambda w: penalty(tied(w), items, strength))(weights)
            value, gradient = value + more, jax.tree.map(jnp.add, gradient, more_gradient)
        return value, gradient

    weights, converged = _minimize(value_and_gradient, zeros)
    weights = tied(weights)
    scale = _scale(weights, classes) * inverse_temperature
    bias = weights.get("bias", jnp.zeros(classes, jnp.float32))
    return AffineFit(scale, bias - bias.mean(), reach, converged, first.at_bound)


def _tied(weights: Weights, is_rare_C: Array) -> Weights:
    """The same, with the parameters of rare classes replaced by the mean of the other classes'."""
    number = jnp.maximum((~is_rare_C).sum(), 1)

    def tie(values: Array) -> Array:  # [C], or [C, C] with a row of W for each class
        is_rare = is_rare_C.reshape(-1, *[1] * (values.ndim - 1))
        return jnp.where(is_rare, jnp.where(is_rare, 0, values).sum(axis=0) / number, values)

    found = {name: tie(values) for name, values in weights.items() if name in ("bias", "diagonal")}
    if "off_diagonal" in weights:
        rows_CC = tie(without_diagonal(weights["off_diagonal"]) + jnp.diag(weights["diagonal"]))
        found |= {"diagonal": jnp.diagonal(rows_CC), "off_diagonal": without_diagonal(rows_CC)}
    return {**weights, **found}


def _split(logits_NC: Array, reach: Array | float) -> tuple[Array, Array, Array]:
    """Logits minus the mean of their row's possible classes, 0 for others; which are possible; gaps to the highest."""
    gaps_NC = logits_NC - logits_NC.max(axis=-1, keepdims=True)
    is_possible_NC = gaps_NC >= -reach
    kept_NC = jnp.where(is_possible_NC, gaps_NC, 0)
    mean_N1 = kept_NC.sum(axis=-1, keepdims=True) / is_possible_NC.sum(axis=-1, keepdims=True)
    return jnp.where(is_possible_NC, kept_NC - mean_N1, 0), is_possible_NC, gaps_NC


def _scale(weights: Weights, classes: int) -> Array:
    scale = jnp.exp(weights.get("log_scale", jnp.float32(0))) + weights.get("diagonal", jnp.zeros(classes))
    if "off_diagonal" not in weights:
        return scale
    return jnp.diag(scale) + without_diagonal(weights["off_diagonal"])


def _map(scale: Array, bias: Array, reach: Array | float, logits_NC: Array) -> Array:
    """W z + b; classes that an item rules out lie as far below its highest as before, measured in `reach`."""
    differences_NC, is_possible_NC, gaps_NC = _split(logits_NC, reach)
    if scale.ndim < 2:
        mapped_NC = differences_NC * jnp.atleast_2d(scale)
    else:
        mapped_NC = jnp.matmul(differences_NC, scale.T, precision="highest")
    mapped_NC = mapped_NC + jnp.atleast_2d(bias)
    highest_N1 = jnp.where(is_possible_NC, mapped_NC, -jnp.inf).max(axis=-1, keepdims=True)
    return jnp.where(is_possible_NC, mapped_NC, highest_N1 + gaps_NC * (RULED_OUT / reach))


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
def apply_affine(scale: Array, bias: Array, reach: Array | float, logits: Logits) -> Logits:
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
    return _map(scale, bias, reach, whole(logits))


@jax.jit
def apply_temperature(temperature: Array, logits: Logits) -> Logits:
    """Logits divided by a number, in the form of `logits`."""
    if isinstance(logits, FactoredLogits):
        return FactoredLogits(logits.hidden_ND, jnp.asarray(logits.output_CD) / temperature)
    return whole(logits) / temperature
