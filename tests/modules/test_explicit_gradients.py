"""Backward passes written by hand equal the derived ones. Those of attention are in test_attention."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm.models.decoder_lm import DecoderLM
from lm.modules.config import ModelConfig
from lm.modules.explicit_gradients import gelu_tanh, layer_norm

RANDOM = np.random.default_rng(0)
INPUTS = RANDOM.normal(1.0, 3.0, size=(2, 5, 8)).astype(np.float32)
SCALE = RANDOM.normal(size=8).astype(np.float32)
WEIGHTS = RANDOM.normal(size=INPUTS.shape).astype(np.float32)


def plain_gelu(inputs, _):
    return jax.nn.gelu(inputs, approximate=True)


def plain_layer_norm(inputs, scale):
    centred = inputs - inputs.mean(axis=-1, keepdims=True)
    return centred / jnp.sqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + 0.1) * scale[None, None, :]


PAIRS = {
    "gelu_tanh": (lambda inputs, _: gelu_tanh(inputs), plain_gelu),
    "layer_norm": (lambda inputs, scale: layer_norm(inputs, scale, 0.1), plain_layer_norm),
}


def values_and_gradients(function, dtype=np.float32):
    def total(inputs, scale):
        outputs = function(inputs, scale)
        return (WEIGHTS * outputs).sum(), outputs

    (_, outputs), gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(
        INPUTS.astype(dtype), SCALE
    )
    return outputs, *gradients


@pytest.mark.parametrize("name", PAIRS)
def test_values_and_gradients_equal_the_derived_ones(name):
    explicit, plain = PAIRS[name]
    for actual, expected in zip(values_and_gradients(explicit), values_and_gradients(plain), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", PAIRS)
def test_16_bit_inputs_get_16_bit_gradients_near_the_exact_ones(name):
    explicit, plain = PAIRS[name]
    actual, exact = values_and_gradients(explicit, jnp.bfloat16), values_and_gradients(plain)
    assert actual[0].dtype == actual[1].dtype == jnp.bfloat16
    assert actual[2].dtype == jnp.float32
    for one, other in zip(actual, exact, strict=True):
        np.testing.assert_allclose(np.asarray(one, np.float32), other, atol=0.02 * np.abs(other).max() + 0.02)


@pytest.mark.slow
def test_forward_mode_works_through_a_model_with_derived_gradients():
    """A Hessian-vector product, forward over reverse, equals that of reverse over reverse."""
    config = ModelConfig(layers=1, width=8, heads=2, vocab_size=11, max_length=8)
    tokens = jnp.array([[1, 5, 2, 7]])
    params = DecoderLM(config).init(jax.random.key(0), tokens)["params"]
    params = jax.tree.map(lambda leaf: leaf + 0.3 * jax.random.normal(jax.random.key(1), leaf.shape), params)
    direction = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(2), leaf.shape), params)

    def gradient(gradients):
        model = DecoderLM(dataclasses.replace(config, gradients=gradients))
        return jax.grad(lambda params: jax.nn.logsumexp(model.apply({"params": params}, tokens)))

    def along_direction(params):
        return optax.tree.vdot(gradient("explicit")(params), direction)

    product = jax.jit(lambda params: jax.jvp(gradient("derived"), (params,), (direction,))[1])(params)
    chex.assert_trees_all_close(product, jax.jit(jax.grad(along_direction))(params), atol=1e-4, rtol=1e-4)
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(gradient("explicit"), (params,), (direction,))
