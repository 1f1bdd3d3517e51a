"""The settings of published families: each matters, and computes the same cached, scanned, split and derived.

Weights are random. There are two layers, one of them with a window and one without, where the family has both.
"""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from lm.models.accounting import parameter_count
from lm.models.build import make_language_model
from lm.models.sharding import tree_shardings
from lm.modules.config import ModelConfig, idle_settings
from lm.modules.stack import empty_caches

LENGTH, VOCAB, WINDOW = 10, 14, 4
SHAPE = {"vocab_size": VOCAB, "layers": 2, "width": 16, "heads": 4, "max_length": LENGTH}
LLAMA = SHAPE | {"kv_heads": 2, "positions": "rotary", "normalization": "rms_norm", "activation": "swiglu"}
GEMMA = LLAMA | {
    "normalization": "rms_norm_offset",
    "normalization_place": "both",
    "scale_embeddings": True,
    "activation": "gated_gelu",
    "attention_scale": 0.3,
    "attention_window": WINDOW,
}
PAIR = SHAPE | {"architecture": "encoder_decoder", "layers": 1, "decoder_layers": 2}
FAMILIES = {
    "llama3": ModelConfig(**LLAMA, rotary_scaling="llama3", rotary_factor=8.0, rotary_original_length=8),
    "qwen": ModelConfig(**LLAMA, attention_bias=True, query_key_norm="head"),
    "mistral": ModelConfig(**LLAMA, attention_window=WINDOW),
    "gemma2": ModelConfig(**GEMMA, global_layers=(1,), attention_softcap=2.0, logit_softcap=5.0),
    "gemma3": ModelConfig(
        **GEMMA,
        global_layers=(1,),
        local_rotary_base=3.0,
        query_key_norm="head",
        rotary_scaling="linear",
        rotary_factor=4.0,
    ),
    "olmo2": ModelConfig(**LLAMA, query_key_norm="all", normalization_place="branch"),
    "neox": ModelConfig(**SHAPE, positions="rotary", rotary_fraction=0.5, parallel_residual=True, bias=True),
    "modernbert": ModelConfig(
        **SHAPE,
        architecture="encoder",
        positions="rotary",
        attention_window=WINDOW,
        global_layers=(0,),
        local_rotary_base=3.0,
        first_norm=False,
        normalize_embeddings=True,
        activation="gated_gelu_exact",
    ),
    "roberta": ModelConfig(**SHAPE, architecture="encoder", position_offset=2, bias=True, normalization_place="after"),
    "electra": ModelConfig(
        **SHAPE, architecture="encoder", embedding_width=6, segment_types=2, normalize_embeddings=True, bias=True
    ),
    "t5": ModelConfig(**PAIR, positions="relative", attention_scale=1.0, logit_scale=0.25, activation="relu"),
    "bart": ModelConfig(
        **PAIR,
        position_offset=2,
        separate_embeddings=True,
        normalize_embeddings=True,
        normalization_place="after",
        output_bias=True,
        bias=True,
    ),
    "marian": ModelConfig(**PAIR, positions="sinusoidal", scale_embeddings=False, activation="silu", output_bias=True),
}

RANDOM = np.random.default_rng(0)
TOKENS = RANDOM.integers(VOCAB, size=(2, LENGTH)).astype(np.int32)
SEGMENTS = np.array([[1] * 10, [1] * 7 + [0] * 3], np.int32)


def families(*fast):
    """Those that are tested always, and after them the others, which only take part in slow tests."""
    return [*fast, *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES if name not in fast)]


def inputs_of(config):
    """Tokens and segments; for an encoder-decoder first those of the input."""
    if config.architecture != "encoder_decoder":
        return TOKENS, SEGMENTS
    return TOKENS[:, ::-1], TOKENS, SEGMENTS, None


@functools.cache
def random_params(name):
    """Weights large enough that every part of the model matters."""
    config = FAMILIES[name]
    shapes = jax.eval_shape(make_language_model(config).init, jax.random.key(0), *inputs_of(config))["params"]
    random = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: random.normal(size=leaf.shape, scale=0.4).astype(np.float32), shapes)


def logits_of(config, params, mesh=None):
    return jax.jit(make_language_model(config, mesh).apply)({"params": params}, *inputs_of(config))


@functools.cache
def reference(name):
    return np.asarray(logits_of(FAMILIES[name], random_params(name)))


def gradients_of(config, params):
    model = make_language_model(config)

    def loss(params, inputs):
        return jnp.sin(model.apply({"params": params}, *inputs)).sum()

    return jax.jit(jax.grad(loss))(params, inputs_of(config))


