"""What a model costs: parameters and operations, by formula, by hand and by the compiler."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from lm.models.accounting import parameter_count, training_flops_per_token
from lm.models.decoder_lm import DecoderLM
from lm.models.presets import PRESETS, PUBLISHED_PARAMETERS, preset
from lm.modules.config import ModelConfig


def initialised_parameters(config):
    tokens = jnp.zeros((1, 1), jnp.int32)
    shapes = jax.eval_shape(DecoderLM(config).init, jax.random.key(0), tokens)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize("name", PRESETS)
def test_parameter_count_of_presets(name):
    config = preset(name)
    if config.vocab_size is None:
        assert name not in PUBLISHED_PARAMETERS
        config = dataclasses.replace(config, vocab_size=257)
    count = parameter_count(config)
    # Scanned layers hold the same numbers and are traced once.
    assert count == initialised_parameters(dataclasses.replace(config, scan_layers=True))
    assert count == PUBLISHED_PARAMETERS.get(name, count)


@pytest.mark.parametrize(
    "values",
    [
        {"bias": True},
        {"bias": True, "normalization": "rms_norm", "activation": "swiglu"},
        {"bias": True, "heads": 6, "kv_heads": 3, "head_width": 10, "feed_forward_width": 7},
        {"tie_embeddings": False, "positions": "sinusoidal"},
        {"kv_heads": 1, "positions": "rotary", "layers": 1},
    ],
)
def test_parameter_count_of_other_shapes(values):
    config = ModelConfig(**{"vocab_size": 17, "layers": 3, "width": 8, "heads": 2, "max_length": 9} | values)
    assert parameter_count(config) == initialised_parameters(config)


def test_training_flops_by_hand():
    config = ModelConfig(vocab_size=10, layers=3, width=8, heads=4, kv_heads=2, feed_forward_width=20)
    # Per layer: query 8x8, key and value 8x4 each, output 8x8, up 8x20, down 20x8; then the output matrix 10x8.
    weights = 3 * (64 + 32 + 32 + 64 + 160 + 160) + 80
    # Per layer, key and head: 2 operations for a score's 2 wide products and 2 for its mixture's, three times over.
    attention = 3 * (5 * 4 * (2 * 2 + 2 * 2) * 3)
    assert training_flops_per_token(config, length=5) == 6 * weights + attention


def test_training_flops_of_gpt2():
    """nanoGPT's `estimate_mfu`: 6 N + 12 L H Q T with N without the position table, but with norms and biases."""
    config = preset("gpt2_124m")
    expected = 6 * (124_439_808 - 1024 * 768) + 12 * 12 * 12 * 64 * 1024
    assert training_flops_per_token(config, 1024) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("values", [{}, {"kv_heads": 1, "activation": "swiglu", "positions": "rotary"}])
def test_training_flops_are_what_the_compiler_counts(values):
    length = 32
    config = ModelConfig(**{"vocab_size": 200, "layers": 2, "width": 128, "heads": 2, "max_length": length} | values)
    model, tokens = DecoderLM(config), jax.ShapeDtypeStruct((2, length), jnp.int32)

    def loss(params, tokens):
        return model.apply({"params": params}, tokens).sum()

    params = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    counted = jax.jit(jax.grad(loss)).lower(params, tokens).cost_analysis()["flops"]
    # The compiler counts element-wise operations too.
    assert counted / (2 * length) == pytest.approx(training_flops_per_token(config, length), rel=0.06)
