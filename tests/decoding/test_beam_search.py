"""Beam search: wide enough it finds the best of all sequences, with one beam it is greedy, and no row minds another."""

import dataclasses
import functools
import itertools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.decoding.beam_search import BeamSearchConfig, beam_search
from lm.decoding.continuation import Decoded
from lm.decoding.step import Start
from lm.errors import UserError

VOCAB, PADDED, WIDTH, END = 4, 6, 5, 2  # the last two ids pad the table
BATCH, LENGTH = 6, 4
ALL = sum((VOCAB - 1) ** n for n in range(LENGTH)) + (VOCAB - 1) ** LENGTH  # sequences that end, and that are cut


def network(seed=0):
    """A recurrent network whose state is the cache, so that a beam with another's cache goes wrong."""
    random = np.random.default_rng(seed)
    shapes = {
        "embedding": (PADDED, WIDTH),
        "recurrent": (WIDTH, WIDTH),
        "output": (WIDTH, PADDED),
        "start": (BATCH, WIDTH),
    }
    weights = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    weights["output"][:, VOCAB:] *= 3
    weights["position"] = random.normal(size=(LENGTH + 1, WIDTH)).astype(np.float32)
    return weights


@flax.struct.dataclass
class State:
    """The network's cache."""

    state_BD: jax.Array

    def take_rows(self, rows_B):
        return State(self.state_BD[rows_B])


def step(weights, tokens_R1, positions_R1, caches):
    fed = weights["embedding"][tokens_R1[:, 0]] + weights["position"][positions_R1[:, 0]]
    state = jnp.tanh(caches.state_BD @ weights["recurrent"] + fed)
    return state @ weights["output"], State(state)


def begin(step, caches, tokens_B):
    zeros_B = jnp.zeros_like(tokens_B)
    logits_BV, caches = step(tokens_B[:, None], zeros_B[:, None], caches)
    return Start(step, caches, logits_BV, zeros_B + 1, zeros_B + 100)


def calibrate(logits):
    """What prefers other sequences than the network does."""
    return 0.5 * logits + jnp.array([[1.0, -2.0, 0.0, 1.0, 3.0, 3.0]])


@functools.partial(jax.jit, static_argnames=("config", "ends", "calibrator"))
def search(weights, limits_B, config, ends=(END,), calibrator=None):
    return beam_search(
        begin(functools.partial(step, weights), State(weights["start"]), jnp.arange(BATCH) % VOCAB),
        config,
        ends,
        limits_B=limits_B,
        vocab_size=VOCAB,
        calibrator=calibrator,
    )


FULL = np.full(BATCH, LENGTH, np.int32)


def decode(config, limits_B=FULL, weights=None, **choices) -> Decoded:
    return jax.device_get(search(network() if weights is None else weights, limits_B, config, **choices))


def log_probs_of(weights, row, tokens, calibrator=None):
    """The log-probability of each token, in float64 and without a cache."""
    weights = {name: np.asarray(value, np.float64) for name, value in weights.items()}
    state, fed, outcome = weights["start"][row], row % VOCAB, []
    for position, token in enumerate(tokens):
        state = np.tanh(
            state @ weights["recurrent"] + weights["embedding"][fed] + weights["position"][min(position, LENGTH)]
        )
        logits = state @ weights["output"]
        logits = (logits if calibrator is None else np.asarray(calibrator(logits[None]), np.float64)[0])[:VOCAB]
        outcome.append((logits - np.log(np.exp(logits).sum()))[token])
        fed = token
    return np.array(outcome)


def every_finished_sequence(limit):
    others = [token for token in range(VOCAB) if token != END]
    for length in range(limit):
        for body in itertools.product(others, repeat=length):
            yield (*body, END)


def best_of_all(weights, row, limit, power, calibrator=None):
    scored = (
        (log_probs_of(weights, row, tokens, calibrator).sum() / len(tokens) ** power, tokens)
        for tokens in every_finished_sequence(limit)
    )
    return max(scored)


def greedy(weights, row, limit):
    tokens = []
    while len(tokens) < limit and END not in tokens:
        scores = [log_probs_of(weights, row, [*tokens, token])[-1] for token in range(VOCAB)]
        tokens.append(int(np.argmax(scores)))
    return tokens


