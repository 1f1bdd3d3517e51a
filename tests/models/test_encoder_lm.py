"""The encoder: every token sees its whole segment, nothing sees padding, and parts exist only where they are used."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.models.encoder_lm import EncoderLM
from lm.modules.config import ModelConfig

LENGTH, VOCAB, WIDTH = 10, 13, 16
SHAPE = {"architecture": "encoder", "vocab_size": VOCAB, "layers": 1, "width": WIDTH, "heads": 4, "max_length": LENGTH}
CONFIGS = {
    "bert": ModelConfig(
        **SHAPE, segment_types=2, normalization_place="after", normalize_embeddings=True, activation="gelu", bias=True
    ),
    "relative": ModelConfig(**SHAPE, positions="relative", relative_buckets=8, relative_max_distance=16, kv_heads=2),
}
every_config = pytest.mark.parametrize("name", CONFIGS)

TOKENS = np.random.default_rng(0).integers(VOCAB, size=(2, LENGTH)).astype(np.int32)
ONES = np.ones_like(TOKENS)
TWO_TEXTS_AND_PADDING = np.array([[1] * 4 + [2] * 3 + [0] * 3] * 2, np.int32)


@functools.cache
def random_params(name):
    """Weights large enough that every part of the model matters."""

    def everything(model, tokens):
        pooled = model.pool(model.hidden(tokens))
        return model(tokens), model.next_sentence(pooled)

    model = EncoderLM(CONFIGS[name])
    shapes = jax.eval_shape(functools.partial(model.init, method=everything), jax.random.key(0), TOKENS)["params"]
    random = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: random.normal(size=leaf.shape, scale=0.4).astype(np.float32), shapes)


@functools.cache
def compiled(name):
    model = EncoderLM(CONFIGS[name])
    return jax.jit(lambda *inputs: model.apply({"params": random_params(name)}, *inputs, method="hidden"))


@every_config
def test_a_token_sees_all_of_its_own_segment(name):
    params, model = random_params(name), EncoderLM(CONFIGS[name])
    direction = np.random.default_rng(2).normal(size=(WIDTH,)).astype(np.float32)

    @jax.jit
    def influence(segments):
        def outputs(table):
            # Token t is t, so that row s of the table is what position s puts in.
            inputs = (np.arange(LENGTH, dtype=np.int32)[None], segments)
            changed = params | {"token_embedding": {"embedding": table}}
            return model.apply({"params": changed}, *inputs, method="hidden")[0] @ direction

        return jnp.linalg.norm(jax.jacrev(outputs)(params["token_embedding"]["embedding"]), axis=-1)[:, :LENGTH]

    for segments in (ONES[0], TWO_TEXTS_AND_PADDING[0]):
        same = segments[:, None] == segments[None, :]
        norms_TS = influence(segments[None])
        np.testing.assert_array_equal(norms_TS > 1e-4, same)
        np.testing.assert_array_equal(norms_TS[~same], 0)


@every_config
def test_packed_texts_equal_each_alone(name):
    positions = np.array([[*range(4), *range(3), 0, 0, 0]] * 2, np.int32)
    packed = compiled(name)(TOKENS, TWO_TEXTS_AND_PADDING, positions)
    alone = np.zeros_like(TOKENS)
    alone[0, :4], alone[1, :3] = TOKENS[0, :4], TOKENS[0, 4:7]
    segments = (np.arange(LENGTH)[None] < np.array([[4], [3]])).astype(np.int32)
    unpacked = compiled(name)(alone, segments, np.tile(np.arange(LENGTH, dtype=np.int32), (2, 1)))
    np.testing.assert_allclose(packed[0, :4], unpacked[0, :4], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(packed[0, 4:7], unpacked[1, :3], rtol=1e-4, atol=1e-4)


@every_config
def test_what_padding_holds_matters_to_nobody_and_is_finite(name):
    segments = np.array([[1] * 7 + [0] * 3, [0] * LENGTH], np.int32)
    positions = np.zeros_like(segments)
    hidden = compiled(name)(TOKENS, segments, positions)
    chex.assert_tree_all_finite(hidden)
    other = np.where(segments > 0, TOKENS, (TOKENS + 1) % VOCAB)
    np.testing.assert_array_equal(compiled(name)(other, segments, positions)[0, :7], hidden[0, :7])


def test_types_reach_every_token_of_the_segment_and_default_to_the_first():
    run = compiled("bert")
    positions = np.tile(np.arange(LENGTH, dtype=np.int32), (2, 1))
    by_default, given = run(TOKENS), run(TOKENS, ONES, positions, np.zeros_like(ONES))
    np.testing.assert_allclose(by_default, given, rtol=1e-4, atol=1e-4)
    kinds = np.zeros_like(ONES)
    kinds[:, 5] = 1
    assert np.abs(run(TOKENS, ONES, positions, kinds) - given).max(axis=-1).min() > 1e-3


@every_config
def test_heads(name):
    """Logits of chosen positions are those of all, in float32; the pooled vector is of the first token alone."""
    model, params = EncoderLM(dataclasses.replace(CONFIGS[name], dtype="bfloat16")), random_params(name)
    hidden = np.random.default_rng(3).normal(size=(2, LENGTH, WIDTH)).astype(jnp.bfloat16)

    @jax.jit
    def heads(hidden):
        apply = functools.partial(model.apply, {"params": params})
        pooled = apply(hidden, ONES, method="pool")
        chosen = apply(hidden[:, jnp.array([7, 2])], method="logits")
        return apply(hidden, method="logits"), chosen, pooled, apply(pooled, method="next_sentence")

    logits, chosen, pooled, next_sentence = heads(hidden)
    np.testing.assert_allclose(chosen, logits[:, [7, 2]], rtol=1e-5, atol=1e-5)
    chex.assert_shape((logits, pooled, next_sentence), [(2, LENGTH, VOCAB), (2, WIDTH), (2, 2)])
    chex.assert_type((logits, next_sentence), jnp.float32)
    other = hidden.copy()
    other[:, 1:] += 1
    np.testing.assert_array_equal(heads(other)[2], pooled)
    assert np.abs(np.asarray(pooled, np.float32)).max() <= 1


def test_parameters_exist_for_what_is_called():
    model = EncoderLM(CONFIGS["bert"])

    def parts(method):
        return set(jax.eval_shape(functools.partial(model.init, method=method), jax.random.key(0), TOKENS)["params"])

    body = {"token_embedding", "position_embedding", "type_embedding", "embedding_norm", "encoder"}
    assert parts(EncoderLM.hidden) == body
    assert parts(EncoderLM.__call__) == body | {"prediction_head"}
    assert parts(lambda model, tokens: model.pool(model.hidden(tokens))) == body | {"pooler"}
    assert set(random_params("bert")) == body | {"prediction_head", "pooler", "next_sentence_head"}


def test_an_untied_prediction_head_has_its_own_matrix():
    model = EncoderLM(dataclasses.replace(CONFIGS["relative"], tie_embeddings=False))
    init = functools.partial(model.init, jax.random.key(0), TOKENS)
    assert jax.eval_shape(init)["params"]["prediction_head"]["logits"]["output"].shape == (VOCAB, WIDTH)
    without = jax.eval_shape(functools.partial(init, method="hidden"))["params"]
    assert set(without) == {"token_embedding", "encoder"}


def test_relative_positions_distinguish_the_order_of_later_tokens():
    swapped = TOKENS.copy()
    swapped[:, [3, 6]] = TOKENS[:, [6, 3]]
    run = compiled("relative")
    before, after = (np.asarray(run(tokens))[TOKENS[:, 3] != TOKENS[:, 6], 0] for tokens in (TOKENS, swapped))
    assert before.size
    assert np.abs(before - after).max(axis=-1).min() > 1e-3
