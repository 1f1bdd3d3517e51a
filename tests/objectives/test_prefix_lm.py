"""Prefix language modelling: what is given and what is learned."""

import functools

import jax
import numpy as np
import pytest

from lm.data.windows import TrainBatches
from lm.models.decoder_lm import DecoderLM
from lm.objectives.corruption import RowRandom
from lm.objectives.objective import ObjectiveConfig
from lm.objectives.prefix_lm import with_prefix
from tests.objectives.toy_corpus import corpus_for, toy_task

PREFIX = ObjectiveConfig(name="prefix")
T = 16


@pytest.fixture(scope="module")
def batch():
    return toy_task(PREFIX, T).train_batches(corpus_for(PREFIX), 8, seed=1)[0]


def test_every_split_is_as_likely_and_what_is_given_has_no_weight():
    windows = TrainBatches(corpus_for(PREFIX).train, T, 4000, seed=0)[0]
    batch = with_prefix(windows, RowRandom((0,), 4000, slice(None)))
    given = batch["prefix"].sum(axis=1)
    share = np.bincount(given, minlength=T + 1) / 4000
    assert share[0] == 0
    assert np.all(np.abs(share[1:] - 1 / T) < 5 * np.sqrt(1 / T / 4000))
    assert (np.diff(batch["prefix"].astype(int), axis=1) <= 0).all(), "a prefix comes first"
    # Token t + 1 is learned at t: all that are not given, and no others.
    np.testing.assert_array_equal(batch["weights"][:, :-1], windows["weights"][:, :-1] * ~batch["prefix"][:, 1:])
    np.testing.assert_array_equal(batch["weights"][:, -1], windows["weights"][:, -1])


@functools.cache
def compiled_hidden():
    """Hidden states of (tokens, prefix)."""
    task = toy_task(PREFIX, T)
    params = jax.jit(task.init)(jax.random.key(0))

    def hidden(tokens, prefix):
        return task.model.apply({"params": params}, tokens, prefix_BT=prefix, method=DecoderLM.hidden)

    return jax.jit(hidden)


def test_a_prefix_sees_itself_and_what_follows_sees_only_back(batch):
    tokens, prefix = np.array(batch["tokens"][:1]), np.arange(T)[None, :] < 6
    before = compiled_hidden()(tokens, prefix)
    for place, first_changed in ((4, 0), (9, 9)):
        other = tokens.copy()
        other[0, place] = (other[0, place] + 1) % 200
        changed = np.abs(compiled_hidden()(other, prefix) - before).max(axis=-1)[0] > 1e-6
        np.testing.assert_array_equal(changed, np.arange(T) >= first_changed)


def test_no_learned_target_is_seen_where_it_is_predicted(batch):
    tokens, before = np.array(batch["tokens"]), compiled_hidden()(batch["tokens"], batch["prefix"])
    for place in range(1, T):
        other = tokens.copy()
        other[:, place] = (other[:, place] + 1) % 200
        changed = np.abs(compiled_hidden()(other, batch["prefix"]) - before).max(axis=-1)[:, place - 1] > 1e-6
        learned = batch["weights"][:, place - 1] > 0
        assert not (changed & learned).any()


def test_the_loss_is_that_of_a_model_that_sees_the_prefix(batch):
    task = toy_task(PREFIX, T)
    params, evaluate = task.init(jax.random.key(0)), jax.jit(task.evaluate)
    batch = batch | {"weights": np.ones_like(batch["weights"])}  # one layer shows within the prefix what it sees
    seen = evaluate(params, batch)["loss"]
    unseen = evaluate(params, batch | {"prefix": np.zeros_like(batch["prefix"])})["loss"]
    assert (np.abs(seen - unseen) > 1e-6)[batch["prefix"].sum(axis=1) > 2].all()
