"""The deep averaging network: what of a text reaches its logits, and what training adds."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.guo2017.network import DeepAveragingNetwork, drop_words

VOCAB, CLASSES = 11, 4
RANDOM = np.random.default_rng(0)
WORDS = RANDOM.integers(VOCAB, size=(3, 6)).astype(np.int32)
LENGTHS = np.array([6, 4, 1])
MASK = np.arange(6)[None] < LENGTHS[:, None]
both = pytest.mark.parametrize("batch_norm", [False, True])


def network(**changes):
    return DeepAveragingNetwork(VOCAB, CLASSES, **({"width": 5, "hidden_width": 7} | changes))


def variables_of(model, words=WORDS, mask=MASK):
    """Random weights large enough that all matter, and statistics that are not the initial ones."""
    variables = jax.jit(model.init)(jax.random.key(0), words, mask)
    random = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: np.abs(random.normal(size=leaf.shape)).astype(np.float32) - 0.3, variables) | {
        name: jax.tree.map(lambda leaf: random.uniform(0.5, 2, leaf.shape).astype(np.float32), variables[name])
        for name in variables
        if name == "batch_stats"
    }


@both
@pytest.mark.parametrize("layers", [0, 3])
def test_shapes_and_dtype(batch_norm, layers):
    model = network(batch_norm=batch_norm, layers=layers)
    variables = variables_of(model)
    logits = model.apply(variables, WORDS, MASK)
    chex.assert_shape(logits, (3, CLASSES))
    chex.assert_type(logits, jnp.float32)
    chex.assert_tree_all_finite(logits)
    assert ("batch_stats" in variables) == (batch_norm and layers > 0)
    assert {name for name in variables["params"] if name.startswith("layer_")} == {f"layer_{i}" for i in range(layers)}


@both
def test_padding_never_changes_the_logits(batch_norm):
    model = network(batch_norm=batch_norm)
    variables = variables_of(model)
    expected = model.apply(variables, WORDS, MASK)
    other = np.where(MASK, WORDS, (WORDS + 3) % VOCAB)
    np.testing.assert_array_equal(model.apply(variables, other, MASK), expected)
    longer, longer_mask = np.pad(WORDS, ((0, 0), (0, 9))), np.pad(MASK, ((0, 0), (0, 9)))
    np.testing.assert_allclose(model.apply(variables, longer, longer_mask), expected, rtol=1e-5, atol=1e-6)
    assert np.abs(model.apply(variables, WORDS, np.ones_like(MASK)) - expected)[1].max() > 1e-3


@both
def test_logits_do_not_depend_on_the_batch_in_evaluation(batch_norm):
    model = network(batch_norm=batch_norm)
    variables = variables_of(model)
    alone = model.apply(variables, WORDS[:1], MASK[:1])
    np.testing.assert_allclose(model.apply(variables, WORDS, MASK)[:1], alone, rtol=1e-5, atol=1e-6)


def test_order_does_not_matter_but_repetition_does():
    model = network()
    variables = variables_of(model)
    words, mask = np.array([[1, 2, 2, 5], [5, 2, 1, 2], [1, 2, 5, 0]], np.int32), np.ones((3, 4), bool)
    mask[2, 3] = False
    logits = model.apply(variables, words, mask)
    np.testing.assert_allclose(logits[0], logits[1], rtol=1e-5, atol=1e-6)
    assert np.abs(logits[0] - logits[2]).max() > 1e-3


def test_without_hidden_layers_logits_are_linear_in_the_average():
    model = network(layers=0)
    variables = variables_of(model)
    params = variables["params"]
    table = params["embedding"]["embedding"]
    average = np.stack([table[WORDS[row, :length]].mean(axis=0) for row, length in enumerate(LENGTHS)])
    expected = average @ params["output"]["kernel"] + params["output"]["bias"]
    np.testing.assert_allclose(model.apply(variables, WORDS, MASK), expected, rtol=1e-5, atol=1e-6)


def test_the_average_of_an_empty_text_is_zero():
    model = network(layers=0)
    variables = variables_of(model)
    logits = model.apply(variables, WORDS[:1], np.zeros_like(MASK[:1]))
    np.testing.assert_allclose(logits[0], variables["params"]["output"]["bias"], rtol=1e-6)


@both
def test_gradient_reaches_only_the_words_present(batch_norm):
    model = network(batch_norm=batch_norm)
    variables = variables_of(model)
    words, mask = np.array([[1, 4, 9, 7]], np.int32), np.array([[True, True, True, False]])

    def total(table):
        params = variables["params"] | {"embedding": {"embedding": table}}
        return (model.apply(variables | {"params": params}, words, mask) * jnp.arange(4.0)[None]).sum()

    gradient = jax.jit(jax.grad(total))(variables["params"]["embedding"]["embedding"])
    assert np.flatnonzero(np.abs(gradient).max(axis=1)).tolist() == [1, 4, 9]


def test_training_drops_words_and_keeps_statistics():
    model = network(word_dropout=0.5)
    variables = variables_of(model)

    def train(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return model.apply(variables, WORDS, MASK, True, rngs=rngs, mutable=["batch_stats"])

    (one, statistics), (other, _) = train(0), train(1)
    assert np.abs(one - other).max() > 1e-3
    assert jax.tree.structure(statistics["batch_stats"]) == jax.tree.structure(variables["batch_stats"])
    moved = jax.tree.map(
        lambda new, old: np.abs(new - old).max() > 0, statistics["batch_stats"], variables["batch_stats"]
    )
    assert all(jax.tree.leaves(moved))


def test_word_dropout_never_empties_a_text():
    mask = np.arange(10)[None] < np.repeat([1, 2, 10], 1000)[:, None]
    kept = np.asarray(drop_words(jax.random.key(0), mask, 0.3))
    assert not kept[~mask].any()
    assert kept.any(axis=1).all()
    assert kept[:1000, 0].all(), "a text's only word is never dropped"
    # Of two words both stay with 0.7^2; where both would go, with 0.3^2, both stay too.
    assert abs(kept[1000:2000, :2].all(axis=1).mean() - (0.49 + 0.09)) < 0.05
    assert abs(kept[2000:].mean() - 0.7) < 0.02
