"""Functions with hand-written backward passes, because XLA on CPU makes slow code of the derived ones.

They compute the same as their plain forms; tests compare values and gradients. On two cores the attention alone saves a
tenth of a small model's training step. They do not support forward mode (`jax.jvp`), which Hessian-vector products and
influence functions need; use `config.gradients="derived"` for these.

Axes: B batch, T query positions, S key positions, N heads, H head width, D model width.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

_GELU_SCALE, _GELU_CUBIC = math.sqrt(2 / math.pi), 0.044715


def with_gradients(function: Callable[..., Any], gradients: str) -> Callable[..., Any]:
    """A function of this file with its hand-written backward pass ("explicit"), or in its plain form ("derived")."""
    return function if gradients == "explicit" else getattr(function, "__wrapped__", function)


@jax.custom_vjp
def gelu_tanh(inputs: Array) -> Array:
    """GELU in its tanh form (Hendrycks & Gimpel 2016); saves only its input."""
    return jax.nn.gelu(inputs, approximate=True)


def _gelu_forward(inputs: Array) -> tuple[Array, Array]:
    return gelu_tanh(inputs), inputs


def _gelu_backward(inputs: Array, gradient: Array) -> tuple[Array]:
    squared = inputs * inputs
    tanh = jnp.tanh(_GELU_SCALE * inputs * (1 + _GELU_CUBIC * squared))
    inner_slope = _GELU_SCALE * (1 + 3 * _GELU_CUBIC * squared)
    return (gradient * (0.5 * (1 + tanh) + 0.5 * inputs * (1 - tanh * tanh) * inner_slope),)


gelu_tanh.defvjp(_gelu_forward, _gelu_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def layer_norm(inputs: Array, scale_D: Array, epsilon: float) -> Array:
    """LayerNorm of the last axis without bias (Ba et al. 2016), in float32.

    The variance is a mean of squared differences, not a difference of squares, which loses all precision if the mean is
    large. The backward pass uses the saved mean and deviation.
    """
    return _layer_norm_forward(inputs, scale_D, epsilon)[0]


def _layer_norm_forward(inputs: Array, scale_D: Array, epsilon: float) -> tuple[Array, tuple[Array, ...]]:
    wide = inputs.astype(jnp.float32)
    mean = wide.mean(axis=-1, keepdims=True)
    inverse_deviation = jax.lax.rsqrt(jnp.square(wide - mean).mean(axis=-1, keepdims=True) + epsilon)
    outputs = (wide - mean) * inverse_deviation * along_last(scale_D, inputs.ndim)
    return outputs.astype(inputs.dtype), (inputs, mean, inverse_deviation, scale_D)


def _layer_norm_backward(epsilon: float, saved: tuple[Array, ...], gradient: Array) -> tuple[Array, Array]:
    inputs, mean, inverse_deviation, scale_D = saved
    wide_gradient = gradient.astype(jnp.float32)
    normalized = (inputs.astype(jnp.float32) - mean) * inverse_deviation
    through_scale = wide_gradient * along_last(scale_D, inputs.ndim)
    removed = through_scale.mean(axis=-1, keepdims=True)
    removed += normalized * (through_scale * normalized).mean(axis=-1, keepdims=True)
    scale_gradient = (wide_gradient * normalized).sum(axis=tuple(range(inputs.ndim - 1)))
    return ((through_scale - removed) * inverse_deviation).astype(inputs.dtype), scale_gradient.astype(scale_D.dtype)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


def along_last(scale_D: Array, rank: int) -> Array:
    """A vector in float32, with leading axes of size 1 up to this rank."""
    return scale_D.astype(jnp.float32).reshape((1,) * (rank - 1) + (-1,))


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 8))
def attend_bnth(
    q_BNTH: Array,
    k_BNSH: Array,
    v_BNSH: Array,
    mask_bias: Array,
    trained_bias: Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    kept: Array | None = None,
    dropout: float = 0.0,
) -> Array:
    """Scaled dot-product attention with the head axis before the positions (Vaswani et al. 2017).

    Saves the probabilities, and reuses the outputs in the backward pass of the softmax (Dao et al. 2022, appendix B.2).

    Args:
      q_BNTH: queries.
      k_BNSH: keys.
      v_BNSH: values.
      mask_bias: added to the scores, float32, broadcasts to [B, N, T, S]; a very low number where a query may not
        attend. It gets no gradient.
      trained_bias: added too, float32, [B, N, T, S] where any axis may be 1; it gets a gradient. None: no bias.
      scale: the factor of the products of queries and keys. None: 1 / sqrt(H).
      softcap: scaled products become `softcap * tanh(product / softcap)`, before anything is added (Gemma 2). None:
        they stay.
      kept: False where a probability is dropped, [B, N, T, S]. None: nowhere.
      dropout: the rate at which they are dropped; the others are scaled up for it.

    Returns:
      [B, N, T, H].
    """
    return _attend_forward(q_BNTH, k_BNSH, v_BNSH, mask_bias, trained_bias, scale, softcap, kept, dropout)[0]


def _attend_forward(
    q_BNTH: Array,
    k_BNSH: Array,
    v_BNSH: Array,
    mask_bias: Array,
    trained_bias: Array | None,
    scale: float | None,
    softcap: float | None,
    kept: Array | None,
    dropout: float,
) -> tuple[Array, tuple]:
    scale = scale or 1 / math.sqrt(q_BNTH.shape[-1])
    scores = jnp.einsum("bnth,bnsh->bnts", q_BNTH, k_BNSH, preferred_element_type=jnp.float32) * scale
    tanh = None
    if softcap is not None:
        tanh = jnp.tanh(scores / softcap)
        scores = tanh * softcap
    scores += mask_bias
    if trained_bias is not None:
        scores += trained_bias
    unnormalized = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    probabilities = (unnormalized * (1 / unnormalized.sum(axis=-1, keepdims=True))).astype(v_BNSH.dtype)
    mixed = jnp.einsum("bnts,bnsh->bnth", _dropped(probabilities, kept, dropout), v_BNSH)
    bias_shape = None if trained_bias is None else trained_bias.shape
    return mixed, (q_BNTH, k_BNSH, v_BNSH, probabilities, mixed, bias_shape, tanh, kept)


def _attend_backward(
    scale: float | None, softcap: float | None, dropout: float, saved: tuple, gradient: Array
) -> tuple[Array, Array, Array, None, Array | None, None]:
    q_BNTH, k_BNSH, v_BNSH, probabilities, mixed, bias_shape, tanh, kept = saved
    scale = scale or 1 / math.sqrt(q_BNTH.shape[-1])
    v_gradient = jnp.einsum("bnts,bnth->bnsh", _dropped(probabilities, kept, dropout), gradient)
    probability_gradient = jnp.einsum("bnth,bnsh->bnts", gradient, v_BNSH, preferred_element_type=jnp.float32)
    probability_gradient = _dropped(probability_gradient, kept, dropout)
    # The mean gradient under the probabilities, which the softmax removes, is <gradient, output>: no pass over S. That
    # holds with dropout too, whose factors are in both.
    removed = (gradient.astype(jnp.float32) * mixed.astype(jnp.float32)).sum(axis=-1, keepdims=True)
    softmax_gradient = probabilities * (probability_gradient - removed)
    capped_gradient = softmax_gradient if tanh is None else softmax_gradient * (1 - tanh * tanh)
    score_gradient = (capped_gradient * scale).astype(q_BNTH.dtype)
    q_gradient = jnp.einsum("bnts,bnsh->bnth", score_gradient, k_BNSH)
    k_gradient = jnp.einsum("bnts,bnth->bnsh", score_gradient, q_BNTH)
    bias_gradient = None if bias_shape is None else _sum_to(softmax_gradient, bias_shape)
    return q_gradient, k_gradient, v_gradient, None, bias_gradient, None


def _dropped(array: Array, kept: Array | None, dropout: float) -> Array:
    return array if kept is None else jnp.where(kept, array * (1 / (1 - dropout)), 0)


def _sum_to(gradient: Array, shape: tuple[int, ...]) -> Array:
    """The gradient of an array that was broadcast from `shape`."""
    repeated = [axis for axis, size in enumerate(shape) if size == 1]
    return gradient.sum(axis=repeated, keepdims=True)


attend_bnth.defvjp(_attend_forward, _attend_backward)
