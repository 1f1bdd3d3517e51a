"""The recurrent body: padding never reaches a text, and the pooled vector is the largest state over its tokens."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.errors import UserError
from lm.models.recurrent import RecurrentModel
from lm.modules.config import ModelConfig

VOCAB, LENGTH, STATE = 11, 6, 4
CONFIGS = {
    kind: ModelConfig(architecture=kind, vocab_size=VOCAB, layers=2, width=3, recurrent_width=STATE)
    for kind in ("lstm", "gru")
}
both = pytest.mark.parametrize("kind", CONFIGS)

TOKENS = np.random.default_rng(0).integers(VOCAB, size=(3, LENGTH)).astype(np.int32)
LENGTHS = np.array([6, 3, 0])
SEGMENTS = (np.arange(LENGTH)[None] < LENGTHS[:, None]).astype(np.int32)
ONES = np.ones_like(SEGMENTS)


@functools.cache
def random_params(kind):
    """Weights large enough that every part matters."""
    shapes = jax.eval_shape(RecurrentModel(CONFIGS[kind]).init, jax.random.key(0), TOKENS)["params"]
    random = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: random.normal(size=leaf.shape, scale=0.7).astype(np.float32), shapes)


def read(model, params, tokens, segments, rngs=None):
    """States and pooled vectors."""
    variables = {"params": params}
    hidden = model.apply(variables, tokens, segments, rngs=rngs, method=RecurrentModel.hidden)
    return hidden, model.apply(variables, hidden, segments, method=RecurrentModel.pool)


@functools.cache
def compiled(kind):
    return jax.jit(functools.partial(read, RecurrentModel(CONFIGS[kind]), random_params(kind)))


@both
def test_shapes_and_paths(kind):
    hidden, pooled = compiled(kind)(TOKENS, SEGMENTS)
    chex.assert_shape(hidden, (3, LENGTH, 2 * STATE))
    chex.assert_shape(pooled, (3, 2 * STATE))
    params = random_params(kind)
    assert set(params) == {"token_embedding", "recurrent"}
    chex.assert_shape(params["token_embedding"]["embedding"], (VOCAB, 3))


@both
def test_padding_never_changes_a_text(kind):
    hidden, pooled = compiled(kind)(TOKENS, SEGMENTS)
    other = np.where(SEGMENTS, TOKENS, (TOKENS + 3) % VOCAB)
    other_hidden, other_pooled = compiled(kind)(other, SEGMENTS)
    np.testing.assert_array_equal(other_pooled, pooled)
    np.testing.assert_array_equal(other_hidden[1, :3], hidden[1, :3])
    alone_hidden, alone_pooled = compiled(kind)(TOKENS[1:2, :3], SEGMENTS[1:2, :3])
    np.testing.assert_allclose(alone_hidden[0], hidden[1, :3], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(alone_pooled[0], pooled[1], rtol=1e-5, atol=1e-6)
    unmasked = compiled(kind)(TOKENS, ONES)[1]
    assert np.abs(unmasked[1] - pooled[1]).max() > 0.01, "the padding makes no difference"


@both
def test_pooled_is_the_largest_state_and_without_segments_all_count(kind):
    hidden, pooled = (np.asarray(each) for each in compiled(kind)(TOKENS, SEGMENTS))
    for row, length in ((0, 6), (1, 3)):
        np.testing.assert_array_equal(pooled[row], hidden[row, :length].max(axis=0))
    np.testing.assert_array_equal(pooled[2], -1)
    for found, expected in zip(compiled(kind)(TOKENS, None), compiled(kind)(TOKENS, ONES), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_gradients_are_finite_and_reach_only_the_words_present():
    params = random_params("lstm")

    @jax.jit
    def gradient(table):
        changed = params | {"token_embedding": {"embedding": table}}
        return jax.grad(
            lambda table: read(
                RecurrentModel(CONFIGS["lstm"]), changed | {"token_embedding": {"embedding": table}}, TOKENS, SEGMENTS
            )[1].sum()
        )(table)

    found = np.asarray(gradient(params["token_embedding"]["embedding"]))
    assert np.isfinite(found).all()
    assert set(np.flatnonzero(np.abs(found).max(axis=1))) == set(TOKENS[SEGMENTS > 0])


def test_dropout_acts_only_with_a_key_also_on_the_words():
    config = dataclasses.replace(CONFIGS["gru"], dropout=0.5, layers=1)
    params = random_params("gru")
    params = params | {"recurrent": {"layer_0": params["recurrent"]["layer_0"]}}
    apply = jax.jit(lambda rngs: read(RecurrentModel(config), params, TOKENS, SEGMENTS, rngs)[1])
    one, again, other = (np.asarray(apply({"dropout": jax.random.key(seed)})) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 0.01
    without = dataclasses.replace(config, dropout=0.0)
    expected = jax.jit(lambda: read(RecurrentModel(without), params, TOKENS, SEGMENTS)[1])()
    np.testing.assert_allclose(apply({}), expected, rtol=1e-5, atol=1e-6)
    assert np.abs(one - expected).max() > 0.01


def test_16_bit_compute_keeps_float32_parameters():
    model = RecurrentModel(dataclasses.replace(CONFIGS["lstm"], dtype="bfloat16"))
    shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS)["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    hidden, pooled = jax.eval_shape(functools.partial(read, model), random_params("lstm"), TOKENS, SEGMENTS)
    assert hidden.dtype == pooled.dtype == jnp.bfloat16


def test_any_width_works_without_heads():
    assert ModelConfig(architecture="lstm", width=50).width == 50
    with pytest.raises(UserError, match="heads=4 does not divide"):
        ModelConfig(width=50, heads=4)
