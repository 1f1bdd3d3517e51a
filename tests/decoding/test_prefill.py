"""What is read of prompts: in chunks, once for all samples, once for what begins alike; and layers that are stacked."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.decoding.beam_search import BeamSearchConfig, search
from lm.decoding.progress import Choice
from lm.decoding.sample import Writing, generate
from lm.decoding.sampling import SamplingConfig
from lm.decoding.scores import continuation_log_probs
from lm.decoding.shared_prefixes import groups_with_shared_prefix, rows_to_read
from lm.decoding.step import prefill
from lm.models.unrolled import unrolled
from lm.modules.stack import empty_caches
from tests.decoding.writers import END, MODELS, PROMPTS, VOCAB, WINDOW, log_probs_of, params_of

SAMPLING = SamplingConfig(max_new_tokens=5, temperature=1.5)
LONG = 48  # a window with room for prefixes that are worth sharing


def long_model(name):
    """A model with a longer window, and its parameters."""
    model = MODELS[name].clone(config=dataclasses.replace(MODELS[name].config, max_length=LONG))
    params = dict(params_of(name))
    if name == "learned":
        table = params["position_embedding"]["embedding"]
        params["position_embedding"] = {"embedding": np.resize(table, (LONG, table.shape[1]))}
    return model, params


def random_prompts(*lengths):
    random = np.random.default_rng(1)
    return [random.integers(1, VOCAB, length).tolist() for length in lengths]


@pytest.mark.parametrize("chunk", [5, 8])
def test_reading_in_chunks_equals_reading_at_once(chunk):
    model, params = long_model("rotary")
    tokens_BP, lengths_B = np.array(random_prompts(16, 16, 16), np.int32), np.array([16, 3, 8], np.int32)

    def read(chunk):
        caches = empty_caches(model.config, 3, 17)
        return jax.jit(lambda: prefill(model, params, tokens_BP, lengths_B, caches, chunk=chunk))()

    (whole_BD, whole), (last_BD, caches) = read(16), read(chunk)
    np.testing.assert_allclose(last_BD, whole_BD, rtol=1e-4, atol=1e-5)
    for one, other in zip(jax.tree.leaves(caches), jax.tree.leaves(whole), strict=True):
        for row, length in enumerate(lengths_B):
            np.testing.assert_allclose(one[row, :, :length], other[row, :, :length], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["rotary", pytest.param("t5", marks=pytest.mark.slow)])
def test_samples_of_one_reading_are_those_of_a_prompt_that_is_given_again(name):
    model, params, rules = MODELS[name], params_of(name), {"ends": (END,), "start": END, "vocab_size": VOCAB}
    together = generate(model, params, PROMPTS, dataclasses.replace(SAMPLING, samples=3), **rules)
    apart = generate(model, params, [prompt for prompt in PROMPTS for _ in range(3)], SAMPLING, **rules)
    for one, other in zip(together, apart, strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)
        np.testing.assert_allclose(one.log_probs, other.log_probs, rtol=1e-4, atol=1e-5)
    assert len({tuple(one.tokens) for one in together[:3]}) > 1


def test_lengths_and_batches_of_prompts_change_nothing():
    model, params = long_model("rotary")
    prompts = random_prompts(20, 3, 5, 2)
    alone, pairs, together = (
        generate(model, params, prompts, SAMPLING, vocab_size=VOCAB, batch_size=size) for size in (1, 2, 64)
    )
    for found in (pairs, together):
        for one, other in zip(found, alone, strict=True):
            np.testing.assert_array_equal(one.tokens, other.tokens)
            np.testing.assert_allclose(one.log_probs, other.log_probs, rtol=1e-4, atol=1e-5)


def test_the_cache_has_room_for_the_prompt_and_the_new_tokens_only():
    model, params = long_model("rotary")
    writing = Writing(model, params, [[1] * 5], SAMPLING, Choice(SAMPLING.distribution))
    assert writing.held.caches.length == 8 + 16 < LONG


def test_what_is_held_is_not_read_again():
    model, params = long_model("rotary")
    greedy, first = SamplingConfig(max_new_tokens=6, temperature=0.0), random_prompts(9)[0]
    choice = Choice(greedy.distribution, vocab_size=VOCAB)
    one = Writing(model, params, [first], greedy, choice)
    one.advance(6)
    held = one.held
    assert held.tokens == [*first, *one.tokens()[:-1]]
    second = [*first, *one.tokens(), 3, 4, 5]
    expected = generate(model, params, [second], greedy, vocab_size=VOCAB)[0]
    # A wrong cache would change the reply, so it must be used; a right one must not.
    wrong = dataclasses.replace(held, caches=jax.tree.map(jnp.zeros_like, held.caches))
    for caches, same in ((wrong, False), (held, True)):
        two = Writing(model, params, [second], greedy, choice, held=caches)
        two.advance(6)
        (reply,) = two.continuations()
        assert np.allclose(reply.log_probs, expected.log_probs, rtol=1e-4, atol=1e-5) == same
    np.testing.assert_array_equal(reply.tokens, expected.tokens)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rotary", "t5"])
def test_stacked_layers_write_what_unrolled_ones_write(name):
    config = dataclasses.replace(MODELS[name].config, scan_layers=True, layers=2)
    stacked, nothing = MODELS[name].clone(config=config), jnp.zeros((1, 1), jnp.int32)
    params = jax.jit(stacked.init)(jax.random.key(2), *([nothing] * (2 if name == "t5" else 1)))["params"]
    params = jax.tree.map(lambda leaf: leaf * 8, params)
    model, layers = unrolled(stacked, params)
    assert "layer_1" in layers["decoder"]
    rules = {"ends": (END,), "start": END, "vocab_size": VOCAB}
    for write, how in ((generate, SAMPLING), (search, BeamSearchConfig(2, 5))):
        for one, other in zip(
            write(stacked, params, PROMPTS, how, **rules), write(model, layers, PROMPTS, how, **rules), strict=True
        ):
            np.testing.assert_array_equal(one.tokens, other.tokens)
            np.testing.assert_array_equal(one.log_probs, other.log_probs)
    given = [one.tokens.tolist() for one in generate(model, layers, PROMPTS, SAMPLING, **rules)]
    for one, other in zip(
        continuation_log_probs(stacked, params, PROMPTS, given, **rules),
        continuation_log_probs(model, layers, PROMPTS, given, **rules),
        strict=True,
    ):
        np.testing.assert_allclose(one.log_probs, other.log_probs, rtol=1e-4, atol=1e-5)


def test_several_ends():
    model, params = MODELS["rotary"], params_of("rotary")
    plain = SamplingConfig(max_new_tokens=6)
    uncut = generate(model, params, PROMPTS, plain, vocab_size=VOCAB)
    ends = tuple({int(one.tokens[2]) for one in uncut[:2]})
    for short, long in zip(generate(model, params, PROMPTS, plain, ends, vocab_size=VOCAB), uncut, strict=True):
        length = next((n + 1 for n, token in enumerate(long.tokens) if token in ends), 6)
        np.testing.assert_array_equal(short.tokens, long.tokens[:length])
        assert short.finished == (long.tokens[length - 1] in ends)
    beams = search(model, params, PROMPTS, BeamSearchConfig(2, 6), ends, vocab_size=VOCAB)
    assert all(token not in ends for one in beams for token in one.tokens[:-1])


def test_a_caller_can_halt_a_row():
    model, params = long_model("rotary")
    config, seen = SamplingConfig(max_new_tokens=30), []

    def halt(index, tokens):
        seen.append((index, len(tokens)))
        return index == 1 and len(tokens) > 10

    whole = generate(model, params, PROMPTS, config, vocab_size=VOCAB)
    halted = generate(model, params, PROMPTS, config, vocab_size=VOCAB, halt=halt)
    assert 10 < halted[1].tokens.size < 30
    for row, (one, other) in enumerate(zip(halted, whole, strict=True)):
        np.testing.assert_array_equal(one.tokens, other.tokens[: one.tokens.size])
        assert row == 1 or one.tokens.size == 30
    assert {index for index, _ in seen} == set(range(len(PROMPTS)))


def test_rows_that_begin_alike_are_read_once():
    head = list(range(20))
    sequences = [[*head, 1, 2], [*head, 1], [7] * 30, [*head, 1, 2, 3], [*head, 5]]
    rows = rows_to_read(sequences, [21, 20, 29, 22, 20])
    assert sorted(sorted(row.pairs) for row in rows) == [[0, 1, 3], [2], [4]]
    groups = groups_with_shared_prefix(rows)
    assert sorted((group.shared, len(group.rows)) for group in groups) == [(0, 1), (20, 2)]
    needed_early = groups_with_shared_prefix(rows_to_read(sequences, [21, 3, 29, 22, 20]))
    assert [(group.shared, len(group.rows)) for group in needed_early] == [(0, 3)]


@pytest.mark.parametrize("name", ["rotary", pytest.param("learned", marks=pytest.mark.slow)])
def test_scores_with_a_shared_beginning_equal_those_of_each_pair_alone(name):
    """Up to the window's end, which padding exceeds."""
    model, params = long_model(name)
    head, (*tails, other) = random_prompts(17)[0], random_prompts(1, 4, 9, 28, 22)
    prompts = [[*head, *tail] for tail in tails for _ in range(3)] + [other]
    continuations = [[1], [2, 3], [4, 5, 6]] * len(tails) + [[9, 9]]
    found = continuation_log_probs(model, params, prompts, continuations, vocab_size=VOCAB)
    rows = np.zeros((len(prompts), LONG), np.int32)
    for row, prompt, tokens in zip(rows, prompts, continuations, strict=True):
        row[: len(prompt) + len(tokens)] = [*prompt, *tokens]
    whole = jax.jit(model.apply)({"params": params}, rows)
    for one, prompt, tokens, logits in zip(found, prompts, continuations, whole, strict=True):
        logits = logits[len(prompt) - 1 : len(prompt) + len(tokens) - 1, :VOCAB]
        expected = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), np.array(tokens)[:, None], axis=1)[:, 0]
        np.testing.assert_allclose(one.log_probs, expected, rtol=1e-4, atol=1e-4)
        assert np.isfinite(one.log_probs).all()
        assert one.greedy == (np.asarray(logits).argmax(axis=1) == tokens).all()
        assert one.total_log_prob == pytest.approx(expected.sum(), rel=1e-4)


@pytest.mark.parametrize("name", [pytest.param("rotary", marks=pytest.mark.slow), "t5"])
def test_what_greedy_decoding_gives_is_greedy(name):
    greedy = SamplingConfig(max_new_tokens=4, temperature=0.0)
    rules = {"ends": (END,), "start": END, "vocab_size": VOCAB}
    written = [one.tokens.tolist() for one in generate(MODELS[name], params_of(name), PROMPTS, greedy, **rules)]
    changed = [[*tokens[:-1], (tokens[-1] + 1) % VOCAB] for tokens in written]
    for tokens, is_greedy in ((written, True), (changed, False)):
        scores = continuation_log_probs(MODELS[name], params_of(name), PROMPTS, tokens, **rules)
        assert [one.greedy for one in scores] == [is_greedy] * len(PROMPTS)
    np.testing.assert_allclose(scores[0].log_probs, log_probs_of(name, PROMPTS[0], changed[0]), rtol=1e-4, atol=1e-4)
    assert len(PROMPTS[0]) + 4 <= WINDOW
