"""Denoising: each kind of damage does what it says and no more, and the decoder's side is the text itself."""

import dataclasses
import itertools
import math
from collections import Counter

import numpy as np
import pytest

from lm.data.windows import TrainBatches, ValidationBatches
from lm.objectives.corruption import CorruptedBatches, RowRandom
from lm.objectives.denoising import Damage, poisson, whole_text
from lm.objectives.objective import ObjectiveConfig
from tests.objectives.toy_corpus import counting_store

MASK, END = 1, 2
B, T = 60, 99
STORE = counting_store([700, 40, 3, 1, 250, 500], END)
WINDOWS = TrainBatches(STORE, T, B, seed=0, random_offsets=True)[0]
TEXT, SEGMENTS = whole_text(WINDOWS)
ORDINARY = np.arange(4000) >= 1000
SENTENCE_ENDS = np.arange(4000) % 7 == 0
NOTHING = ObjectiveConfig(name="denoising", infilling_rate=0.0, deletion_rate=0.0, permutation_rate=0.0)


def damaged(seed=0, windows=WINDOWS, **rates):
    damage = Damage(dataclasses.replace(NOTHING, **rates), MASK, ORDINARY, SENTENCE_ENDS)
    return damage(windows, RowRandom((seed,), len(windows["tokens"]), slice(None)))


def rows_of(batch):
    """Each row's tokens without padding, those of the text too."""
    for row in range(len(batch["inputs"])):
        inside = batch["input_segments"][row] > 0
        yield batch["inputs"][row][inside], TEXT[row][SEGMENTS[row] > 0]


def test_without_damage_the_encoder_sees_all_that_the_decoder_predicts():
    batch = damaged()
    for inputs, text in rows_of(batch):
        np.testing.assert_array_equal(inputs, text)
    targets = batch["weights"] > 0
    np.testing.assert_array_equal(batch["inputs"][:, 1:][targets], batch["targets"][targets])
    assert batch["inputs"].shape == (B, T + 1)


def test_the_decoders_side_is_not_corrupted():
    batch = damaged(infilling_rate=0.3, deletion_rate=0.2, permutation_rate=1.0)
    for name, values in WINDOWS.items():
        np.testing.assert_array_equal(batch[name], values)


def test_infilling_takes_its_share_in_spans_of_one_mask():
    masks = spans = insertions = 0
    lengths = Counter()
    for seed in range(6):
        for inputs, text in rows_of(damaged(seed, infilling_rate=0.3, mean_span_length=3.0)):
            kept, ordinary = inputs[inputs >= 1000], text[text >= 1000]
            assert 0 <= round(0.3 * len(ordinary)) - (len(ordinary) - len(kept)) < 4, "no span fits in what is left"
            assert (np.diff(kept) > 0).all(), "order is kept"
            assert (inputs == END).sum() == (text == END).sum()
            # Gaps between neighbours that one [MASK] stands in: that many tokens long, 0 for an insertion.
            places = np.flatnonzero(inputs >= 1000)
            for left, right in itertools.pairwise(places):
                if right - left == 2 and inputs[left + 1] == MASK:
                    lengths[int(inputs[right] - inputs[left]) - 1] += 1
            masks += (inputs == MASK).sum()
    spans, insertions = masks - lengths[0], lengths[0]
    assert abs(insertions / (spans + insertions) - math.exp(-3)) < 0.02
    mean = sum(length * count for length, count in lengths.items()) / sum(lengths.values())
    assert 2.5 < mean < 3.3  # neighbouring spans, whose parts can't be told, are not counted
    assert max(lengths) > 6


def test_poisson_probabilities():
    probabilities = poisson(3.0, 60)
    np.testing.assert_allclose(probabilities.sum(), 1, rtol=1e-12)
    np.testing.assert_allclose((np.arange(61) * probabilities).sum(), 3, rtol=1e-12)
    np.testing.assert_allclose(probabilities[2], math.exp(-3) * 9 / 2, rtol=1e-12)


def test_deletion_takes_its_share_of_what_may_be_deleted():
    deleted = total = 0
    for inputs, text in rows_of(damaged(deletion_rate=0.25)):
        assert MASK not in inputs
        assert (inputs == END).sum() == (text == END).sum()
        np.testing.assert_array_equal(inputs[inputs >= 1000], [token for token in text if token in set(inputs) - {END}])
        deleted += len(text) - len(inputs)
        total += (text >= 1000).sum()
    assert abs(deleted / total - 0.25) < 5 * np.sqrt(0.25 * 0.75 / total)


