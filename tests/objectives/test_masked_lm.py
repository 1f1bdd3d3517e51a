"""Masked language modelling: what is hidden, how, and that nothing tells what it was."""

import numpy as np
import pytest

from lm.data.store import Corpus
from lm.data.windows import TrainBatches
from lm.errors import UserError
from lm.objectives.corruption import RowRandom
from lm.objectives.masked_lm import SPAN_LENGTHS, Masking, begins_span, framed
from lm.objectives.objective import ObjectiveConfig
from tests.objectives.toy_corpus import corpus_for, store_of, tokenizer_for, toy_task

OBJECTIVES = {mode: ObjectiveConfig(name="masked", masking=mode) for mode in ("token", "whole_word", "span")}
TOKEN = OBJECTIVES["token"]
MASKING = {mode: Masking.of(objective, tokenizer_for(objective)) for mode, objective in OBJECTIVES.items()}
B, T = 64, 66


WINDOWS = TrainBatches(corpus_for(TOKEN).train, T - 2, B, seed=0)[0]  # of many documents
ORIGINAL = framed(WINDOWS, MASKING["token"].classify, MASKING["token"].separate)


def masked(mode, batch=ORIGINAL, seed=0):
    return MASKING[mode].apply(batch, RowRandom((seed,), len(batch["tokens"]), slice(None)))


def hidden_places(result):
    hidden = np.zeros(result["tokens"].shape, bool)
    np.put_along_axis(hidden, result["places"], result["weights"] > 0, axis=1)
    return hidden


@pytest.mark.parametrize("mode", OBJECTIVES)
def test_every_row_keeps_the_rate_and_special_tokens_stay(mode):
    result = masked(mode)
    ordinary = MASKING[mode].ordinary_V[ORIGINAL["tokens"]]
    assert not ordinary.all(axis=1).any(), "each row has [CLS] and [SEP]"
    hidden = hidden_places(result)
    assert not (hidden & ~ordinary).any()
    wanted = np.rint(0.15 * ordinary.sum(axis=1))
    np.testing.assert_array_equal(hidden.sum(axis=1), result["weights"].sum(axis=1))  # no place twice
    if mode == "token":
        np.testing.assert_array_equal(hidden.sum(axis=1), wanted)
    else:
        assert np.all(hidden.sum(axis=1) <= wanted)
        assert hidden.sum() > 0.9 * wanted.sum()


@pytest.mark.parametrize("mode", OBJECTIVES)
def test_targets_are_what_was_there_and_the_rest_is_as_it_was(mode):
    result = masked(mode)
    expected = np.take_along_axis(ORIGINAL["tokens"], result["places"], axis=1)
    counted = result["weights"] > 0
    np.testing.assert_array_equal(result["targets"][counted], expected[counted])
    hidden = hidden_places(result)
    np.testing.assert_array_equal(result["tokens"][~hidden], ORIGINAL["tokens"][~hidden])
    assert result["places"].shape == (B, round(0.15 * T))


@pytest.mark.parametrize("mode", OBJECTIVES)
def test_four_fifths_become_the_mask_and_a_tenth_each_another_token_or_nothing(mode):
    masks = others = same = 0
    for seed in range(40):
        result = masked(mode, seed=seed)
        hidden = hidden_places(result)
        now, before = result["tokens"][hidden], ORIGINAL["tokens"][hidden]
        masks += (now == MASKING[mode].mask).sum()
        others += ((now != MASKING[mode].mask) & (now != before)).sum()
        same += (now == before).sum()
    total = masks + others + same
    # The tokens of a span share their fate: some ten of them are as good as one.
    bound = 5 / np.sqrt(total / (10 if mode == "span" else 1))
    assert abs(masks / total - 0.8) < bound * 0.4
    assert abs(others / total - 0.1) < bound * 0.3
    assert abs(same / total - 0.1) < bound * 0.3


def test_other_tokens_are_any_ordinary_ones():
    drawn = []
    for seed in range(60):
        result = masked("token", seed=seed)
        changed = hidden_places(result) & (result["tokens"] != MASKING["token"].mask)
        drawn.append(result["tokens"][changed & (result["tokens"] != ORIGINAL["tokens"])])
    drawn = np.unique(np.concatenate(drawn))
    assert MASKING["token"].ordinary_V[drawn].all()
    assert len(drawn) > 0.95 * MASKING["token"].ordinary_V.sum()


def words_of(row):
    """The number of each token's word, by reading the text."""
    tokenizer = tokenizer_for(TOKEN)
    numbers, number, open_word, segments = [], -1, False, row["segments"]
    for place, token in enumerate(row["tokens"]):
        text = tokenizer.decode([token], skip_special_tokens=False)
        ordinary = MASKING["token"].ordinary_V[token]
        goes_on = ordinary and open_word and text[0].isalnum() and segments[place] == segments[place - 1]
        number += not goes_on
        open_word = ordinary and text[-1].isalnum()
        numbers.append(number)
    return np.array(numbers)


@pytest.mark.parametrize("mode", ["whole_word", "span"])
def test_words_are_never_half_hidden(mode):
    hidden, token_hidden = hidden_places(masked(mode)), hidden_places(masked("token"))
    halved_by_token = 0
    for row in range(B):
        words = words_of({name: ORIGINAL[name][row] for name in ("tokens", "segments")})
        for word in np.unique(words):
            assert len(set(hidden[row, words == word])) == 1
            halved_by_token += len(set(token_hidden[row, words == word])) > 1
    assert halved_by_token > 50, "the text has words of several tokens"


