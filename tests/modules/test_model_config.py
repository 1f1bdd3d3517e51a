"""A model's shape names the field that is wrong."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from lm.errors import UserError
from lm.models.build import make_body, make_language_model
from lm.modules.config import EXECUTION, RECURRENT, ModelConfig, idle_settings


def test_defaults_resolve():
    config = ModelConfig(width=48, heads=6)
    assert (config.num_kv_heads, config.size_per_head, config.size_of_feed_forward) == (6, 8, 192)
    assert config.compute_dtype == config.storage_dtype == jnp.float32
    explicit = ModelConfig(width=50, heads=6, kv_heads=2, head_width=4, feed_forward_width=7)
    assert (explicit.num_kv_heads, explicit.size_per_head, explicit.size_of_feed_forward) == (2, 4, 7)


ROTARY = {"positions": "rotary"}


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
        (
            {"normalization": "batch"},
            "config.model.normalization must be one of layer_norm, rms_norm, rms_norm_offset; got",
        ),
        (
            {"activation": "tanh"},
            "config.model.activation must be one of gelu, gelu_tanh, relu, silu, swiglu, gated_gelu, gated_gelu_exact; "
            "got 'tanh'",
        ),
        (
            {"attention": "flash"},
            "config.model.attention must be one of auto, explicit, xla, cudnn, splash; got 'flash'",
        ),
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
        ({"sequence_length": 1}, "config.model.sequence_length must be at least 2, got 1"),
        ({"attention_window": 0}, "config.model.attention_window must be at least 1, got 0"),
        ({"attention_softcap": 0.0}, "config.model.attention_softcap must be positive, got 0.0"),
        ({"attention_scale": -1.0}, "config.model.attention_scale must be positive, got -1.0"),
        ({"logit_softcap": -2.0}, "config.model.logit_softcap must be positive, got -2.0"),
        ({"attention_softcap": 9.0, "attention": "xla"}, "set config.model.attention=auto"),
        ({"attention_dropout": 0.1, "attention": "xla"}, "cannot drop attention probabilities"),
        ({"attention_dropout": 0.1, "attention": "splash"}, "set config.model.attention=auto"),
        ({"attention_dropout": 1.0}, "config.model.attention_dropout must be in [0, 1), got 1.0"),
        ({"positions": "relative", "attention": "splash"}, "splash cannot add config.model.positions=relative"),
        ({"position_offset": -1}, "config.model.position_offset must not be negative, got -1"),
        ({"query_key_norm": "each"}, "config.model.query_key_norm must be one of none, head, all; got 'each'"),
        (ROTARY | {"rotary_scaling": "yarn"}, "config.model.rotary_scaling must be one of none, linear, llama3; got"),
        (ROTARY | {"rotary_fraction": 0.0}, "config.model.rotary_fraction must be in (0, 1], got 0.0"),
        (ROTARY | {"rotary_fraction": 0.75, "head_width": 4}, "rotates 3 of the 4 numbers of a head"),
        (ROTARY | {"rotary_fraction": 0.1, "head_width": 8}, "rotates 0 of the 8 numbers of a head"),
        (
            ROTARY | {"rotary_scaling": "llama3", "rotary_low_frequency": 4.0},
            "config.model.rotary_high_frequency=4.0 must be above config.model.rotary_low_frequency=4.0",
        ),
        (
            {"attention_window": 8, "global_layers": (0, 4)},
            "global_layers names layer 4, and config.model.layers=4 has",
        ),
        ({"attention_window": 8, "global_layers": [0]}, "global_layers must be a tuple of layers, got [0]"),
        ({"global_layers": (0,)}, "global_layers has no effect with config.model.attention_window=None: leave it out"),
        (
            {"architecture": "encoder_decoder", "positions": "relative", "separate_embeddings": True},
            "config.model.separate_embeddings has no effect without config.model.positions=learned",
        ),
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


OTHER_VALUES = {
    "vocab_size": 99,
    "layers": 2,
    "decoder_layers": 3,
    "width": 64,
    "recurrent_width": 32,
    "heads": 2,
    "kv_heads": 2,
    "head_width": 8,
    "feed_forward_width": 24,
    "max_length": 16,
    "sequence_length": 12,
    "segment_types": 2,
    "embedding_width": 16,
    "positions": "sinusoidal",
    "position_offset": 2,
    "rotary_base": 500.0,
    "local_rotary_base": 100.0,
    "rotary_fraction": 0.5,
    "rotary_scaling": "llama3",
    "rotary_factor": 8.0,
    "rotary_low_frequency": 2.0,
    "rotary_high_frequency": 3.0,
    "rotary_original_length": 64,
    "relative_buckets": 8,
    "relative_max_distance": 64,
    "attention_bias": True,
    "attention_scale": 0.5,
    "attention_softcap": 50.0,
    "attention_window": 4,
    "global_layers": (1,),
    "query_key_norm": "head",
    "normalization": "rms_norm",
    "normalization_place": "after",
    "first_norm": False,
    "parallel_residual": True,
    "normalize_embeddings": True,
    "scale_embeddings": True,
    "separate_embeddings": True,
    "normalization_epsilon": 1e-6,
    "activation": "relu",
    "bias": True,
    "tie_embeddings": False,
    "output_bias": True,
    "logit_scale": 0.5,
    "logit_softcap": 30.0,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "initializer_range": 0.1,
    "dtype": "bfloat16",
    "parameter_dtype": "bfloat16",
    "attention": "explicit",
    "gradients": "derived",
    "scan_layers": True,
    "rematerialize": "full",
}


OF_ROTARY = {"rotary_base", "rotary_fraction", "rotary_scaling"}
OF_SCALING = {"rotary_factor", "rotary_low_frequency", "rotary_high_frequency", "rotary_original_length"}
OF_RELATIVE = {"relative_buckets", "relative_max_distance"}
OF_WINDOW = {"global_layers", "local_rotary_base"}
OF_ONE_STACK = {"segment_types", "attention_window", "query_key_norm", "first_norm", "parallel_residual"}
IN_DECODER = {"decoder_layers", "recurrent_width", "embedding_width", "separate_embeddings"}
EVERYWHERE = {"vocab_size", "layers", "width", "max_length", "sequence_length", "dropout", "initializer_range"}
EVERYWHERE |= {"dtype", "parameter_dtype"}


@pytest.mark.parametrize(
    ("beside", "names"),
    [
        ({"architecture": "lstm"}, set(OTHER_VALUES) - EVERYWHERE - {"recurrent_width"}),
        ({}, IN_DECODER | OF_ROTARY | OF_SCALING | OF_RELATIVE | OF_WINDOW),
        ({"attention_window": 3}, IN_DECODER | OF_ROTARY | OF_SCALING | OF_RELATIVE | {"local_rotary_base"}),
        (ROTARY, IN_DECODER | OF_SCALING | OF_RELATIVE | OF_WINDOW | {"position_offset"}),
        (ROTARY | {"attention_window": 3}, IN_DECODER | OF_SCALING | OF_RELATIVE | {"position_offset"}),
        (
            ROTARY | {"rotary_scaling": "linear"},
            IN_DECODER | OF_RELATIVE | OF_WINDOW | {"position_offset"} | OF_SCALING - {"rotary_factor"},
        ),
        (ROTARY | {"rotary_scaling": "llama3"}, IN_DECODER | OF_RELATIVE | OF_WINDOW | {"position_offset"}),
        ({"positions": "relative"}, IN_DECODER | OF_ROTARY | OF_SCALING | OF_WINDOW | {"position_offset"}),
        (
            {"architecture": "encoder"},
            {"decoder_layers", "recurrent_width", "separate_embeddings", "output_bias"}
            | (OF_ROTARY | OF_SCALING | OF_RELATIVE | OF_WINDOW),
        ),
        (
            {"architecture": "encoder_decoder"},
            {"recurrent_width", "embedding_width"} | OF_ROTARY | OF_SCALING | OF_RELATIVE | OF_WINDOW | OF_ONE_STACK,
        ),
        (
            {"normalization_place": "both"},
            IN_DECODER | OF_ROTARY | OF_SCALING | OF_RELATIVE | OF_WINDOW | {"first_norm", "parallel_residual"},
        ),
    ],
)
def test_a_setting_without_effect_is_refused_and_all_others_are_not(beside, names):
    assert set(OTHER_VALUES) == {field.name for field in dataclasses.fields(ModelConfig)} - {"architecture"}
    assert set(idle_settings(beside)) == names
    for name, value in OTHER_VALUES.items():
        if name in beside:
            continue
        if name not in names:
            ModelConfig(**beside, **{name: value})
            continue
        with pytest.raises(UserError) as caught:
            ModelConfig(**beside, **{name: value})
        cause = idle_settings(beside)[name]
        value = getattr(ModelConfig(**beside), cause)
        assert f"config.model.{name} has no effect with config.model.{cause}={value}: leave it out" in str(caught.value)


def test_the_way_to_execute_a_model_comes_from_another_config_and_its_shape_does_not():
    theirs = ModelConfig(architecture="decoder", layers=2, scan_layers=True)
    ours = ModelConfig(architecture="decoder", layers=8, width=64, **{name: OTHER_VALUES[name] for name in EXECUTION})
    combined = theirs.executed_as(ours)
    assert set(EXECUTION) == {
        "sequence_length",
        "dropout",
        "attention_dropout",
        "dtype",
        "parameter_dtype",
        "attention",
        "gradients",
        "rematerialize",
    }
    for field in dataclasses.fields(ModelConfig):
        source = ours if field.name in EXECUTION else theirs
        assert getattr(combined, field.name) == getattr(source, field.name), field.name


def test_sequences_are_at_most_as_long_as_the_model_can_process():
    model = ModelConfig(max_length=512)
    assert (model.size_of_sequence, model.length_setting) == (512, "config.model.max_length")
    # The two lengths come from two configs: this one is not longer than the other's.
    short = model.executed_as(ModelConfig(max_length=128, sequence_length=256))
    assert (short.max_length, short.size_of_sequence, short.length_setting) == (
        512,
        256,
        "config.model.sequence_length",
    )
    with pytest.raises(UserError, match=r"sequence_length=600 is longer than .*max_length=512\): lower it"):
        model.executed_as(ModelConfig(sequence_length=600))


def parameter_shapes(config):
    tokens = jnp.zeros((1, 2), jnp.int32)
    inputs = (tokens, tokens) if config.architecture == "encoder_decoder" else (tokens,)
    make = make_body if config.architecture in RECURRENT else make_language_model
    shapes = jax.eval_shape(make(config).init, jax.random.key(0), *inputs)
    return jax.tree.map(lambda leaf: leaf.shape, shapes)


@pytest.mark.parametrize(
    "architecture", ["decoder", "encoder", pytest.param("encoder_decoder", marks=pytest.mark.slow), "lstm"]
)
def test_how_a_model_is_executed_shapes_no_parameters_and_scanning_does(architecture):
    config = ModelConfig(architecture=architecture, vocab_size=32, layers=2, width=16, max_length=8)
    idle = idle_settings({"architecture": architecture})

    def changed(name):
        return parameter_shapes(dataclasses.replace(config, **{name: OTHER_VALUES[name]}))

    for name in set(EXECUTION) - set(idle):
        assert changed(name) == parameter_shapes(config), name
    if "scan_layers" not in idle:
        assert changed("scan_layers") != parameter_shapes(config)
