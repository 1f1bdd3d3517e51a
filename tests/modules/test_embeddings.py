"""Embeddings: sinusoidal formulas, and scores that stay float32."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.modules.config import ModelConfig
from lm.modules.embeddings import Embedder, Output, PositionEmbedding, TokenEmbedding, sinusoidal_table
from lm.modules.output_layer import OutputLayer


def test_sinusoidal_table_equals_the_formula():
    for width in (8, 7):
        table = sinusoidal_table(50, width)
        chex.assert_shape(table, (50, width))
        sines = (width + 1) // 2
        table = np.asarray(table)
        for position in (0, 1, 49):
            for i in range(width):
                angle = position / 10_000 ** (2 * (i % sines) / width)
                wave = np.sin if i < sines else np.cos
                np.testing.assert_allclose(table[position, i], wave(angle), atol=1e-6)


def test_positions_choose_rows_of_the_table():
    for positions, parameters in (("learned", {"embedding": (9, 6)}), ("sinusoidal", {})):
        layer = PositionEmbedding(ModelConfig(width=6, heads=2, max_length=9, positions=positions))
        variables = jax.jit(lambda: layer.init(jax.random.key(0), None, 9))()  # noqa: B023
        assert jax.tree.map(jnp.shape, dict(variables.get("params", {}))) == parameters
        table = np.asarray(layer.apply(variables, None, 9))
        assert len(np.unique(table, axis=0)) == 9
        if positions == "learned":
            np.testing.assert_allclose(table.std(), 0.02, rtol=0.5)
        np.testing.assert_array_equal(layer.apply(variables, None, 4), table[:4])
        chosen = np.array([[0, 1, 0, 1], [8, 3, 3, 0]])
        np.testing.assert_array_equal(layer.apply(variables, chosen, 4), table[chosen])


def test_tied_output_scores_by_the_same_table():
    config = ModelConfig(vocab_size=11, width=6, heads=2)
    layer = TokenEmbedding(config)
    tokens = jnp.array([[3, 0, 10]])
    random = np.random.default_rng(0)
    table, hidden = random.normal(size=(11, 6)), random.normal(size=(1, 3, 6))
    assert jax.eval_shape(layer.init, jax.random.key(0), tokens)["params"]["embedding"].shape == table.shape
    variables = {"params": {"embedding": table.astype(np.float32)}}
    np.testing.assert_array_equal(layer.apply(variables, tokens), table.astype(np.float32)[np.asarray(tokens)])
    logits = Output(config).apply({}, table.astype(np.float32))(hidden.astype(np.float32))
    np.testing.assert_allclose(logits, hidden @ table.T, atol=1e-5)


def test_logits_of_16_bit_products_are_summed_in_float32():
    random = np.random.default_rng(0)
    hidden, output = (random.normal(size=shape).astype(jnp.bfloat16) for shape in ((1, 9, 256), (11, 256)))
    logits = OutputLayer(output, dtype=jnp.dtype("bfloat16"))(hidden)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, hidden.astype(np.float64) @ output.astype(np.float64).T, atol=1e-4)


def test_embedder_adds_positions_and_types_then_normalizes():
    config = ModelConfig(
        vocab_size=5,
        width=6,
        heads=2,
        max_length=4,
        segment_types=2,
        normalize_embeddings=True,
        normalization_epsilon=1e-9,
    )
    layer, tokens, kinds = Embedder(config), np.array([[3, 0, 4]]), np.array([[0, 1, 1]])
    shapes = jax.eval_shape(layer.init, jax.random.key(0), tokens)["params"]
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32), shapes)

    def expected(positions, kinds):
        rows = zip(("token", "position", "type"), (tokens, positions, kinds), strict=True)
        total = sum(params[f"{name}_embedding"]["embedding"][index] for name, index in rows)
        centred = total - total.mean(axis=-1, keepdims=True)
        return centred / centred.std(axis=-1, keepdims=True) * params["embedding_norm"]["scale"]

    positions = np.array([[0, 0, 3]])
    actual = layer.apply({"params": params}, tokens, positions, kinds)
    np.testing.assert_allclose(actual, expected(positions, kinds), rtol=1e-4, atol=1e-5)
    by_default = layer.apply({"params": params}, tokens)
    np.testing.assert_allclose(by_default, expected(np.arange(3)[None], 0 * kinds), rtol=1e-4, atol=1e-5)


def test_sinusoidal_positions_do_not_drown_the_tokens():
    """Vaswani et al. 2017, section 3.4: the token embedding is multiplied by sqrt(D)."""
    config = ModelConfig(vocab_size=5, width=16, heads=2, positions="sinusoidal")
    table = np.random.default_rng(0).normal(size=(5, 16)).astype(np.float32)
    tokens = np.array([[3, 1]])
    embedded = Embedder(config).apply({"params": {"token_embedding": {"embedding": table}}}, tokens)
    np.testing.assert_allclose(embedded, 4 * table[tokens] + np.asarray(sinusoidal_table(2, 16))[None], rtol=1e-5)


def test_types_need_an_embedding():
    config = ModelConfig(vocab_size=5, width=6, heads=2)
    with pytest.raises(ValueError, match="segment_types"):
        Embedder(config).init(jax.random.key(0), np.array([[1]]), None, np.array([[1]]))