def sequence(decoded, row):
    return tuple(decoded.tokens_BT[row, : decoded.lengths_B[row]].tolist())


@pytest.mark.parametrize("power", [0.0, 0.6, 2.0])
def test_a_beam_as_wide_as_the_tree_finds_the_best_of_all_sequences(power):
    config = BeamSearchConfig(beams=ALL, max_new_tokens=LENGTH, length_penalty=power)
    limits, weights = np.array([4, 4, 4, 3, 2, 1], np.int32), network()
    decoded = decode(config, limits)
    expected = [best_of_all(weights, row, limit, power) for row, limit in enumerate(limits)]
    for row, (score, tokens) in enumerate(expected):
        assert sequence(decoded, row) == tokens
        np.testing.assert_allclose(decoded.total_log_probs_B[row] / len(tokens) ** power, score, rtol=1e-4, atol=1e-5)
    assert decoded.finished_B.all()
    assert len({len(tokens) for _, tokens in expected}) > 1, "sequences of one length cannot tell"


def test_with_a_calibrator_the_best_sequence_is_the_calibrated_one_and_its_own_log_probs_stay():
    config = BeamSearchConfig(beams=ALL, max_new_tokens=LENGTH, length_penalty=1.0)
    limits, weights = np.full(BATCH, 3, np.int32), network()
    decoded = decode(config, limits, calibrator=calibrate)
    others = 0
    for row in range(BATCH):
        score, tokens = best_of_all(weights, row, 3, 1.0, calibrate)
        assert sequence(decoded, row) == tokens
        length = len(tokens)
        np.testing.assert_allclose(decoded.calibrated_log_probs_BT[row].sum() / length, score, rtol=1e-4, atol=1e-5)
        own = log_probs_of(weights, row, tokens)
        np.testing.assert_allclose(decoded.log_probs_BT[row, :length], own, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(decoded.calibrated_log_probs_BT[row, length:], 0)
        others += tokens != best_of_all(weights, row, 3, 1.0)[1]
    assert others >= 2, "a calibrator that prefers the same sequences can't tell"


def test_a_search_ends_where_the_models_room_does():
    room_B, weights = jnp.array([4, 3, 2, 1, 4, 2]), jax.tree.map(jnp.asarray, network())
    start = begin(functools.partial(step, weights), State(weights["start"]), jnp.arange(BATCH) % VOCAB)
    start = dataclasses.replace(start, room_B=room_B)
    limited = jax.jit(lambda: beam_search(start, BeamSearchConfig(2, LENGTH), (), vocab_size=VOCAB))()
    np.testing.assert_array_equal(limited.lengths_B, room_B)


def test_the_length_penalty_matters():
    lengths = [decode(BeamSearchConfig(ALL, LENGTH, power)).lengths_B.sum() for power in (0.0, 2.0)]
    assert lengths[0] < lengths[1]


@pytest.mark.parametrize("power", [0.0, 2.0])
def test_one_beam_is_greedy(power):
    limits, ended = np.array([4, 3, 4, 4, 4, 1], np.int32), set()
    for seed in range(4):
        weights = network(seed)
        decoded = decode(BeamSearchConfig(1, LENGTH, power), limits, weights)
        for row, limit in enumerate(limits):
            expected = greedy(weights, row, limit)
            assert sequence(decoded, row) == tuple(expected)
            assert decoded.finished_B[row] == (expected[-1] == END)
            ended.add((bool(decoded.finished_B[row]), len(expected)))
    assert {(True, 2), (False, 4)} <= ended, f"the networks of this test are too alike: {ended}"


@pytest.mark.parametrize("beams", [1, 3, ALL])
def test_log_probs_are_the_models_own_whatever_the_penalty(beams):
    weights = network()
    decoded = decode(BeamSearchConfig(beams, LENGTH, 2.0))
    for row in range(BATCH):
        tokens = sequence(decoded, row)
        expected = log_probs_of(weights, row, tokens)
        np.testing.assert_allclose(decoded.log_probs_BT[row, : len(tokens)], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(decoded.total_log_probs_B[row], expected.sum(), rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(decoded.tokens_BT[row, len(tokens) :], 0)
        np.testing.assert_array_equal(decoded.log_probs_BT[row, len(tokens) :], 0)


def test_wider_beams_find_no_worse_sequences_on_the_whole():
    totals = [
        sum(
            decode(BeamSearchConfig(beams, LENGTH, 0.0), weights=network(seed), ends=()).total_log_probs_B.sum()
            for seed in range(4)
        )
        for beams in (1, 3, ALL)
    ]
    assert totals[0] < totals[1] <= totals[2] + 1e-4


def test_without_an_end_of_text_sequences_are_as_long_as_allowed():
    limits = np.array([4, 3, 2, 1, 4, 4], np.int32)
    decoded = decode(BeamSearchConfig(ALL, LENGTH), limits, ends=())
    np.testing.assert_array_equal(decoded.lengths_B, limits)
    assert not decoded.finished_B.any()
    weights = network()
    for row, limit in enumerate(limits):
        scores = {
            tokens: log_probs_of(weights, row, tokens).sum() for tokens in itertools.product(range(VOCAB), repeat=limit)
        }
        assert sequence(decoded, row) == max(scores, key=scores.get)
        assert not decoded.log_probs_BT[row, limit:].any(), "the row went on after its limit"


def test_a_row_does_not_depend_on_the_others():
    weights = network()
    config = BeamSearchConfig(3, LENGTH)
    whole = decode(config)
    assert len(set(whole.lengths_B.tolist())) > 1, "rows that all take equally long cannot tell"
    for row in range(BATCH):
        # All other rows have another state and are cut after one token.
        others = dict(
            weights, start=np.where(np.arange(BATCH)[:, None] == row, weights["start"], 1.0).astype(np.float32)
        )
        alone = decode(config, np.where(np.arange(BATCH) == row, LENGTH, 1).astype(np.int32), others)
        assert sequence(alone, row) == sequence(whole, row)
        np.testing.assert_allclose(alone.log_probs_BT[row], whole.log_probs_BT[row], rtol=1e-5)


def test_the_search_stops_when_nothing_can_overtake():
    """Counts the calls of the model."""
    calls = []

    def certain_end(tokens_R1, positions_R1, caches):
        jax.debug.callback(lambda: calls.append(1))
        logits = jnp.where(jnp.arange(VOCAB)[None, :] == END, 3.0, jnp.zeros((tokens_R1.shape[0], 1)))
        return logits, caches

    @jax.jit
    def find():
        start = begin(certain_end, State(jnp.zeros((2, 1))), jnp.zeros(2, jnp.int32))
        return beam_search(start, BeamSearchConfig(2, 50, 0.0), END)

    decoded = find()
    jax.effects_barrier()
    np.testing.assert_array_equal(decoded.lengths_B, 1)
    assert len(calls) == 1


@pytest.mark.parametrize("power", [0.0, 1.0])
@pytest.mark.parametrize("beams", [2, 3])
def test_unlikely_ends_do_not_keep_a_nearly_certain_sequence_from_being_found(beams, power):
    """After each token of 1, 1, 1, END the next is nearly certain, and what else is likely is to end at once."""

    def step(tokens_R1, positions_R1, caches):
        wanted_R1 = jnp.where(positions_R1 == 3, END, 1)
        ids_1V = jnp.arange(VOCAB)[None, :]
        return jnp.where(ids_1V == wanted_R1, 9.0, jnp.where(ids_1V == END, 2.0, 0.0)), caches

    start = begin(step, State(jnp.zeros((1, 1))), jnp.zeros(1, jnp.int32))
    decoded = jax.jit(lambda: beam_search(start, BeamSearchConfig(beams, 8, power), END))()
    assert sequence(decoded, 0) == (1, 1, 1, END)


@pytest.mark.parametrize("values", [{"beams": 0}, {"max_new_tokens": 0}, {"length_penalty": -1.0}])
def test_bad_values_are_named(values):
    with pytest.raises(UserError, match=next(iter(values))):
        BeamSearchConfig(**values)
