"""What a model costs: parameters and operations, by formula, by hand and by the compiler."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest

from lm.models.accounting import parameter_count, training_flops_per_token
from lm.models.decoder_lm import DecoderLM
from lm.models.encoder_decoder_lm import EncoderDecoderLM
from lm.models.encoder_lm import EncoderLM
from lm.models.presets import PRESETS, PUBLISHED_PARAMETERS, preset
from lm.modules.config import ModelConfig


def initialised_parameters(config):
    tokens = jnp.zeros((1, 1), jnp.int32)
    if config.architecture == "encoder_decoder":
        init = functools.partial(EncoderDecoderLM(config).init, inputs_BS=tokens)
    elif config.architecture == "encoder":
        init = functools.partial(
            EncoderLM(config).init, method=lambda model, **batch: model.pool(model.hidden(**batch))
        )
    else:
        init = DecoderLM(config).init
    shapes = jax.eval_shape(lambda key: init(key, tokens_BT=tokens), jax.random.key(0))
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
        {"positions": "relative", "normalization_place": "after", "normalize_embeddings": True, "segment_types": 3},
        {"architecture": "encoder", "bias": True, "activation": "gated_gelu", "positions": "relative"},
        {"architecture": "encoder", "normalization_place": "after", "tie_embeddings": False},
        {"architecture": "encoder_decoder", "bias": True, "decoder_layers": 2, "kv_heads": 1},
        {"architecture": "encoder_decoder", "tie_embeddings": False, "normalization_place": "after"},
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


def test_training_flops_of_an_encoder_decoder_by_hand():
    shape = {"vocab_size": 10, "layers": 3, "decoder_layers": 2, "width": 8, "heads": 4, "kv_heads": 2}
    config = ModelConfig(architecture="encoder_decoder", feed_forward_width=20, activation="gated_gelu", **shape)
    block = 64 + 32 + 32 + 64 + 3 * 160
    # Of cross-attention: the input's 7 tokens pass the keys' and values' 8x4, the output's 5 the queries' and outputs'.
    inputs = 7 * 6 * (3 * block + 2 * (32 + 32)) + 3 * (7 * 7 * 4 * (2 * 2 + 2 * 2) * 3)
    outputs = 5 * 6 * (2 * (block + 64 + 64) + 80) + 2 * (5 * (5 + 7) * 4 * (2 * 2 + 2 * 2) * 3)
    assert training_flops_per_token(config, 5, input_length=7) == round((inputs + outputs) / 12)


@pytest.mark.parametrize(("architecture", "seen"), [("decoder", 5), ("encoder", 2 + 1 + 2)])
def test_layers_with_a_window_count_its_keys(architecture, seen):
    config = ModelConfig(
        architecture, vocab_size=10, layers=3, width=8, heads=4, attention_window=5, global_layers=(1,)
    )
    everything = dataclasses.replace(config, attention_window=None, global_layers=())
    for length in (32, 4):
        saved = training_flops_per_token(everything, length) - training_flops_per_token(config, length)
        assert saved == 12 * 8 * 2 * max(length - seen, 0)


def test_logits_that_are_not_computed_are_not_counted():
    config = ModelConfig(architecture="encoder", vocab_size=10, width=8)
    all_of_them, none = (training_flops_per_token(config, 5, predicted=share) for share in (1, 0))
    assert all_of_them - none == 6 * 80


def test_training_flops_of_gpt2():
    """nanoGPT's `estimate_mfu`: 6 N + 12 L H Q T with N without the position table, but with norms and biases."""
    config = preset("gpt2_124m")
    expected = 6 * (124_439_808 - 1024 * 768) + 12 * 12 * 12 * 64 * 1024
    assert training_flops_per_token(config, 1024) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"kv_heads": 1, "activation": "swiglu", "positions": "rotary"},
        {"architecture": "encoder_decoder", "decoder_layers": 1, "positions": "relative", "relative_max_distance": 17},
    ],
)
def test_training_flops_are_what_the_compiler_counts(values):
    length = 32
    config = ModelConfig(**{"vocab_size": 200, "layers": 2, "width": 128, "heads": 2, "max_length": length} | values)
    sides = 2 if config.architecture == "encoder_decoder" else 1
    model = EncoderDecoderLM(config) if sides == 2 else DecoderLM(config)
    tokens = [jax.ShapeDtypeStruct((2, length), jnp.int32)] * sides

    def loss(params, *tokens):
        return model.apply({"params": params}, *tokens).sum()

    params = jax.eval_shape(model.init, jax.random.key(0), *tokens)["params"]
    counted = jax.jit(jax.grad(loss)).lower(params, *tokens).cost_analysis()["flops"]
    # The compiler counts element-wise operations too.
    assert counted / (2 * length * sides) == pytest.approx(training_flops_per_token(config, length), rel=0.06)
