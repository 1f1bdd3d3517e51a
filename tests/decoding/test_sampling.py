"""The sampling distribution against its definition, one token at a time."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from lm.decoding.sampling import SamplingConfig, choose, penalized, sampling_log_probs
from lm.errors import UserError

V = 12
LOGITS = np.random.default_rng(0).normal(scale=2.0, size=(6, V)).astype(np.float32)


def softmax(logits):
    unnormalized = np.exp(logits - logits.max())
    return unnormalized / unnormalized.sum()


def definition(logits_V, temperature=1.0, top_k=0, top_p=1.0):
    """The probabilities of one distribution: temperature, then the k likeliest, then the nucleus of what is left."""
    probabilities = softmax(np.asarray(logits_V, np.float64) / temperature)
    order = np.argsort(-probabilities)
    if top_k:
        probabilities[order[top_k:]] = 0
        probabilities /= probabilities.sum()
    kept, mass = [], 0.0
    for token in order:
        if mass < top_p and probabilities[token] > 0:
            kept.append(token)
            mass += probabilities[token]
    nucleus = np.zeros(V)
    nucleus[kept] = probabilities[kept] / mass
    return nucleus


compiled = jax.jit(sampling_log_probs, static_argnums=1)


class SamplingTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(
        {"temperature": 0.5},
        {"temperature": 2.0, "top_k": 3},
        {"top_k": V + 1},
        {"top_p": 0.6},
        {"temperature": 1.7, "top_k": 5, "top_p": 0.7},
    )
    def test_equals_the_definition(self, **values):
        log_probs = self.variant(sampling_log_probs, static_argnums=1)(LOGITS, SamplingConfig(**values))
        expected = np.stack([definition(logits, **values) for logits in LOGITS])
        np.testing.assert_allclose(np.exp(log_probs), expected, rtol=1e-4, atol=1e-7)
        np.testing.assert_array_equal(np.isneginf(log_probs), expected == 0)


@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.9, 0.999])
def test_the_nucleus_is_the_smallest_set_of_that_mass(top_p):
    kept = np.isfinite(compiled(LOGITS, SamplingConfig(top_p=top_p)))
    for logits, kept_V in zip(LOGITS, kept, strict=True):
        probabilities = softmax(logits.astype(np.float64))
        inside = np.sort(probabilities[kept_V])
        assert inside.sum() >= top_p
        assert inside[1:].sum() < top_p
        assert kept_V.all() or inside[0] > probabilities[~kept_V].max()


def test_greedy_is_certain_and_takes_the_first_of_equals():
    logits = jnp.array([[0.0, 3.0, 3.0, 1.0], [5.0, 1.0, 2.0, 3.0]])
    expected = [[-np.inf, 0, -np.inf, -np.inf], [0, -np.inf, -np.inf, -np.inf]]
    for rest in ({}, {"top_k": 3, "top_p": 0.5}):
        np.testing.assert_array_equal(compiled(logits, SamplingConfig(temperature=0.0, **rest)), expected)


def test_ties_with_the_last_one_allowed_are_allowed():
    logits = jnp.array([[2.0, 1.0, 1.0, 0.0]])
    for values in ({"top_k": 2}, {"top_p": 0.7}):
        np.testing.assert_array_equal(np.isfinite(compiled(logits, SamplingConfig(**values))), [[1, 1, 1, 0]])


@pytest.mark.parametrize("values", [{"temperature": 3.0}, {"top_k": 9}, {"top_p": 0.99}, {"temperature": 0.0}])
def test_what_was_ruled_out_stays_out(values):
    logits = np.where(np.arange(V) < 4, LOGITS, -np.inf)
    log_probs = np.asarray(compiled(logits, SamplingConfig(**values)))
    assert np.isneginf(log_probs[:, 4:]).all()
    np.testing.assert_allclose(np.exp(log_probs).sum(axis=-1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"temperature": -0.5}, "temperature must not be negative, got -0.5"),
        ({"top_k": -1}, "top_k must not be negative, got -1"),
        ({"top_p": 0.0}, "top_p must be in (0, 1], got 0.0"),
        ({"top_p": 1.5}, "top_p must be in (0, 1], got 1.5"),
        ({"min_p": 1.5}, "min_p must be in [0, 1], got 1.5"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be positive, got 0.0"),
        ({"stop": ("a", "")}, "stop must not have an empty string"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"samples": 0}, "samples"),
    ],
)
def test_bad_values_are_named(values, words):
    with pytest.raises(UserError) as caught:
        SamplingConfig(**values)
    assert words in str(caught.value)


def theirs(logits, seen, config):
    """The distribution of transformers' logits processors in the order in which `generate` applies them."""
    torch = pytest.importorskip("torch")
    processors = pytest.importorskip("transformers.generation.logits_process")
    steps = [processors.RepetitionPenaltyLogitsProcessor(config.repetition_penalty)]
    steps += [processors.TemperatureLogitsWarper(config.temperature)]
    steps += [processors.TopKLogitsWarper(config.top_k)] if config.top_k else []
    steps += [processors.TopPLogitsWarper(config.top_p)] if config.top_p < 1 else []
    steps += [processors.MinPLogitsWarper(config.min_p)] if config.min_p else []
    scores = torch.from_numpy(np.array(logits))
    for step in steps:
        scores = step(torch.from_numpy(np.array(seen)), scores)
    return torch.log_softmax(scores, dim=-1).numpy()


