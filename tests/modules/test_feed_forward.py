"""Feed-forward layers and linear maps: formulas and initial scales."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.modules.config import ModelConfig
from lm.modules.feed_forward import FeedForward
from lm.modules.linear import Linear

ACTIVATIONS = {
    "gelu": lambda x: x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
}
GATES = {"swiglu": "silu", "gated_gelu": "gelu_tanh"}


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu", "swiglu", "gated_gelu"])
@pytest.mark.parametrize("bias", [True, False])
def test_feed_forward_equals_the_formula(activation, bias):
    config = ModelConfig(width=6, heads=2, feed_forward_width=10, activation=activation, bias=bias)
    layer, random = FeedForward(config), np.random.default_rng(0)
    inputs = random.normal(size=(2, 3, 6))
    shapes = jax.eval_shape(layer.init, jax.random.key(0), inputs)["params"]
    assert ("bias" in shapes["up"]) == bias
    params = jax.tree.map(lambda leaf: random.normal(size=leaf.shape), shapes)

    def project(name, array):
        return array @ params[name]["kernel"] + params[name].get("bias", 0)

    if activation in GATES:
        hidden = ACTIVATIONS[GATES[activation]](project("gate", inputs)) * project("up", inputs)
    else:
        hidden = ACTIVATIONS[activation](project("up", inputs))
    outputs = jax.jit(layer.apply)({"params": params}, inputs)
    np.testing.assert_allclose(outputs, project("down", hidden), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("layers", "to_residual"), [(1, True), (8, True), (8, False)])
def test_maps_into_the_residual_stream_start_smaller(layers, to_residual):
    config = ModelConfig(layers=layers, width=128, initializer_range=0.03, bias=True)
    layer = Linear(config, 256, to_residual=to_residual)
    params = jax.jit(layer.init)(jax.random.key(0), jnp.ones((1, 128)))["params"]
    params = jax.tree.map(np.asarray, params)
    expected = 0.03 / math.sqrt(2 * layers) if to_residual else 0.03
    # 32,768 draws: a standard deviation is known to 0.4%.
    np.testing.assert_allclose(params["kernel"].std(), expected, rtol=0.02)
    np.testing.assert_allclose(params["kernel"].mean(), 0, atol=0.03 * expected)
    np.testing.assert_array_equal(params["bias"], np.zeros(256))
