"""Sampling from a decoder, also beyond its window: it returns what the model says, whatever else is in the batch.

`test_writers` holds the properties that every way to write has.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.decoding.sample import generate
from lm.decoding.sampling import SamplingConfig, sampling_log_probs
from tests.decoding.writers import MODELS, PADDED, VOCAB, WINDOW, logits_before, params_of

NEW = 16  # more than the window has room for
PROMPTS = ((1, 2, 3, 4, 5, 6), (7, 8), (9,))
GREEDY = SamplingConfig(max_new_tokens=NEW, temperature=0.0)
WARM = SamplingConfig(max_new_tokens=NEW, temperature=1.3, top_k=7, top_p=0.9)
PLAIN = SamplingConfig(max_new_tokens=NEW)
TOP_ONE = SamplingConfig(max_new_tokens=NEW, temperature=0.7, top_k=1)
SETTINGS = [("rotary", PLAIN), ("rotary", WARM), ("rotary", GREEDY), ("rotary", TOP_ONE), ("learned", WARM)]
every_setting = pytest.mark.parametrize(("name", "config"), SETTINGS)


@functools.cache
def continuations(name, config, prompts=PROMPTS, ends=()):
    return generate(MODELS[name], params_of(name), prompts, config, ends, vocab_size=VOCAB)


def logits_after(name, context):
    """The model's logits after a context, without a cache; padding ids ruled out."""
    return np.where(np.arange(PADDED) < VOCAB, logits_before(name, context, [0])[0], -np.inf)


def contexts(prompt, tokens):
    """What the model had in view before each token: all, until the window is full; then its last half, and so on."""
    row, start = list(prompt), max(0, len(prompt) - (WINDOW - 1))
    for token in tokens.tolist():
        if len(row) - start == WINDOW:
            start = len(row) - WINDOW // 2
        yield row[start:]
        row.append(token)


@functools.cache
def reforwarded(name, config):
    """For every continuation, the logits before each of its tokens, [T, V]."""
    return [
        np.stack([logits_after(name, context) for context in contexts(prompt, generation.tokens)])
        for prompt, generation in zip(PROMPTS, continuations(name, config), strict=True)
    ]


def of_tokens(scores_TV, tokens):
    return np.take_along_axis(np.asarray(scores_TV), tokens[:, None].astype(int), axis=1)[:, 0]


@every_setting
def test_log_probs_equal_a_reforward(name, config):
    for generation, logits_TV in zip(continuations(name, config), reforwarded(name, config), strict=True):
        expected = of_tokens(jax.nn.log_softmax(logits_TV), generation.tokens)
        np.testing.assert_allclose(generation.log_probs, expected, rtol=1e-4, atol=1e-4)
        assert generation.log_probs.max() < 0


@every_setting
def test_sampling_log_probs_are_those_of_the_sampling_distribution(name, config):
    """`sampling_log_probs` itself is held against its definition in test_sampling."""
    for generation, logits_TV in zip(continuations(name, config), reforwarded(name, config), strict=True):
        expected = of_tokens(sampling_log_probs(jnp.asarray(logits_TV), config), generation.tokens)
        assert np.isfinite(expected).all(), "a token that was ruled out was chosen"
        np.testing.assert_allclose(generation.sampling_log_probs, expected, rtol=1e-4, atol=1e-4)


@every_setting
def test_continuations_go_past_the_window_and_avoid_padding_ids(name, config):
    for generation in continuations(name, config):
        assert len(generation.tokens) == len(generation.log_probs) == len(generation.sampling_log_probs) == NEW
        assert generation.tokens.min() >= 0
        assert generation.tokens.max() < VOCAB


def test_types():
    """Also for a row that is done while others go on."""
    for generation in continuations("rotary", PLAIN):
        assert np.issubdtype(generation.tokens.dtype, np.integer)
        assert generation.log_probs.dtype == generation.sampling_log_probs.dtype == np.float32


def test_padding_ids_would_be_chosen_if_they_were_allowed():
    for name in MODELS:
        everywhere = logits_before(name, [1], [*range(VOCAB)])
        assert (everywhere.argmax(axis=-1) >= VOCAB).any(), "the models of this file can't tell"


def test_greedy_takes_the_likeliest_token_of_a_reforward():
    for generation, logits_TV in zip(continuations("rotary", GREEDY), reforwarded("rotary", GREEDY), strict=True):
        np.testing.assert_array_equal(generation.tokens, logits_TV.argmax(axis=-1))
        np.testing.assert_array_equal(generation.sampling_log_probs, 0)


