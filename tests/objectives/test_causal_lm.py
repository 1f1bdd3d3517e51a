"""Causal language modelling: sums over exactly the tokens that count."""

import functools

import chex
import jax
import numpy as np
import pytest

from lm.models.decoder_lm import DecoderLM
from lm.modules.config import ModelConfig
from lm.objectives.causal_lm import CausalLM, ObjectiveConfig

B, T, V = 3, 6, 11
PLAIN = ObjectiveConfig()
MODEL = DecoderLM(ModelConfig(vocab_size=V, layers=1, width=8, heads=2, max_length=T, dropout=0.3))


def make_batch(seed=0):
    """Rows of two documents, of one with padding, and of padding alone."""
    tokens = np.random.default_rng(seed).integers(V, size=(B, T + 1)).astype(np.int32)
    segments = np.array([[1, 1, 2, 2, 2, 2], [1, 1, 1, 1, 0, 0], [0] * T], np.int32)
    positions = np.array([[0, 1, 0, 1, 2, 3], [0, 1, 2, 3, 0, 0], [0] * T], np.int32)
    weights = np.array([[1, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [0] * T], np.float32)
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "weights": weights,
        "positions": positions,
        "segments": segments,
    }


@pytest.fixture(scope="module")
def params():
    shapes = jax.eval_shape(CausalLM(MODEL).init, jax.random.key(0))
    random = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: random.normal(size=leaf.shape, scale=0.5).astype(np.float32), shapes)


@functools.cache
def compiled_loss(objective=PLAIN, one_segment=False):
    return jax.jit(jax.value_and_grad(CausalLM(MODEL, objective, one_segment).loss, has_aux=True))


def loss(params, batch, **choices):
    return compiled_loss(**choices)(params, batch, None)


@functools.cache
def compiled_evaluate():
    return jax.jit(CausalLM(MODEL).evaluate)


@pytest.fixture(scope="module")
def log_probs(params):
    """The model's log-probabilities in float64, [B, T, V], and its log-normalizers, [B, T]."""
    batch = make_batch()
    inputs = [batch[name] for name in ("tokens", "segments", "positions")]
    logits = np.asarray(jax.jit(MODEL.apply)({"params": params}, *inputs), np.float64)
    log_normalizer = np.log(np.exp(logits).sum(axis=-1))
    return logits - log_normalizer[..., None], log_normalizer


def test_sums_equal_the_definition(params, log_probs):
    batch = make_batch()
    nll = -np.take_along_axis(log_probs[0], batch["targets"][..., None], axis=-1)[..., 0]
    (total, sums), _ = loss(params, batch)
    assert sums.keys() == {"weight", "loss", "objective"}
    assert sums["weight"] == 9
    np.testing.assert_allclose(sums["loss"], (batch["weights"] * nll).sum(), rtol=1e-5)
    np.testing.assert_allclose([total, sums["objective"]], sums["loss"], rtol=1e-6)


def test_label_smoothing_and_z_loss_equal_their_formulas(params, log_probs):
    batch, log_normalizer = make_batch(), log_probs[1]
    smoothed = 0.8 * np.eye(V)[batch["targets"]] + 0.2 / V
    per_token = -(smoothed * log_probs[0]).sum(axis=-1) + 0.1 * log_normalizer**2
    (total, sums), _ = loss(params, batch, objective=ObjectiveConfig(label_smoothing=0.2, z_loss=0.1))
    np.testing.assert_allclose([total, sums["objective"]], (batch["weights"] * per_token).sum(), rtol=1e-5)
    (_, plain), _ = loss(params, batch)
    for name in ("weight", "loss"):
        np.testing.assert_allclose(sums[name], plain[name], rtol=1e-6, err_msg=name)


def test_chunks_give_the_same_loss_and_gradients(params):
    batch = make_batch()
    objective = ObjectiveConfig(label_smoothing=0.2, z_loss=0.1)
    chunked = ObjectiveConfig(label_smoothing=0.2, z_loss=0.1, loss_chunk=5)
    expected = loss(params, batch, objective=objective)
    chex.assert_trees_all_close(loss(params, batch, objective=chunked), expected, rtol=1e-4, atol=1e-5)
    assert all(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(expected[1]))