def test_spans_have_the_published_lengths_and_are_treated_alike():
    assert abs((np.arange(1, 11) * SPAN_LENGTHS).sum() / SPAN_LENGTHS.sum() - 3.8) < 0.01
    words = np.broadcast_to(np.arange(4000), (5, 4000))
    starts = np.nonzero(begins_span(words, RowRandom((0,), 5, slice(None))).ravel())[0]
    lengths = np.bincount(np.diff(starts), minlength=11)
    expected = SPAN_LENGTHS / SPAN_LENGTHS.sum()
    assert np.all(np.abs(lengths[1:11] / len(starts) - expected) < 5 * np.sqrt(expected / len(starts)))
    runs = {}
    for mode in ("whole_word", "span"):
        hidden = hidden_places(masked(mode))
        runs[mode] = hidden.sum() / (np.diff(hidden.astype(int), axis=1) == 1).sum()
    assert runs["span"] > 1.7 * runs["whole_word"]
    result = masked("span")
    hidden, is_mask = hidden_places(result), result["tokens"] == MASKING["span"].mask
    for row in range(B):
        words = words_of({name: ORIGINAL[name][row] for name in ("tokens", "segments")})
        for word in np.unique(words[hidden[row]]):
            assert len(set(is_mask[row, words == word])) == 1


def test_what_a_mask_hides_does_not_show():
    result = masked("token")
    is_mask = result["tokens"] == MASKING["token"].mask
    other = dict(ORIGINAL)
    ordinary = np.flatnonzero(MASKING["token"].ordinary_V)
    other["tokens"] = np.where(is_mask, ordinary[(ORIGINAL["tokens"] * 7) % len(ordinary)], ORIGINAL["tokens"])
    assert (other["tokens"] != ORIGINAL["tokens"]).sum() > 100
    changed = masked("token", other)
    np.testing.assert_array_equal(changed["tokens"], result["tokens"])
    assert (changed["targets"] != result["targets"]).any()


def test_a_row_has_special_tokens_and_its_documents_stay_separate():
    tokens, segments, positions = (ORIGINAL[name] for name in ("tokens", "segments", "positions"))
    masking = MASKING["token"]
    assert (tokens[:, 0] == masking.classify).all()
    assert (tokens[:, -1] == masking.separate).all()
    assert not np.isin(tokens[:, 1:-1], [masking.classify, masking.separate, masking.mask]).any()
    end = tokenizer_for(TOKEN).end_of_text
    begins = np.diff(segments, axis=1) > 0
    assert begins.any()
    assert (tokens[:, 1:][begins] == end).all()
    assert (positions[:, 1:][begins] == 0).all()
    assert (positions[:, 0] == 0).all()
    assert not ORIGINAL["types"].any()


def test_an_epoch_later_other_tokens_are_hidden():
    task = toy_task(TOKEN)
    windows = (corpus_for(TOKEN).train.num_tokens - 1) // 30
    batches = task.train_batches(corpus_for(TOKEN), windows, seed=0)
    first, second = batches[0], batches[1]

    def originals_of(batch):
        tokens = batch["tokens"].copy()
        targets = np.where(batch["weights"] > 0, batch["targets"], np.take_along_axis(tokens, batch["places"], 1))
        np.put_along_axis(tokens, batch["places"], targets, axis=1)
        return {row.tobytes(): set(places.tolist()) for row, places in zip(tokens, batch["places"], strict=True)}

    one, other = originals_of(first), originals_of(second)
    assert one.keys() == other.keys()
    assert sum(one[key] != other[key] for key in one) > 0.95 * len(one)


def test_validation_covers_the_text_once_and_padding_has_no_weight():
    task, corpus = toy_task(TOKEN), corpus_for(TOKEN)
    batches = task.validation_batches(corpus, 16)
    seen = 0
    for index in range(len(batches)):
        batch = batches[index]
        padding = batch["segments"] == 0
        assert not (hidden_places(batch) & padding).any()
        assert not batch["tokens"][padding].any()
        rows = (~padding).any(axis=1)
        assert (batch["weights"][rows].sum(axis=1) >= 1).all()
        assert (batch["tokens"][rows, 0] == task.masking.classify).all()
        seen += (~padding).sum() - 2 * rows.sum()
        last = batch["tokens"][rows, (~padding).sum(axis=1)[rows] - 1]
        assert (last == task.masking.separate).all()
    assert padding.any(), "the last batch is not full"
    assert seen == corpus.validation.num_tokens - 1


def test_text_without_an_end_of_text_token_will_do():
    store = store_of([[5, 6, 7, 8] * 5, [9, 10] * 10], None)
    task = toy_task(TOKEN, 12)
    batch = task.train_batches(Corpus(tokenizer_for(TOKEN), store, store), 4, seed=0)[0]
    assert (batch["weights"].sum(axis=1) == 2).all()  # 15% of 10, rounded to even


def test_what_cannot_be_is_named():
    with pytest.raises(UserError, match=r"config\.model\.max_length must be at least 3"):
        toy_task(TOKEN, 2)
    with pytest.raises(UserError, match=r"no special token \[CLS\]"):
        Masking.of(TOKEN, tokenizer_for(ObjectiveConfig()))
