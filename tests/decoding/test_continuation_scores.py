"""Scores of given continuations equal those of a pass over each pair alone, however they are batched."""

import numpy as np
import pytest

from lm.decoding.scores import continuation_log_probs
from lm.errors import UserError
from tests.decoding.writers import END, MODELS, PROMPTS, VOCAB, WINDOW, calibrate, log_probs_of, params_of

CONTINUATIONS = ((3, 4, 5, END), (1, 6, 1), (2, 2, 9, 7, 7, 1, 8, 10, 3, 4, 5, 6), ())
every_model = pytest.mark.parametrize("name", ["rotary", "t5"])


def scores(name, prompts=PROMPTS, continuations=CONTINUATIONS, **choices):
    return continuation_log_probs(MODELS[name], params_of(name), prompts, continuations, (END,), END, VOCAB, **choices)


@every_model
@pytest.mark.parametrize("calibrator", [None, calibrate])
def test_log_probs_equal_a_forward_pass_over_each_pair(name, calibrator):
    for found, prompt, tokens in zip(scores(name, calibrator=calibrator), PROMPTS, CONTINUATIONS, strict=True):
        np.testing.assert_array_equal(found.tokens, tokens)
        assert found.log_probs.dtype == np.float32
        assert found.finished == (tokens[-1:] == (END,))
        assert found.sampling_log_probs is None
        if not tokens:
            assert found.log_probs.size == 0
            continue
        np.testing.assert_allclose(found.log_probs, log_probs_of(name, prompt, tokens), rtol=1e-4, atol=1e-4)
        if calibrator is None:
            assert found.calibrated_log_probs is None
        else:
            expected = log_probs_of(name, prompt, tokens, calibrate)
            np.testing.assert_allclose(found.calibrated_log_probs, expected, rtol=1e-4, atol=1e-4)
            assert np.abs(found.calibrated_log_probs - found.log_probs).max() > 0.01


@every_model
def test_a_pair_does_not_depend_on_the_others(name):
    """Neither on those of its batch nor on its place, also where the last batch is not full."""
    lengths = (3, 4, 3, 4, 4, 3)
    prompts = [(row + 1, row, 2)[: row % 3 + 1] for row in range(len(lengths))]
    continuations = [tuple((row * 7 + n) % VOCAB for n in range(length)) for row, length in enumerate(lengths)]
    together = scores(name, prompts, continuations, batch_size=4)
    backwards = scores(name, prompts[::-1], continuations[::-1], batch_size=4)[::-1]
    for one, other, length in zip(together, backwards, lengths, strict=True):
        assert one.log_probs.size == length
        np.testing.assert_allclose(one.log_probs, other.log_probs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["rotary"])
def test_few_logits_at_a_time_give_the_same(name, monkeypatch):
    whole = scores(name)
    monkeypatch.setattr("lm.decoding.scores._MOST_LOGITS", 5 * VOCAB)
    # Another calibrator compiles again.
    for one, other in zip(scores(name, calibrator=lambda logits: logits), whole, strict=True):
        np.testing.assert_allclose(one.log_probs, other.log_probs, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(one.log_probs, one.calibrated_log_probs)


@every_model
def test_a_pair_that_does_not_fit_is_named(name):
    long = [1] * (WINDOW + 1)
    with pytest.raises(UserError, match=r"continuation 2 has 13 tokens.*max_length=12 leaves room for"):
        scores(name, PROMPTS[:2], [(1,), long])
    with pytest.raises(ValueError, match="2 prompts, but 1"):
        scores(name, PROMPTS[:2], [(1,)])