@functools.cache
def stacked(name):
    return stack_layers(random_params(name))


def stack_layers(params, missing=9.0):
    """Unrolled layers' parameters in the form that `scan_layers` keeps, with a number for a norm that is missing."""
    made = dict(params)
    for side in {"encoder", "decoder"} & set(params):
        stack = dict(params[side])
        layers = [stack.pop(f"layer_{layer}") for layer in range(sum(part.startswith("layer_") for part in stack))]
        layers[0] = jax.tree.map(lambda leaf: np.full_like(leaf, missing), layers[-1]) | layers[0]
        made[side] = stack | {"layers": jax.tree.map(lambda *leaves: np.stack(leaves), *layers)}
    return made


@pytest.mark.parametrize("name", families("gemma3", "modernbert"))
def test_scanned_layers_equal_unrolled_ones(name):
    found = logits_of(dataclasses.replace(FAMILIES[name], scan_layers=True), stacked(name))
    np.testing.assert_allclose(found, reference(name), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", families("gemma2"))
def test_scanned_recomputed_and_derived_gradients_equal_unrolled_stored_and_explicit_ones(name):
    config = dataclasses.replace(FAMILIES[name], scan_layers=True, rematerialize="full", gradients="derived")
    gradients = gradients_of(FAMILIES[name], random_params(name))
    assert all(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(gradients))
    found = gradients_of(config, stacked(name))
    chex.assert_trees_all_close(found, stack_layers(gradients, missing=0.0), rtol=1e-3, atol=1e-3)


# Three tokens at a time. At first only one of the second row is known: what follows it is overwritten.
STEPS = np.array([[[0, 1, 2], [0, 1, 2]], [[3, 4, 5], [1, 2, 3]], [[6, 7, 8], [4, 5, 6]]], np.int32)
KNOWN = np.ones(STEPS.shape, bool)
KNOWN[0, 1, 1:] = False


@pytest.mark.parametrize("scanned", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", families("gemma3", "bart"))
def test_cached_decoding_equals_the_full_forward(name, scanned):
    config = dataclasses.replace(FAMILIES[name], scan_layers=scanned)
    if config.architecture == "encoder":
        return
    model, params = make_language_model(config), stacked(name) if scanned else random_params(name)
    apply = functools.partial(model.apply, {"params": params})
    caches, method = empty_caches(config, 2, LENGTH), "hidden_with_cache"
    if config.architecture == "encoder_decoder":
        inputs, _, segments, _ = inputs_of(config)
        memory = jax.jit(functools.partial(apply, method="encode"))(inputs, segments)
        caches, method = apply(memory, segments, LENGTH, method="start_decoding"), "decode_with_cache"

    @jax.jit
    def step(tokens, positions, caches):
        hidden, caches = apply(tokens, positions, caches, method=method)
        return apply(hidden, method="logits"), caches

    expected = reference(name)
    for places, known in zip(STEPS, KNOWN, strict=True):
        tokens = np.where(known, np.take_along_axis(TOKENS, places, axis=1), 5)
        logits, caches = step(tokens, places, caches)
        found, wanted = np.asarray(logits)[known], np.take_along_axis(expected, places[:, :, None], axis=1)[known]
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


# Each setting with what turns it off.
OFF = {
    "rotary_scaling": {"rotary_scaling": "none"},
    "rotary_fraction": {"rotary_fraction": 1.0},
    "local_rotary_base": {"local_rotary_base": None},
    "position_offset": {"position_offset": 0, "max_length": LENGTH + 2},
    "attention_bias": {"attention_bias": False},
    "attention_scale": {"attention_scale": None},
    "attention_softcap": {"attention_softcap": None},
    "attention_window": {"attention_window": None},
    "global_layers": {"global_layers": ()},
    "query_key_norm": {"query_key_norm": "none"},
    "normalization_place": {"normalization_place": "before"},
    "parallel_residual": {"parallel_residual": False},
    "scale_embeddings": {"scale_embeddings": None},
    "separate_embeddings": {"separate_embeddings": False},
    "output_bias": {"output_bias": False},
    "logit_scale": {"logit_scale": 1.0},
    "logit_softcap": {"logit_softcap": None},
}
OTHER_CHOICES = {
    ("normalization", "rms_norm_offset"): "rms_norm",
    ("activation", "gated_gelu_exact"): "gated_gelu",
    ("activation", "silu"): "relu",
}


def controls():
    """Each family with each of its settings turned off, and whatever then has no effect; the first of each is fast."""
    made, seen = [], set()
    for name, config in FAMILIES.items():
        values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
        for setting, value in values.items():
            choice = OTHER_CHOICES.get((setting, value))
            off = OFF.get(setting) if choice is None else {setting: choice}
            if off is None or value in (off[setting], None, "after"):
                continue
            changed = values | off
            control = ModelConfig(**{key: changed[key] for key in changed.keys() - idle_settings(changed).keys()})
            marks = [pytest.mark.slow] if (setting, value) in seen else []
            made.append(pytest.param(name, control, id=f"{name}-{setting}", marks=marks))
            seen.add((setting, value))
    return made


@pytest.mark.parametrize(("name", "control"), controls())
def test_without_a_setting_a_family_computes_something_else(name, control):
    found = make_language_model(control).apply({"params": random_params(name)}, *inputs_of(control))
    assert np.abs(np.asarray(found) - reference(name))[:, :7].max() > 1e-4


@pytest.mark.parametrize("name", FAMILIES)
def test_parameters_are_counted(name):
    config = FAMILIES[name]
    for params, config in (
        (random_params(name), FAMILIES[name]),
        (stacked(name), dataclasses.replace(FAMILIES[name], scan_layers=True)),
    ):
        count = sum(leaf.size for part in params for leaf in jax.tree.leaves(params[part]) if part != "prediction_head")
        pooler = config.width * (config.width + config.bias) if config.architecture == "encoder" else 0
        assert parameter_count(config) == count + pooler


@pytest.mark.parametrize("name", ["gemma2", pytest.param("gemma3", marks=pytest.mark.slow)])
def test_16_bit_compute_stays_near(name):
    logits = logits_of(dataclasses.replace(FAMILIES[name], dtype="bfloat16"), random_params(name))
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, reference(name), atol=0.1 * np.abs(reference(name)).max())


@pytest.mark.parametrize("name", families("gemma3"))
def test_two_devices_compute_what_one_does(name):
    axes, devices = ("data", "fsdp", "tensor"), jax.devices()[:2]
    mesh = jax.make_mesh((1, 1, 2), axes, (AxisType.Auto,) * 3, devices=devices)
    params = jax.device_put(random_params(name), tree_shardings(random_params(name), mesh))
    assert "tensor" in str(jax.tree.map(lambda leaf: leaf.sharding.spec, params).get("output_bias", "tensor"))
    np.testing.assert_allclose(logits_of(FAMILIES[name], params, mesh), reference(name), rtol=1e-4, atol=1e-4)


def influence(config, params, prefix_T=None):
    """Whether the hidden state of a token changes with the token at a place, [T, S]."""
    tokens_RT = np.tile(np.arange(LENGTH, dtype=np.int32), (LENGTH + 1, 1))
    tokens_RT[np.arange(LENGTH), np.arange(LENGTH)] = VOCAB - 1  # row s changes the token at s, the last row none
    rest = {} if prefix_T is None else {"prefix_BT": np.tile(prefix_T, (LENGTH + 1, 1))}
    model = make_language_model(config)
    hidden_RTD = jax.jit(functools.partial(model.apply, method="hidden"))({"params": params}, tokens_RT, **rest)
    return (np.abs(hidden_RTD[:-1] - hidden_RTD[-1:]).max(axis=-1) > 1e-5).T


DISTANCES = np.abs(np.subtract.outer(np.arange(LENGTH), np.arange(LENGTH)))
BEFORE = np.tri(LENGTH, dtype=bool)


@pytest.mark.parametrize(("name", "attention"), [("mistral", "explicit"), ("modernbert", "xla")])
def test_a_layer_sees_its_window_unless_it_is_global(name, attention):
    everything, near = BEFORE, DISTANCES < WINDOW
    if FAMILIES[name].architecture == "encoder":
        everything, near = np.ones_like(BEFORE), DISTANCES <= WINDOW // 2
    local = dataclasses.replace(FAMILIES[name], layers=1, global_layers=(), attention=attention)
    np.testing.assert_array_equal(influence(local, random_params(name)), everything & near)
    seen = influence(dataclasses.replace(local, global_layers=(0,)), random_params(name))
    np.testing.assert_array_equal(seen, everything)


def test_a_window_holds_inside_a_prefix_too():
    prefix = np.arange(LENGTH) < 6
    config = dataclasses.replace(FAMILIES["mistral"], layers=1)
    seen = influence(config, random_params("mistral"), prefix)
    np.testing.assert_array_equal(seen, (BEFORE | np.logical_and.outer(prefix, prefix)) & (DISTANCES < WINDOW))
