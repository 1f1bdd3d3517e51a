"""What every way to write shares: it returns what the model says, raw and calibrated, whatever else is written."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import pytest

from lm.decoding import beam_search, progress
from lm.decoding.beam_search import BeamSearchConfig, search
from lm.decoding.sample import generate
from lm.decoding.sampling import SamplingConfig, sampling_log_probs
from lm.decoding.scores import continuation_log_probs
from lm.errors import UserError
from lm.models.build import make_body
from lm.modules.config import ModelConfig
from tests.decoding.writers import (
    END,
    MODELS,
    PADDED,
    PROMPTS,
    VOCAB,
    WINDOW,
    calibrate,
    log_probs_of,
    params_of,
    scores_of,
)

NEW = 6  # what the longest prompt leaves of the window
WAYS = {
    "greedy": SamplingConfig(max_new_tokens=NEW, temperature=0.0),
    "sampling": SamplingConfig(max_new_tokens=NEW, temperature=1.5, top_k=8, top_p=0.95),
    "one beam": BeamSearchConfig(beams=1, max_new_tokens=NEW),
    "beams": BeamSearchConfig(beams=3, max_new_tokens=NEW, length_penalty=0.0),
}
MODES = [*(("rotary", way) for way in WAYS), ("t5", "sampling"), ("t5", "beams")]
# One beam and no randomness are special cases of the others; each way compiles its own programs.
every_way = pytest.mark.parametrize(
    ("name", "way"), [*MODES, *(pytest.param("t5", way, marks=pytest.mark.slow) for way in ("greedy", "one beam"))]
)
every_model = pytest.mark.parametrize("name", ["rotary", "t5"])
every_model_greedily = pytest.mark.parametrize("name", ["rotary", pytest.param("t5", marks=pytest.mark.slow)])


def write(name, config, prompts=PROMPTS, calibrator=calibrate, ends=(END,), start=END):
    decode = search if isinstance(config, BeamSearchConfig) else generate
    return decode(MODELS[name], params_of(name), prompts, config, ends, start, VOCAB, calibrator)


@functools.cache
def written(name, way):
    return write(name, WAYS[way])


@every_way
def test_log_probs_equal_a_reforward_raw_and_calibrated(name, way):
    for found, prompt in zip(written(name, way), PROMPTS, strict=True):
        tokens = found.tokens.tolist()
        raw, calibrated = (log_probs_of(name, prompt, tokens, calibrator) for calibrator in (None, calibrate))
        np.testing.assert_allclose(found.log_probs, raw, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found.calibrated_log_probs, calibrated, rtol=1e-4, atol=1e-4)
        assert np.abs(raw - calibrated).max() > 0.01, "a calibrator that changes nothing can't tell"


@every_way
def test_log_probs_are_those_of_the_scores_of_given_continuations(name, way):
    found = written(name, way)
    given = [one.tokens.tolist() for one in found]
    scores = continuation_log_probs(MODELS[name], params_of(name), PROMPTS, given, (END,), END, VOCAB, calibrate)
    for one, other in zip(found, scores, strict=True):
        np.testing.assert_allclose(one.log_probs, other.log_probs, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(one.calibrated_log_probs, other.calibrated_log_probs, rtol=1e-4, atol=1e-4)
        assert one.finished == other.finished


@every_way
def test_a_continuation_ends_with_the_end_of_text_or_at_the_limit(name, way):
    for found in written(name, way):
        tokens = found.tokens.tolist()
        assert 0 <= min(tokens) <= max(tokens) < VOCAB
        assert END not in tokens[:-1]
        assert found.finished == (tokens[-1] == END)
        assert found.finished or len(tokens) == NEW
        assert len(tokens) == found.log_probs.size == found.calibrated_log_probs.size


def test_some_end_early_and_some_at_the_limit():
    assert {found.finished for name, way in MODES for found in written(name, way)} == {True, False}


@every_model
def test_sampling_log_probs_are_those_of_the_calibrated_sampling_distribution(name):
    config = WAYS["sampling"]
    for found, prompt in zip(written(name, "sampling"), PROMPTS, strict=True):
        scores = jnp.asarray(scores_of(name, prompt, found.tokens.tolist(), calibrate), jnp.float32)
        expected = np.asarray(sampling_log_probs(scores, config))[range(found.tokens.size), found.tokens]
        assert np.isfinite(expected).all(), "a token that was ruled out was chosen"
        np.testing.assert_allclose(found.sampling_log_probs, expected, rtol=1e-3, atol=1e-4)
    assert all(found.sampling_log_probs is None for found in written(name, "beams"))


@every_model_greedily
def test_greedy_takes_the_calibrated_favourite_as_one_beam_does(name):
    differ = False
    for found, beam, prompt in zip(written(name, "greedy"), written(name, "one beam"), PROMPTS, strict=True):
        np.testing.assert_array_equal(found.tokens, beam.tokens)
        np.testing.assert_allclose(found.log_probs, beam.log_probs, rtol=1e-4, atol=1e-5)
        tokens = found.tokens.tolist()
        np.testing.assert_array_equal(tokens, scores_of(name, prompt, tokens, calibrate).argmax(axis=1))
        differ |= (tokens != scores_of(name, prompt, tokens).argmax(axis=1)).any()
    assert differ, "a calibrator that keeps the favourites can't tell"


@every_model_greedily
def test_beams_find_likelier_texts_than_greedy_by_what_is_calibrated(name):
    one, three = (sum(found.calibrated_log_probs.sum() for found in written(name, way)) for way in ("greedy", "beams"))
    assert one < three


@every_way
def test_a_continuation_does_not_depend_on_the_other_prompts(name, way):
    others = (PROMPTS[0], (3, 3, 3, 3, 3), PROMPTS[2], (10, 9, 8))
    for row, found in enumerate(write(name, WAYS[way], others)):
        if others[row] == PROMPTS[row]:
            np.testing.assert_array_equal(found.tokens, written(name, way)[row].tokens)
            np.testing.assert_allclose(found.log_probs, written(name, way)[row].log_probs, rtol=1e-4, atol=1e-5)


@every_model
def test_the_seed_and_the_place_decide_what_is_sampled(name):
    sampled = written(name, "sampling")
    again, other = (write(name, dataclasses.replace(WAYS["sampling"], seed=seed)) for seed in (0, 1))
    assert [found.tokens.tolist() for found in again] == [found.tokens.tolist() for found in sampled]
    assert [found.tokens.tolist() for found in other] != [found.tokens.tolist() for found in sampled]
    alike = write(name, WAYS["sampling"], (PROMPTS[0],) * 4)
    assert len({tuple(found.tokens.tolist()) for found in alike}) > 1


@every_model
def test_another_seed_length_or_prompt_of_like_length_compiles_nothing(name):
    def compiled():
        return sum(each._cache_size() for each in (progress.begun, progress.advanced, beam_search._searched))

    sampling, beams = WAYS["sampling"], WAYS["beams"]
    write(name, sampling), write(name, beams)
    before = compiled()
    assert before > 0
    write(name, dataclasses.replace(sampling, seed=3, max_new_tokens=2))
    write(name, beams, ((1, 2, 3, 4, 5), (7,), (8, 9), (5, 1)))
    write(name, dataclasses.replace(beams, max_new_tokens=5))
    assert compiled() == before


@pytest.mark.parametrize("config", [WAYS["sampling"], WAYS["beams"]], ids=["sampling", "beams"])
def test_an_encoder_decoder_stops_at_its_longest_output(config):
    never = 6  # an id that these texts don't choose
    found = write("t5", dataclasses.replace(config, max_new_tokens=3 * WINDOW), ends=(never,))
    lengths = {one.tokens.size for one in found if not one.finished}
    assert lengths == {WINDOW}


def test_beams_end_where_a_decoders_window_is_full():
    long = tuple(n % VOCAB for n in range(3, 30))
    config = dataclasses.replace(WAYS["beams"], max_new_tokens=WINDOW)
    for found, prompt in zip(write("rotary", config, ((2,) * 9, long), ends=()), (9, 11), strict=True):
        assert found.tokens.size == WINDOW - prompt + 1
        assert not found.finished


def test_what_a_model_cannot_write_after_is_named():
    with pytest.raises(UserError, match=r"prompt 2 has 13 tokens, but config\.model\.max_length=12"):
        write("t5", WAYS["greedy"], ((1,), (1,) * 13))
    with pytest.raises(UserError, match="needs one"):
        write("t5", WAYS["greedy"], start=None)
    encoder = make_body(ModelConfig(architecture="encoder", vocab_size=PADDED, width=16))
    for decode, config in ((generate, WAYS["greedy"]), (search, WAYS["beams"])):
        with pytest.raises(UserError, match=r"config\.model\.architecture=encoder does not generate text"):
            decode(encoder, {}, PROMPTS, config)
    for name in ("rotary", "t5"):
        with pytest.raises(ValueError, match="at least one token"):
            write(name, WAYS["greedy"], ((1,), ()))
        assert write(name, WAYS["beams"], ()) == write(name, WAYS["greedy"], ()) == []