def test_padding_never_counts(params):
    batch, other = make_batch(), make_batch()
    padding = batch["segments"] == 0
    for name in ("tokens", "targets"):
        other[name] = np.where(padding, (batch[name] + 3) % V, batch[name])
    chex.assert_trees_all_close(loss(params, other), loss(params, batch), rtol=1e-6, atol=1e-6)
    # A target without weight does not count either, though its token is seen.
    other = make_batch()
    other["targets"] = np.where(batch["weights"] == 0, (batch["targets"] + 3) % V, batch["targets"])
    chex.assert_trees_all_close(loss(params, other), loss(params, batch), rtol=1e-6, atol=1e-6)
    # And a batch of padding alone is nothing, without a NaN.
    (total, sums), gradients = loss(params, batch | {"weights": np.zeros((B, T), np.float32)})
    assert not any(np.any(leaf) for leaf in jax.tree.leaves((total, sums, gradients)))


def test_sums_are_linear_in_the_weights(params):
    batch = make_batch()
    weights = np.random.default_rng(3).uniform(0, 2, size=(B, T)).astype(np.float32)
    whole = loss(params, batch | {"weights": weights})
    masks = np.arange(T) < 2, np.arange(T) >= 2
    parts = [loss(params, batch | {"weights": weights * mask}) for mask in masks]
    chex.assert_trees_all_close(jax.tree.map(lambda a, b: a + b, *parts), whole, rtol=1e-4, atol=1e-4)


def test_sums_per_row_add_up_to_the_loss(params):
    batch = make_batch()
    rows = compiled_evaluate()(params, batch)
    reliability = rows.pop("reliability")
    assert rows.keys() == {"weight", "loss", "accuracy", "confidence", "entropy"}
    for kind, bins in reliability.items():
        totals = bins.totals()
        assert totals.count.sum() == 9, f"{kind}: padding counts"
        np.testing.assert_allclose(totals.confidence.sum(), np.sum(rows["confidence"]), rtol=1e-6)
        np.testing.assert_allclose(totals.correct.sum(), np.sum(rows["accuracy"]), rtol=1e-6)
    chex.assert_shape(list(rows.values()), (B,))
    (_, sums), _ = loss(params, batch)
    for name in ("weight", "loss"):
        np.testing.assert_allclose(np.sum(rows[name]), sums[name], rtol=1e-5, err_msg=name)
    assert not any(np.any(rows[name][2]) for name in rows), "a row of padding counts"
    np.testing.assert_array_equal(rows["weight"], [5, 4, 0])


def test_confidence_and_entropy_per_row(params, log_probs):
    batch = make_batch()
    rows, probabilities = compiled_evaluate()(params, batch), np.exp(log_probs[0])
    entropy = -(probabilities * log_probs[0]).sum(axis=-1)
    np.testing.assert_allclose(
        rows["confidence"], (batch["weights"] * probabilities.max(axis=-1)).sum(axis=1), rtol=1e-5
    )
    np.testing.assert_allclose(rows["entropy"], (batch["weights"] * entropy).sum(axis=1), rtol=1e-5)


def test_promising_one_segment_changes_nothing_where_it_holds(params):
    batch = make_batch() | {
        "segments": np.array([[1] * T, [1] * 4 + [0] * 2, [1] * T], np.int32),
        "positions": np.array([range(T), [*range(4), 0, 0], range(T)], np.int32),
    }
    with_mask, without_mask = loss(params, batch), loss(params, batch, one_segment=True)
    chex.assert_trees_all_close(without_mask, with_mask, rtol=1e-4, atol=1e-5)
    two_documents = make_batch()
    assert abs(loss(params, two_documents)[0][0] - loss(params, two_documents, one_segment=True)[0][0]) > 0.01


def test_dropout_acts_only_in_training(params):
    batch = make_batch()
    dropping = jax.jit(CausalLM(MODEL).loss)
    one, again, other = (dropping(params, batch, jax.random.key(seed))[0] for seed in (0, 0, 1))
    silent = loss(params, batch)[0][0]
    assert one == again
    assert len({float(one), float(other), float(silent)}) == 3
    np.testing.assert_allclose(np.sum(compiled_evaluate()(params, batch)["loss"]), silent, rtol=1e-5)