def test_one_candidate_is_certain_to_be_sampled_but_not_to_the_model():
    for generation, greedy in zip(continuations("rotary", TOP_ONE), continuations("rotary", GREEDY), strict=True):
        np.testing.assert_array_equal(generation.tokens, greedy.tokens)
        np.testing.assert_allclose(generation.sampling_log_probs, 0, atol=1e-6)
        assert (generation.log_probs < -1e-3).all()


def test_a_continuation_does_not_depend_on_the_other_prompts():
    others = ((3, 3), PROMPTS[1], (10, 9, 8, 7, 6, 5))
    here, there = continuations("rotary", WARM)[1], continuations("rotary", WARM, others)[1]
    np.testing.assert_array_equal(here.tokens, there.tokens)
    np.testing.assert_allclose(here.log_probs, there.log_probs, rtol=1e-4, atol=1e-5)


def test_equal_prompts_in_different_places_continue_differently():
    texts = {tuple(generation.tokens) for generation in continuations("rotary", PLAIN, (PROMPTS[0],) * 3)}
    assert len(texts) == 3


def test_every_token_and_every_window_are_sampled_independently():
    indifferent = jax.tree.map(np.zeros_like, params_of("rotary"))
    for generation, prompt in zip(
        generate(MODELS["rotary"], indifferent, PROMPTS, PLAIN, vocab_size=VOCAB), PROMPTS, strict=True
    ):
        np.testing.assert_allclose(generation.log_probs, -np.log(VOCAB), rtol=1e-5)
        room = WINDOW - len(prompt)
        first, second = generation.tokens[:room][: WINDOW // 2], generation.tokens[room:][: WINDOW // 2]
        length = min(len(first), len(second))
        assert length >= 5
        assert first[:length].tolist() != second[:length].tolist()
        assert len(set(first.tolist())) > 1, "every token is drawn with the same noise"


def test_the_seed_decides_the_text():
    first = continuations("rotary", PLAIN)
    again = generate(MODELS["rotary"], params_of("rotary"), PROMPTS, PLAIN, vocab_size=VOCAB)
    other = continuations("rotary", SamplingConfig(max_new_tokens=NEW, seed=1))
    for row in range(len(PROMPTS)):
        np.testing.assert_array_equal(first[row].tokens, again[row].tokens)
        np.testing.assert_array_equal(first[row].log_probs, again[row].log_probs)
        assert first[row].tokens.tolist() != other[row].tokens.tolist()


def test_the_end_of_text_cuts_a_continuation_and_changes_nothing_before_it():
    uncut = continuations("rotary", PLAIN)
    end = int(uncut[0].tokens[8])  # beyond the first window
    cut = continuations("rotary", PLAIN, ends=(end,))
    lengths = []
    for short, long in zip(cut, uncut, strict=True):
        length = [*long.tokens.tolist(), end].index(end) + 1
        np.testing.assert_array_equal(short.tokens, long.tokens[:length])
        np.testing.assert_allclose(short.log_probs, long.log_probs[:length], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(short.sampling_log_probs, long.sampling_log_probs[:length], rtol=1e-4, atol=1e-5)
        assert short.finished == (end in long.tokens), "also if others go on in another window"
        lengths.append(len(short.tokens))
    assert lengths[0] <= 9
    assert len(set(lengths)) > 1


def test_sampling_frequencies_match_the_distribution():
    rows = 3000
    config = SamplingConfig(max_new_tokens=1, temperature=1.3, top_p=0.95)
    drawn = [generation.tokens[0] for generation in continuations("rotary", config, (PROMPTS[1],) * rows)]
    counts = np.bincount(drawn, minlength=PADDED)
    logits_V = jnp.asarray(logits_after("rotary", PROMPTS[1]))
    expected = rows * np.exp(np.asarray(sampling_log_probs(logits_V[None], config))[0], dtype=np.float64)
    assert (counts[expected == 0] == 0).all()
    likely = expected > 0
    squares = ((counts - expected)[likely] ** 2 / expected[likely]).sum()
    freedom = np.count_nonzero(likely) - 1
    assert freedom >= 3
    # A chi-square variable has this mean and this standard deviation.
    assert squares < freedom + 5 * np.sqrt(2 * freedom)


def test_of_a_prompt_longer_than_the_window_the_end_is_seen():
    long = tuple(n % VOCAB for n in range(3, 30))
    seen = long[-(WINDOW - 1) :]
    prompts = (long, seen, (1, *seen))
    one, two, three = continuations("rotary", GREEDY, prompts)
    np.testing.assert_array_equal(one.tokens, two.tokens)
    np.testing.assert_array_equal(one.tokens, three.tokens)
    assert one.tokens[0] == logits_after("rotary", seen).argmax()


def test_an_empty_prompt_is_an_error():
    with pytest.raises(ValueError, match="at least one token"):
        generate(MODELS["rotary"], params_of("rotary"), [[1], []], GREEDY)