def test_deletion_spares_the_masks():
    masks = [(damaged(infilling_rate=0.3, deletion_rate=rate)["inputs"] == MASK).sum(axis=1) for rate in (0.0, 0.5)]
    np.testing.assert_array_equal(*masks)


def sentences_of(tokens, segments):
    """Runs of text that end with the end of a sentence, of a segment or at a special token."""
    sentences, current = [], []
    for place, token in enumerate(tokens):
        new = place > 0 and (segments[place] != segments[place - 1] or SENTENCE_ENDS[tokens[place - 1]])
        if (new or token < 1000) and current:
            sentences.append((int(segments[place - 1]), tuple(current)))
            current = []
        if token >= 1000:
            current.append(int(token))
    return sentences + ([(int(segments[-1]), tuple(current))] if current else [])


@pytest.mark.parametrize("rate", [1.0, 0.4])
def test_permutation_moves_whole_sentences_within_their_document(rate):
    batch = damaged(permutation_rate=rate)
    moved = total = 0
    for row in range(B):
        inside = SEGMENTS[row] > 0
        before = sentences_of(TEXT[row][inside], SEGMENTS[row][inside])
        places = {token: place for place, (_, sentence) in enumerate(before) for token in sentence}
        inputs, segments = batch["inputs"][row], batch["input_segments"][row]
        np.testing.assert_array_equal(segments, SEGMENTS[row])
        # Reading on, a sentence of the text is never left before its end.
        read = [places[token] for token in inputs if token >= 1000]
        order = [place for i, place in enumerate(read) if i == 0 or read[i - 1] != place]
        assert sorted(order) == list(range(len(before)))
        assert [before[place][0] for place in order] == [segment for segment, _ in before]
        np.testing.assert_array_equal(inputs == END, TEXT[row] == END)
        moved += sum(place != i for i, place in enumerate(order))
        total += len(order)
    low, high = {1.0: (0.75, 1.0), 0.4: (0.2, 0.4)}[rate]
    assert low < moved / total < high


def test_sentences_are_put_in_any_order_alike():
    windows = {name: np.repeat(values[:1], 3000, axis=0) for name, values in WINDOWS.items()}
    tokens = np.tile(np.arange(1001, 1001 + T), (3000, 1)).astype(np.int32)
    windows |= {"tokens": tokens, "segments": np.ones_like(tokens), "weights": np.zeros(tokens.shape, np.float32)}
    inputs = damaged(windows=windows, permutation_rate=1.0)["inputs"]
    sentences = T // 7 + 1
    starts = np.flatnonzero(SENTENCE_ENDS[tokens[0]])[:-1] + 1
    first = np.searchsorted(starts, inputs[:, 0] - 1001, side="right")
    share = np.bincount(first, minlength=len(starts) + 1) / 3000
    assert np.all(np.abs(share - 1 / len(share)) < 5 / np.sqrt(3000 * sentences))


def test_what_is_filled_in_does_not_show():
    batch = damaged(infilling_rate=0.3)
    other = {name: values.copy() for name, values in WINDOWS.items()}
    for name in ("tokens", "targets"):
        kept = [np.isin(text, inputs) for text, inputs in zip(WINDOWS[name], batch["inputs"], strict=True)]
        other[name] = np.where((WINDOWS[name] >= 1000) & ~np.stack(kept), 3000, WINDOWS[name])
    assert (other["tokens"] == 3000).sum() > 100
    np.testing.assert_array_equal(damaged(windows=other, infilling_rate=0.3)["inputs"], batch["inputs"])


def test_nothing_is_ever_lost_for_want_of_room():
    for rate, mean in ((0.9, 1.0), (0.05, 1.0), (0.3, 8.0)):
        for inputs, text in rows_of(damaged(infilling_rate=rate, mean_span_length=mean)):
            ordinary = text[text >= 1000]
            assert len(inputs) <= len(text)
            kept = (inputs >= 1000).sum()
            assert (1 - rate) * len(ordinary) - 0.5 <= kept <= (1 - rate) * len(ordinary) + 6


def test_padding_stays_padding():
    damage = Damage(ObjectiveConfig(name="denoising"), MASK, ORDINARY, SENTENCE_ENDS)
    windows = ValidationBatches(STORE, T, 11)
    batch = CorruptedBatches(windows, damage, 11, (0,))[len(windows) - 1]
    assert (batch["segments"].max(axis=1) == 0).any()
    np.testing.assert_array_equal(batch["input_segments"].max(axis=1), batch["segments"].max(axis=1))
    padding = batch["input_segments"] == 0
    assert not batch["inputs"][padding].any()
    assert (np.diff(padding.astype(int), axis=1) >= 0).all(), "padding is at the end"
