"""A model's shape names the field that is wrong."""

import jax.numpy as jnp
import pytest

from lm.errors import UserError
from lm.modules.config import ModelConfig


def test_defaults_resolve():
    config = ModelConfig(width=48, heads=6)
    assert (config.num_kv_heads, config.size_per_head, config.size_of_feed_forward) == (6, 8, 192)
    assert config.compute_dtype == config.storage_dtype == jnp.float32
    explicit = ModelConfig(width=50, heads=6, kv_heads=2, head_width=4, feed_forward_width=7)
    assert (explicit.num_kv_heads, explicit.size_per_head, explicit.size_of_feed_forward) == (2, 4, 7)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"heads": 3, "width": 16}, "config.model.heads=3 does not divide config.model.width=16"),
        ({"heads": 4, "kv_heads": 3}, "config.model.kv_heads=3 does not divide config.model.heads=4"),
        ({"heads": 4, "kv_heads": 8}, "config.model.kv_heads=8 does not divide config.model.heads=4"),
        ({"positions": "rotary", "width": 12, "heads": 4}, "even config.model.head_width, got 3"),
        ({"positions": "rotary", "head_width": 5}, "even config.model.head_width, got 5"),
        ({"attention": "cudnn"}, "config.model.attention=cudnn needs config.model.dtype=bfloat16"),
        (
            {"positions": "alibi"},
            "config.model.positions must be one of learned, sinusoidal, rotary, relative; got 'alibi'",
        ),
        ({"normalization": "batch"}, "config.model.normalization must be one of layer_norm, rms_norm; got 'batch'"),
        (
            {"activation": "tanh"},
            "config.model.activation must be one of gelu, gelu_tanh, relu, swiglu, gated_gelu; got 'tanh'",
        ),
        ({"attention": "flash"}, "config.model.attention must be one of explicit, xla, cudnn; got 'flash'"),
        ({"rematerialize": "all"}, "config.model.rematerialize must be one of none, dots, full; got 'all'"),
        ({"dtype": "bf16"}, "config.model.dtype must be one of float32, bfloat16, float16; got 'bf16'"),
        ({"parameter_dtype": "int8"}, "config.model.parameter_dtype must be one of float32"),
        ({"dropout": 1.0}, "config.model.dropout must be in [0, 1), got 1.0"),
        ({"dropout": -0.1}, "config.model.dropout must be in [0, 1), got -0.1"),
        ({"vocab_size": 0}, "config.model.vocab_size must be at least 1, got 0"),
        ({"layers": 0}, "config.model.layers must be at least 1, got 0"),
        ({"width": -8}, "config.model.width must be at least 1, got -8"),
        ({"heads": 0}, "config.model.heads must be at least 1, got 0"),
        ({"kv_heads": 0}, "config.model.kv_heads must be at least 1, got 0"),
        ({"head_width": 0}, "config.model.head_width must be at least 1, got 0"),
        ({"feed_forward_width": 0}, "config.model.feed_forward_width must be at least 1, got 0"),
        ({"max_length": 0}, "config.model.max_length must be at least 2, got 0"),
        ({"max_length": 1}, "config.model.max_length must be at least 2, got 1"),
    ],
)
def test_bad_values_are_named(values, words):
    with pytest.raises(UserError) as caught:
        ModelConfig(**values)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_shapes_that_only_look_wrong_are_allowed():
    ModelConfig(width=10, heads=4, head_width=6)
    ModelConfig(width=12, heads=4, positions="learned")
    ModelConfig(heads=4, kv_heads=1)
    ModelConfig(attention="cudnn", dtype="bfloat16")
