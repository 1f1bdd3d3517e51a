"""Pairs of texts: their labels are true, and nothing but the texts tells them."""

import dataclasses

import jax
import numpy as np
import pytest

from lm.errors import UserError
from lm.objectives.corruption import RowRandom
from lm.objectives.next_sentence import Pairs
from lm.objectives.objective import ObjectiveConfig
from lm.objectives.registry import make_task
from tests.objectives.toy_corpus import corpus_for, counting_store, tokenizer_for, toy_model, toy_task

CLS, SEP, END = 1, 2, 3
LENGTHS = [100, 40, 9, 2, 1, 60, 30]  # that of 1 token can't make a pair
STORE = counting_store(LENGTHS, END)
DOCUMENT = np.repeat(np.arange(len(LENGTHS)), LENGTHS)  # of token 1000 + i
T, ROWS = 20, 3000
NEXT = ObjectiveConfig(name="masked_next_sentence")


def draw(swap, store=STORE, seed=0):
    return Pairs(store, T, swap).draw(RowRandom((seed,), ROWS, slice(None)), CLS, SEP)


@pytest.fixture(scope="module", params=[False, True], ids=["next_sentence", "sentence_order"])
def drawn(request):
    """What was drawn, whether texts are swapped, and the two texts of each row."""
    batch = draw(request.param)
    texts = []
    for row in range(ROWS):
        inside = batch["segments"][row] > 0
        tokens, types = batch["tokens"][row][inside], batch["types"][row][inside]
        assert tokens[0] == CLS
        assert tokens[-1] == SEP
        np.testing.assert_array_equal(np.flatnonzero(tokens == SEP), [(types == 0).sum() - 1, len(tokens) - 1])
        assert not inside[len(tokens) :].any()
        texts.append((tokens[types == 0][1:-1], tokens[types == 1][:-1]))
    return batch, request.param, texts


def test_both_texts_are_runs_of_one_document(drawn):
    for pair in drawn[2]:
        for text in pair:
            assert len(text) > 0
            np.testing.assert_array_equal(np.diff(text), 1)
            assert DOCUMENT[text[0] - 1000] == DOCUMENT[text[-1] - 1000]


def test_labels_are_true(drawn):
    batch, swap, texts = drawn
    for label, (one, other) in zip(batch["continues"], texts, strict=True):
        if label == 0:
            assert other[0] == one[-1] + 1
        elif swap:
            assert one[0] == other[-1] + 1
        else:
            assert DOCUMENT[one[0] - 1000] != DOCUMENT[other[0] - 1000]


def test_labels_are_balanced_and_independent_of_lengths(drawn):
    labels, texts = drawn[0]["continues"], drawn[2]
    assert abs(labels.mean() - 0.5) < 5 * 0.5 / np.sqrt(ROWS)
    for place in (0, 1):
        lengths = np.array([len(pair[place]) for pair in texts])
        means = [lengths[labels == label].mean() for label in (0, 1)]
        # Documents that are too short for what is wanted of them leave a trace; there are three here.
        assert abs(means[0] - means[1]) < 0.8


def test_rows_are_full_but_a_tenth(drawn):
    full = (drawn[0]["segments"] > 0).all(axis=1)
    long_documents = np.array([DOCUMENT[one[0] - 1000] in (0, 1, 5, 6) for one, _ in drawn[2]])
    together = drawn[0]["continues"] == 0
    share = full[long_documents & together].mean()
    assert 0.87 < share < 0.95  # a random length is sometimes the full one


def test_every_document_gets_its_share():
    batch = draw(True)
    document = DOCUMENT[batch["tokens"][:, 1] - 1000]
    share = np.bincount(document, minlength=len(LENGTHS)) / ROWS
    lengths = np.where(np.array(LENGTHS) > 1, LENGTHS, 0)
    expected = lengths / lengths.sum()
    assert np.all(np.abs(share - expected) <= 5 * np.sqrt(expected * (1 - expected) / ROWS))
    starts = np.unique(batch["tokens"][document == 0, 1])
    assert len(starts) > 80, "texts begin anywhere"


def test_positions_and_padding(drawn):
    batch = drawn[0]
    inside = batch["segments"] > 0
    np.testing.assert_array_equal(batch["positions"], np.arange(T) * inside)
    assert not batch["tokens"][~inside].any()
    assert not batch["types"][~inside].any()
    assert set(np.unique(batch["segments"])) == {0, 1}


def test_two_documents_are_needed_for_strangers():
    one = counting_store([50], END)
    assert draw(True, one)["continues"].any()
    with pytest.raises(UserError, match=r"training split has 1 document.*masked_sentence_order"):
        Pairs(one, T, swap=False)
    with pytest.raises(UserError, match=r"must be at least 5 for pairs"):
        Pairs(STORE, 4, swap=True)
    with pytest.raises(UserError, match=r"config\.model\.segment_types=2"):
        make_task(NEXT, dataclasses.replace(toy_model(NEXT).config, segment_types=0), tokenizer_for(NEXT))


def test_validation_is_about_as_long_as_the_text_and_the_same_each_time():
    task, corpus = toy_task(NEXT), corpus_for(NEXT)
    batches = task.validation_batches(corpus, 32)
    rows = sum((batches[i]["segments"] > 0).any(axis=1).sum() for i in range(len(batches)))
    assert rows == -(-corpus.validation.num_tokens // 32)
    last = batches[len(batches) - 1]
    padding = ~(last["segments"] > 0).any(axis=1)
    assert padding.any()
    assert not last["weights"][padding].any()
    again = task.validation_batches(corpus, 32)[len(batches) - 1]
    for name, values in last.items():
        np.testing.assert_array_equal(again[name], values)
    with pytest.raises(IndexError):
        batches[len(batches)]


@pytest.mark.slow
def test_sums_add_both_objectives_up():
    task, corpus = toy_task(NEXT), corpus_for(NEXT)
    batch = task.validation_batches(corpus, 16)[1]
    params = jax.jit(task.init)(jax.random.key(0))
    total, sums = jax.jit(task.loss)(params, batch, None)
    evaluate = jax.jit(task.evaluate)
    rows = evaluate(params, batch)
    for name in ("weight", "loss", "next_sentence_loss"):
        np.testing.assert_allclose(np.sum(rows[name]), sums[name], rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(total, sums["loss"] + sums["next_sentence_loss"], rtol=1e-6)
    np.testing.assert_allclose(sums["objective"], total)
    weight = batch["weights"].sum(axis=1)
    right = np.asarray(rows["next_sentence_accuracy"]) / weight
    np.testing.assert_array_equal(right, right.astype(bool))
    np.testing.assert_array_equal(right, np.asarray(rows["next_sentence_loss"]) / weight < np.log(2))
    # Flipping a label moves that row's part alone, by its weight times the difference of the two logits.
    flipped = batch | {"continues": 1 - batch["continues"]}
    other = evaluate(params, flipped)
    both = np.exp(-rows["next_sentence_loss"] / weight) + np.exp(-other["next_sentence_loss"] / weight)
    np.testing.assert_allclose(both, 1, rtol=1e-5)
    np.testing.assert_allclose(other["loss"], rows["loss"], rtol=1e-6)


def test_pairs_need_no_end_of_text_token():
    store = counting_store([30, 30], None)
    batch = draw(False, store)
    assert batch["tokens"].max() == 1059