@pytest.mark.parametrize(
    "values",
    [
        {"min_p": 0.1},
        {"min_p": 0.3, "temperature": 1.5},
        {"top_k": 5, "top_p": 0.7, "min_p": 0.05, "temperature": 0.8},
        {"repetition_penalty": 1.3},
        {"repetition_penalty": 0.7, "top_p": 0.9, "temperature": 2.0},
    ],
)
def test_equals_transformers(values):
    config = SamplingConfig(**values)
    seen = np.random.default_rng(1).integers(0, V, (len(LOGITS), 4))
    seen_BV = np.zeros(LOGITS.shape, bool)
    np.put_along_axis(seen_BV, seen, True, axis=1)
    log_probs = compiled(penalized(LOGITS, seen_BV, config.repetition_penalty), config)
    np.testing.assert_allclose(log_probs, theirs(LOGITS, seen, config), rtol=1e-4, atol=1e-5)


WIDE = np.random.default_rng(2).normal(scale=1.0, size=(3, 1000)).astype(np.float32)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"top_k": 3},
        {"top_k": 400},
        {"top_p": 0.2},
        {"top_p": 0.95},
        {"min_p": 0.2},
        {"min_p": 1e-3},
        {"top_k": 50, "top_p": 0.8, "min_p": 0.01, "temperature": 1.3},
    ],
)
def test_a_chosen_token_and_its_log_prob_are_those_of_the_distribution(values):
    """Whether or not the shortlist holds all that is allowed."""
    config = SamplingConfig(**values)
    draw = jax.jit(choose, static_argnums=2)
    expected = np.asarray(compiled(WIDE, config))
    for seed in range(5):
        tokens, log_probs = draw(WIDE, jax.random.split(jax.random.key(seed), 3), config)
        chosen = np.take_along_axis(expected, np.asarray(tokens)[:, None], axis=1)[:, 0]
        assert np.isfinite(chosen).all()
        np.testing.assert_allclose(log_probs, chosen, rtol=1e-4, atol=1e-5)


def test_a_row_that_needs_the_whole_vocabulary_changes_no_other():
    """The first row is peaked; the second is flat, so that its nucleus exceeds the shortlist."""
    config, draw = SamplingConfig(top_p=0.9), jax.jit(choose, static_argnums=2)
    peaked, flat = 8 * WIDE[:1], np.zeros_like(WIDE[:1])
    for seed in range(20):
        keys = jax.random.split(jax.random.key(seed), 2)
        together, _ = draw(np.concatenate([peaked, flat]), keys, config)
        alone, _ = draw(peaked, keys[:1], config)
        assert together[0] == alone[0]


def test_frequencies_of_a_shortlist_are_those_of_the_distribution():
    config, draws = SamplingConfig(top_k=4, temperature=0.7), 4000
    logits = np.repeat(WIDE[:1], draws, axis=0)
    tokens, _ = jax.jit(choose, static_argnums=2)(logits, jax.random.split(jax.random.key(5), draws), config)
    expected = draws * np.exp(np.asarray(compiled(WIDE[:1], config))[0])
    counts = np.bincount(tokens, minlength=WIDE.shape[1])
    kept = expected > 0
    assert (counts[~kept] == 0).all()
    assert ((counts - expected)[kept] ** 2 / expected[kept]).sum() < 3 + 5 * np.sqrt(6)
