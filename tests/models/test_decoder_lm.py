"""The decoder-only model: what a token may see, however it is packed, padded or cached."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.models.decoder_lm import DecoderLM
from lm.modules.config import ModelConfig
from lm.modules.stack import empty_caches

LENGTH, VOCAB = 10, 13
SHAPE = {"vocab_size": VOCAB, "layers": 2, "width": 16, "heads": 4, "max_length": LENGTH}
CONFIGS = {
    "learned": ModelConfig(**SHAPE, bias=True),
    "sinusoidal": ModelConfig(**SHAPE, positions="sinusoidal", tie_embeddings=False),
    "rotary": ModelConfig(
        **SHAPE, kv_heads=2, positions="rotary", normalization="rms_norm", activation="swiglu", tie_embeddings=False
    ),
}
CONFIGS["rotary_scanned"] = dataclasses.replace(CONFIGS["rotary"], scan_layers=True)
every_config = pytest.mark.parametrize("name", CONFIGS)

RANDOM = np.random.default_rng(0)
TOKENS = RANDOM.integers(VOCAB, size=(2, LENGTH)).astype(np.int32)
ONES = np.ones_like(TOKENS)
PLACES = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), TOKENS.shape)
TWO_DOCUMENTS = np.array([[1] * 4 + [2] * 6] * 2, np.int32)


@functools.cache
def random_params(name):
    """Weights large enough that every part of the model matters."""
    shapes = jax.eval_shape(DecoderLM(CONFIGS[name]).init, jax.random.key(0), TOKENS)["params"]
    random = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: random.normal(size=leaf.shape, scale=0.4).astype(np.float32), shapes)


@functools.cache
def compiled(name):
    model = DecoderLM(CONFIGS[name])
    return jax.jit(lambda params, *inputs: model.apply({"params": params}, *inputs))


def logits_of(name, tokens, segments=ONES, positions=PLACES):
    return np.asarray(compiled(name)(random_params(name), tokens, segments, positions))


@functools.cache
def influence(name):
    """How much each output depends on each position, by segments and table: norms, [T, S]."""
    config = dataclasses.replace(CONFIGS[name], layers=2 if CONFIGS[name].scan_layers else 1)
    params = random_params(name)
    tables = {part: params[part]["embedding"] for part in params if part.endswith("_embedding")}
    direction = np.random.default_rng(2).normal(size=(config.width,)).astype(np.float32)

    @jax.jit
    def jacobians(segments):
        def outputs(tables):
            changed = params | {part: {"embedding": table} for part, table in tables.items()}
            # Token t is t, so that row s of either table is what position s puts in.
            inputs = (np.arange(LENGTH, dtype=np.int32)[None], segments, PLACES[:1])
            hidden_BTD = DecoderLM(config).apply({"params": changed}, *inputs, method=DecoderLM.hidden)
            return hidden_BTD[0] @ direction

        return jax.jacrev(outputs)(tables)

    return {
        two_documents: {
            part: np.linalg.norm(jacobian_TSD, axis=-1)[:, :LENGTH]
            for part, jacobian_TSD in jacobians(segments).items()
        }
        for two_documents, segments in ((False, ONES[:1]), (True, TWO_DOCUMENTS[:1]))
    }


@every_config
def test_a_token_sees_itself_and_all_before_it(name):
    assert ("position_embedding" in influence(name)[False]) == (name == "learned")
    for norms_TS in influence(name)[False].values():
        np.testing.assert_array_equal(norms_TS > 1e-4, np.tri(LENGTH, dtype=bool))
        np.testing.assert_array_equal(norms_TS[~np.tri(LENGTH, dtype=bool)], 0)


@every_config
def test_a_token_sees_only_its_own_segment(name):
    same = TWO_DOCUMENTS[0][:, None] == TWO_DOCUMENTS[0][None, :]
    for norms_TS in influence(name)[True].values():
        np.testing.assert_array_equal(norms_TS > 1e-4, same & np.tri(LENGTH, dtype=bool))
        np.testing.assert_array_equal(norms_TS[~same], 0)


@every_config
def test_packed_documents_equal_each_alone(name):
    positions = np.array([[*range(4), *range(6)]] * 2, np.int32)
    packed = logits_of(name, TOKENS, TWO_DOCUMENTS, positions)
    alone = np.full_like(TOKENS, 5)
    alone[0, :4], alone[1, :6] = TOKENS[0, :4], TOKENS[0, 4:]
    unpacked = logits_of(name, alone)
    np.testing.assert_allclose(packed[0, :4], unpacked[0, :4], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(packed[0, 4:], unpacked[1, :6], rtol=1e-4, atol=1e-4)
    unmasked = logits_of(name, TOKENS, ONES, positions)
    assert np.abs(unmasked[0, 4:] - packed[0, 4:]).max() > 0.1, "the segment mask makes no difference"


@pytest.mark.parametrize("name", ["learned", "rotary"])
def test_padding_and_other_rows_do_not_matter(name):
    segments, positions = ONES.copy(), PLACES.copy()
    segments[0, 7:] = positions[0, 7:] = 0
    expected = logits_of(name, TOKENS, segments, positions)
    other = TOKENS.copy()
    other[0, 7:], other[1] = (TOKENS[0, 7:] + 1) % VOCAB, (TOKENS[1] + 1) % VOCAB
    np.testing.assert_array_equal(logits_of(name, other, segments, positions)[0, :7], expected[0, :7])
    np.testing.assert_allclose(logits_of(name, TOKENS)[0, :7], expected[0, :7], rtol=1e-4, atol=1e-4)
    assert np.isfinite(expected).all()


@pytest.mark.parametrize("name", ["learned", "rotary"])
def test_segments_and_positions_default_to_one_document(name):
    by_default = compiled(name)(random_params(name), TOKENS)
    np.testing.assert_allclose(by_default, logits_of(name, TOKENS), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["learned", "rotary", "rotary_scanned"])
def test_cached_decoding_equals_the_full_forward(name):
    """A prefill of prompts of different lengths, padded on the right, then single steps to the end of the window."""
    config, params, lengths = CONFIGS[name], random_params(name), np.array([6, 3])
    model = DecoderLM(config)

    @jax.jit
    def step(tokens, positions, caches):
        variables = {"params": params}
        hidden, caches = model.apply(variables, tokens, positions, caches, method=DecoderLM.hidden_with_cache)
        return model.apply(variables, hidden, method=DecoderLM.logits), caches

    expected = logits_of(name, TOKENS)
    prompts = np.where(np.arange(6) < lengths[:, None], TOKENS[:, :6], 7)
    logits, caches = step(prompts, PLACES[:, :6], empty_caches(config, 2, LENGTH))
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(logits[row, :length], expected[row, :length], rtol=1e-4, atol=1e-4)
    for n in range(LENGTH - 3):
        places = np.minimum(lengths + n, LENGTH - 1)[:, None]
        logits, caches = step(np.take_along_axis(TOKENS, places, axis=1), places, caches)
        for row in range(2):
            np.testing.assert_allclose(logits[row, 0], expected[row, places[row, 0]], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["learned", "rotary"])
def test_logits_of_hidden_states_equal_the_call(name):
    model, params = DecoderLM(CONFIGS[name]), random_params(name)

    @jax.jit
    def in_two_steps(params):
        hidden_BTD = model.apply({"params": params}, TOKENS, ONES, PLACES, method=DecoderLM.hidden)
        logits_BTV = model.apply({"params": params}, hidden_BTD, method=DecoderLM.logits)
        return hidden_BTD, logits_BTV, model.apply({"params": params}, hidden_BTD[:, 3], method=DecoderLM.logits)

    hidden_BTD, logits_BTV, one_BV = in_two_steps(params)
    chex.assert_shape(hidden_BTD, (2, LENGTH, 16))
    np.testing.assert_allclose(logits_BTV, logits_of(name, TOKENS), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(one_BV, logits_BTV[:, 3], rtol=1e-4, atol=1e-4)


def test_tied_output_is_the_token_embedding():
    tied, params = CONFIGS["learned"], random_params("learned")
    assert "output" not in params
    model = DecoderLM(dataclasses.replace(tied, tie_embeddings=False))
    shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS)["params"]
    assert shapes["output"].shape == (VOCAB, 16)
    apply = jax.jit(lambda output: model.apply({"params": params | {"output": output}}, TOKENS, ONES, PLACES))
    table = params["token_embedding"]["embedding"]
    np.testing.assert_allclose(apply(table), logits_of("learned", TOKENS), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(apply(np.zeros_like(table)), 0)


def test_16_bit_compute_keeps_float32_parameters_gradients_and_logits():
    model, params = DecoderLM(dataclasses.replace(CONFIGS["rotary"], dtype="bfloat16")), random_params("rotary")
    initial = jax.eval_shape(model.init, jax.random.key(0), TOKENS)["params"]
    gradients = jax.eval_shape(jax.grad(lambda params: model.apply({"params": params}, TOKENS).sum()), initial)
    chex.assert_type(jax.tree.leaves((initial, gradients)), jnp.float32)

    @jax.jit
    def forward(params):
        hidden = model.apply({"params": params}, TOKENS, ONES, PLACES, method=DecoderLM.hidden)
        return hidden, model.apply({"params": params}, hidden, method=DecoderLM.logits)

    hidden, logits = forward(params)
    assert hidden.dtype == jnp.bfloat16
    assert logits.dtype == jnp.float32
    logits, exact = np.asarray(logits), logits_of("rotary", TOKENS)
    assert (logits != logits.astype(jnp.bfloat16).astype(np.float32)).mean() > 0.9, "logits were rounded to 16 bits"
    np.testing.assert_allclose(logits, exact, atol=0.1 * np.abs(exact).max())


def test_parameter_dtype_is_that_of_every_parameter():
    for name in ("learned", "rotary"):
        model = DecoderLM(dataclasses.replace(CONFIGS[name], parameter_dtype="bfloat16"))
        shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS)
        assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("bfloat16")}


def test_dropout_acts_only_with_a_key():
    config, params = dataclasses.replace(CONFIGS["learned"], dropout=0.3), random_params("learned")
    apply = jax.jit(lambda rngs: DecoderLM(config).apply({"params": params}, TOKENS, rngs=rngs))
    silent = logits_of("learned", TOKENS)
    np.testing.assert_allclose(apply({}), silent, rtol=1e-4, atol=1e-4)
    one, again, other = (np.asarray(apply({"dropout": jax.random.key(seed)})) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    for first, second in ((one, other), (one, silent)):
        assert np.abs(first - second).max(axis=-1).min() > 1e-3


def test_the_untied_output_starts_at_the_initializer_range():
    model = DecoderLM(ModelConfig(vocab_size=97, width=64, tie_embeddings=False, initializer_range=0.05))
    params = model.init(jax.random.key(0), jnp.zeros((1, 1, 64)), method=DecoderLM.logits)["params"]
    np.testing.assert_allclose(np.asarray(params["output"]).std(), 0.05, rtol=0.03)


@pytest.mark.parametrize("name", ["learned", "rotary"])
def test_a_prefix_sees_itself_in_both_directions(name):
    """Two documents with a prefix each: those after it see it, and it sees nothing but itself and what came before."""
    prefix = np.array([[0, 1, 1, 0, 1, 1, 1, 0, 0, 0]], bool)
    params, model = random_params(name), DecoderLM(CONFIGS[name])

    @jax.jit
    def influence(tokens, segments):
        def outputs(table):
            changed = params | {"token_embedding": {"embedding": table}}
            hidden = model.apply({"params": changed}, tokens, segments, PLACES[:1], None, prefix, method="hidden")
            return hidden[0].sum(axis=-1)

        return jnp.linalg.norm(jax.jacrev(outputs)(params["token_embedding"]["embedding"]), axis=-1)[:, :LENGTH]

    norms_TS = influence(np.arange(LENGTH, dtype=np.int32)[None], TWO_DOCUMENTS[:1])
    same = TWO_DOCUMENTS[0][:, None] == TWO_DOCUMENTS[0][None, :]
    visible = same & (np.tri(LENGTH, dtype=bool) | (prefix[0][:, None] & prefix[0][None, :]))
    np.testing.assert_array_equal(norms_TS[~visible], 0)
    assert (norms_TS[visible] > 0).all()


def test_pool_is_the_last_token_that_is_not_padding():
    model, hidden = DecoderLM(CONFIGS["learned"]), np.arange(24.0).reshape(3, 4, 2)
    segments = np.array([[1, 1, 1, 0], [1, 2, 2, 2], [0, 1, 0, 0]])
    pooled = model.apply({"params": random_params("learned")}, hidden, segments, method="pool")
    np.testing.assert_array_equal(pooled, hidden[[0, 1, 2], [2, 3, 1]])
    np.testing.assert_array_equal(
        model.apply({"params": random_params("learned")}, hidden, method="pool"), hidden[:, 3]
    )
