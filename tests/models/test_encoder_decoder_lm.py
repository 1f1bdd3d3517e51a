"""The encoder-decoder: who sees whom, whether packed, padded or cached."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.models.encoder_decoder_lm import EncoderDecoderLM
from lm.modules.config import ModelConfig

INPUTS, OUTPUTS, VOCAB, WIDTH = 7, 6, 17, 16
SHAPE = {
    "architecture": "encoder_decoder",
    "vocab_size": VOCAB,
    "layers": 1,
    "decoder_layers": 2,
    "width": WIDTH,
    "heads": 4,
    "max_length": 8,
}
CONFIGS = {
    "t5": ModelConfig(
        **SHAPE,
        positions="relative",
        relative_buckets=6,
        relative_max_distance=5,
        normalization="rms_norm",
        activation="gated_gelu",
    ),
    "vaswani": ModelConfig(**SHAPE, positions="sinusoidal", normalization_place="after", activation="relu", bias=True),
    "rotary": ModelConfig(**SHAPE, positions="rotary", kv_heads=2, tie_embeddings=False, attention="xla"),
}
CONFIGS["t5_scanned"] = dataclasses.replace(CONFIGS["t5"], scan_layers=True)

RANDOM = np.random.default_rng(0)
SOURCE = RANDOM.integers(VOCAB, size=(2, INPUTS)).astype(np.int32)
TARGET = RANDOM.integers(VOCAB, size=(2, OUTPUTS)).astype(np.int32)
SOURCE_PLACES = np.broadcast_to(np.arange(INPUTS, dtype=np.int32), SOURCE.shape)
TARGET_PLACES = np.broadcast_to(np.arange(OUTPUTS, dtype=np.int32), TARGET.shape)
SOURCE_SEGMENTS = np.array([[1, 1, 1, 2, 2, 0, 0]] * 2, np.int32)
TARGET_SEGMENTS = np.array([[1, 1, 2, 2, 2, 0]] * 2, np.int32)


@functools.cache
def random_params(name):
    """Weights large enough that every part of the model matters."""
    shapes = jax.eval_shape(EncoderDecoderLM(CONFIGS[name]).init, jax.random.key(0), SOURCE, TARGET)["params"]
    random = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: random.normal(size=leaf.shape, scale=0.4).astype(np.float32), shapes)


@functools.cache
def compiled(name):
    model = EncoderDecoderLM(CONFIGS[name])
    return jax.jit(lambda *inputs: model.apply({"params": random_params(name)}, *inputs))


def logits_of(name, source, target, source_segments, target_segments, places=(SOURCE_PLACES, TARGET_PLACES)):
    return np.asarray(compiled(name)(source, target, source_segments, target_segments, *places))


@pytest.mark.parametrize("name", ["t5", pytest.param("rotary", marks=pytest.mark.slow)])
def test_an_output_sees_outputs_before_it_and_inputs_of_its_segment(name):
    params, model = random_params(name), EncoderDecoderLM(CONFIGS[name])
    direction = np.random.default_rng(2).normal(size=(WIDTH,)).astype(np.float32)

    @jax.jit
    def influence(source_segments, target_segments):
        def outputs(table):
            # Every place has a token of its own, whose row of the table is what it puts in.
            source, target = np.arange(INPUTS)[None], INPUTS + np.arange(OUTPUTS)[None]
            apply = functools.partial(model.apply, {"params": params | {"token_embedding": {"embedding": table}}})
            memory = apply(source, source_segments, method="encode")
            return apply(memory, source_segments, target, target_segments, method="decode")[0] @ direction

        return jnp.linalg.norm(jax.jacrev(outputs)(params["token_embedding"]["embedding"]), axis=-1)

    ones = (np.ones((1, INPUTS), np.int32), np.ones((1, OUTPUTS), np.int32))
    for source, target in (ones, (SOURCE_SEGMENTS[:1], TARGET_SEGMENTS[:1])):
        norms = influence(source, target)
        of_inputs, of_outputs = norms[:, :INPUTS], norms[:, INPUTS : INPUTS + OUTPUTS]
        same = target[0][:, None] == source[0][None, :]
        np.testing.assert_array_equal(of_inputs > 1e-4, same)
        np.testing.assert_array_equal(of_inputs[~same], 0)
        before = np.tri(OUTPUTS, dtype=bool) & (target[0][:, None] == target[0][None, :])
        np.testing.assert_array_equal(of_outputs > 1e-4, before)
        np.testing.assert_array_equal(of_outputs[~before], 0)


@pytest.mark.parametrize("name", ["t5", pytest.param("vaswani", marks=pytest.mark.slow), "rotary"])
def test_packed_pairs_equal_each_alone(name):
    places = np.array([[0, 1, 2, 0, 1, 0, 0]] * 2, np.int32), np.array([[0, 1, 0, 1, 2, 0]] * 2, np.int32)
    packed = logits_of(name, SOURCE, TARGET, SOURCE_SEGMENTS, TARGET_SEGMENTS, places)
    source, target = np.full_like(SOURCE, 5), np.full_like(TARGET, 5)
    source[0, :3], source[1, :2] = SOURCE[0, :3], SOURCE[0, 3:5]
    target[0, :2], target[1, :3] = TARGET[0, :2], TARGET[0, 2:5]
    source_segments = (np.arange(INPUTS)[None] < np.array([[3], [2]])).astype(np.int32)
    target_segments = (np.arange(OUTPUTS)[None] < np.array([[2], [3]])).astype(np.int32)
    alone = logits_of(name, source, target, source_segments, target_segments)
    np.testing.assert_allclose(packed[0, :2], alone[0, :2], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(packed[0, 2:5], alone[1, :3], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [pytest.param("t5", marks=pytest.mark.slow), "rotary"])
def test_padding_matters_to_nobody_and_an_empty_row_is_finite(name):
    """The second row is padding on the input side alone: its outputs see nothing."""
    source_segments = np.array([[1, 1, 1, 1, 0, 0, 0], [0] * INPUTS], np.int32)
    target_segments = np.array([[1, 1, 1, 0, 0, 0], [1] * OUTPUTS], np.int32)
    model, params = EncoderDecoderLM(CONFIGS[name]), random_params(name)

    @jax.jit
    def run(source, target):
        def total(params):
            logits = model.apply({"params": params}, source, target, source_segments, target_segments)
            return jnp.sin(logits).sum(), logits

        return jax.grad(total, has_aux=True)(params)

    gradients, logits = run(SOURCE, TARGET)
    chex.assert_tree_all_finite((gradients, logits))
    other_source = np.where(source_segments > 0, SOURCE, (SOURCE + 1) % VOCAB)
    other_target = np.where(target_segments > 0, TARGET, (TARGET + 1) % VOCAB)
    np.testing.assert_array_equal(run(other_source, other_target)[1][0, :3], logits[0, :3])


@pytest.mark.parametrize(
    "name", ["t5", *(pytest.param(name, marks=pytest.mark.slow) for name in ("t5_scanned", "rotary"))]
)
def test_cached_decoding_equals_the_full_forward(name):
    """A first call with two tokens, then single ones while rows change places, as beam search does."""
    model, params = EncoderDecoderLM(CONFIGS[name]), random_params(name)
    apply = functools.partial(model.apply, {"params": params})
    segments = (np.arange(INPUTS)[None] < np.array([[7], [4]])).astype(np.int32)

    @jax.jit
    def start(source):
        return apply(apply(source, segments, method="encode"), segments, OUTPUTS, method="start_decoding")

    @jax.jit
    def step(tokens, positions, caches):
        hidden, caches = apply(tokens, positions, caches, method="decode_with_cache")
        return apply(hidden, method="logits"), caches

    @jax.jit
    def full(source, target):
        hidden = apply(apply(source, segments, method="encode"), segments, target, method="decode")
        return apply(hidden, method="logits")

    expected = full(SOURCE, TARGET)
    logits, caches = step(TARGET[:, :2], TARGET_PLACES[:, :2], start(SOURCE))
    np.testing.assert_allclose(logits, expected[:, :2], rtol=1e-4, atol=1e-4)
    rows = np.array([0, 1])
    for place in range(2, OUTPUTS):
        rows, caches = rows[::-1], caches.take_rows(np.array([1, 0]))
        logits, caches = step(TARGET[rows, place][:, None], TARGET_PLACES[:, place][:, None], caches)
        np.testing.assert_allclose(logits[:, 0], expected[rows, place], rtol=1e-4, atol=1e-4)


def test_both_sides_share_the_embeddings_and_the_decoder_has_its_own_depth():
    shapes = random_params("vaswani")
    assert set(shapes) == {"token_embedding", "encoder", "decoder"}
    assert set(shapes["encoder"]) == {"layer_0"}
    assert set(shapes["decoder"]) == {"layer_0", "layer_1"}
    assert set(random_params("rotary")) == {"token_embedding", "output", "encoder", "decoder"}
