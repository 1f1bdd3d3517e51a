"""Normalization against its definition, in float32 whatever the compute dtype."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.modules.config import ModelConfig
from lm.modules.normalization import Normalization

RANDOM = np.random.default_rng(0)
SCALE, BIAS = RANDOM.normal(size=8), RANDOM.normal(size=8)
INPUTS = RANDOM.normal(2.0, 3.0, size=(2, 5, 8))


def normalize(kind, bias, inputs, epsilon=1e-5, dtype="float32"):
    config = ModelConfig(width=8, heads=2, normalization=kind, bias=bias, normalization_epsilon=epsilon, dtype=dtype)
    params = {"scale": jnp.asarray(SCALE, jnp.float32)}
    if bias and kind == "layer_norm":
        params["bias"] = jnp.asarray(BIAS, jnp.float32)
    layer = Normalization(config)
    assert jax.eval_shape(layer.init, jax.random.key(0), jnp.ones((1, 1, 8)))["params"].keys() == params.keys()
    return jax.jit(layer.apply)({"params": params}, jnp.asarray(inputs, dtype))


def definition(kind, bias, inputs, epsilon=1e-5):
    inputs = np.asarray(inputs, np.float64)
    if kind == "rms_norm":
        return inputs / np.sqrt(np.square(inputs).mean(axis=-1, keepdims=True) + epsilon) * SCALE
    centred = inputs - inputs.mean(axis=-1, keepdims=True)
    return centred / np.sqrt(inputs.var(axis=-1, keepdims=True) + epsilon) * SCALE + (BIAS if bias else 0)


@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("epsilon", [1e-5, 1.0])
def test_equals_the_definition(kind, bias, epsilon):
    expected = definition(kind, bias, INPUTS, epsilon)
    np.testing.assert_allclose(normalize(kind, bias, INPUTS, epsilon), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm"])
def test_small_variations_of_a_large_mean_survive(kind):
    inputs = (INPUTS / 3 + 1000).astype(np.float32)
    np.testing.assert_allclose(normalize(kind, True, inputs), definition(kind, True, inputs), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm"])
def test_means_are_float32_for_16_bit_inputs(kind):
    inputs = jnp.asarray(20 + INPUTS, jnp.bfloat16)
    normalized = normalize(kind, True, inputs, dtype="bfloat16")
    assert normalized.dtype == jnp.bfloat16
    expected = definition(kind, True, inputs.astype(jnp.float32))
    np.testing.assert_allclose(normalized.astype(jnp.float32), expected, rtol=0.02, atol=0.02)
