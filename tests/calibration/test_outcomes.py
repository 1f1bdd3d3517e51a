"""Outcomes: against float64, in chunks, of factors, and of inputs that can't be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from lm.calibration import logits as chunking
from lm.calibration.logits import FactoredLogits, map_chunks, sum_chunks, take
from lm.calibration.outcomes import Outcomes, outcomes

N, C, D = 23, 7, 3
RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(scale=3.0, size=(N, C)).astype(np.float32)
LABELS = RANDOM.integers(C, size=N).astype(np.int32)
LOGITS[:4] = np.round(LOGITS[:4])
LOGITS[0, [1, 3]], LABELS[0] = 20.0, 3  # two share the highest
LOGITS[1, [0, 2, 5]], LABELS[1] = 20.0, 4  # three do, none of them the label
LOGITS[2, 1:], LABELS[2] = -np.inf, 0  # one class is certain
LOGITS[3, 2], LABELS[3] = -np.inf, 1
FACTORS = FactoredLogits(
    RANDOM.normal(size=(N, D)).astype(np.float32), 2 * RANDOM.normal(size=(C, D)).astype(np.float32)
)


def definition(logits_NC, labels_N) -> Outcomes:
    """Every outcome of one item at a time, in float64."""
    rows = []
    for logits_C, label in zip(np.asarray(logits_NC, np.float64), labels_N, strict=True):
        p_C = special.softmax(logits_C)
        highest = np.flatnonzero(logits_C == logits_C.max())
        indicator_C = np.arange(p_C.size) == label
        nll = special.logsumexp(logits_C) - logits_C[label]
        correct = (label in highest) / highest.size
        rows.append((p_C.max(), correct, nll, ((p_C - indicator_C) ** 2).sum(), special.entr(p_C).sum()))
    return Outcomes(*np.array(rows).T)


def assert_outcomes(found, expected, rtol=2e-6, atol=2e-6):
    for name in Outcomes._fields:
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=rtol, atol=atol, err_msg=name)


@pytest.mark.parametrize("classes", [2, C, 40, 300])
def test_equal_their_definition(classes):
    logits, labels = LOGITS[:, :classes].copy(), LABELS.copy()
    if classes > C:
        logits = np.concatenate([LOGITS, RANDOM.normal(size=(N, classes - C)).astype(np.float32)], axis=1)
        labels = np.where(np.arange(N) % 2, LABELS, classes - 1)
    elif classes < C:
        labels = LABELS % classes
    logits[5, 0], labels[5] = -np.inf, 0
    found = outcomes(labels, logits=logits)
    assert all(values.dtype == np.float32 and values.shape == (N,) for values in found)
    assert_outcomes(found, definition(logits, labels))


def test_ties_share_the_credit_and_certainty_is_exact():
    found = outcomes(LABELS, logits=LOGITS)
    np.testing.assert_array_equal(found.correct_N[:3], np.float32([1 / 2, 0, 1]))
    np.testing.assert_array_equal([values[2] for values in found], [1, 1, 0, 0, 0])
    rolled = outcomes((LABELS + 2) % C, logits=np.roll(LOGITS, 2, axis=1))  # the order of classes means nothing
    assert_outcomes(rolled, found)


def test_16_bit_logits_are_computed_with_in_float32():
    logits = jnp.asarray(LOGITS, jnp.bfloat16)
    assert_outcomes(outcomes(LABELS, logits=logits), definition(np.asarray(logits, np.float32), LABELS))


def test_logits_between_0_and_1_are_still_logits():
    small = np.round(RANDOM.uniform(size=(N, C)) * 2**12).astype(np.float32) / 2**12  # adding 10 is exact
    assert_outcomes(outcomes(LABELS, logits=small), outcomes(LABELS, logits=small + 10), rtol=0, atol=0)


def test_log_probs_are_logits_that_must_be_normalized():
    log_probs = np.log(np.maximum(special.softmax(LOGITS.astype(np.float64), axis=-1), 1e-300)).astype(np.float32)
    assert_outcomes(outcomes(LABELS, log_probs=log_probs), outcomes(LABELS, logits=LOGITS), atol=1e-5)
    with pytest.raises(ValueError, match=r"item 5 .*sum to 1"):
        outcomes(LABELS, log_probs=log_probs + 0.01 * (np.arange(N) == 5)[:, None])


def test_an_impossible_label_has_infinite_nll_and_the_worst_brier_score():
    found = outcomes(np.array([1], np.int32), logits=LOGITS[2:3])
    assert [float(values[0]) for values in found] == [1, 0, np.inf, 2, 0]


@pytest.mark.parametrize(("wrong", "place"), [(np.nan, 3), (np.inf, 3), (-np.inf, slice(None))])
@pytest.mark.parametrize("chunk", [2**19, 4 * C])
def test_nan_and_rows_without_probabilities_are_errors(wrong, place, chunk, monkeypatch):
    rechunk(monkeypatch, chunk)
    logits = LOGITS.copy()
    logits[6, place] = wrong
    with pytest.raises(ValueError, match=r"item 6 has NaN, \+inf or no finite value \(1 in all\)"):
        outcomes(LABELS, logits=logits)


@pytest.mark.parametrize(
    ("labels", "given", "message"),
    [
        (LABELS, {}, "exactly one of logits, log_probs and probabilities"),
        (LABELS, {"logits": LOGITS, "log_probs": LOGITS}, "exactly one of logits, log_probs and probabilities"),
        (LABELS[1:], {"logits": LOGITS}, "labels must have shape"),
        (LABELS.astype(np.float32), {"logits": LOGITS}, "integers"),
        (np.where(np.arange(N) == 4, C, LABELS), {"logits": LOGITS}, "label 7 of item 4"),
        (np.where(np.arange(N) == 4, -1, LABELS), {"logits": LOGITS}, "label -1 of item 4"),
        (LABELS, {"logits": LOGITS[:, :0]}, "2 classes"),
        (LABELS, {"logits": LOGITS[0]}, "labels must have shape"),
        (LABELS, {"logits": LOGITS[None]}, "items, classes"),
        (LABELS[:0], {"logits": LOGITS[:0]}, "at least 1 item"),
    ],
)
def test_what_does_not_fit_is_an_error(labels, given, message):
    with pytest.raises(ValueError, match=message):
        outcomes(labels, **given)


def test_brier_and_entropy_are_never_negative():
    """Near certainty, where the terms of the square cancel."""
    logits = RANDOM.uniform(-20, -6, size=(2000, C)).astype(np.float32)
    logits[:, 0] = 0
    found = outcomes(np.zeros(2000, np.int32), logits=logits)
    assert found.brier_N.min() >= 0
    assert found.entropy_N.min() >= 0
    np.testing.assert_allclose(found.brier_N, definition(logits, np.zeros(2000, int)).brier_N, rtol=1e-3, atol=3e-7)


def test_under_jit_invalid_items_come_out_as_nan():
    logits = LOGITS.copy()
    logits[6, 3] = np.nan
    found = jax.jit(lambda logits, labels: outcomes(labels, logits=logits))(logits, LABELS)
    for values in found:
        assert np.flatnonzero(np.isnan(values)).tolist() == [6]


# --- chunks and factors ---


def rechunk(monkeypatch, numbers: int) -> None:
    """Smaller chunks; what was compiled with others is forgotten."""
    if numbers != chunking.CHUNK_NUMBERS:
        monkeypatch.setattr(chunking, "CHUNK_NUMBERS", numbers)
        jax.clear_caches()


@pytest.mark.parametrize("items_per_chunk", [1, 5, 22])  # the last chunk: whole, overlaps by 2, overlaps by 21
@pytest.mark.parametrize("form", ["dense", "factors"])
def test_chunks_change_nothing(items_per_chunk, form, monkeypatch):
    given = {"dense": LOGITS, "factors": FACTORS}[form]
    weights_N = jnp.arange(1.0, N + 1)

    def outcomes_and_sums(labels_N, weights_N):
        def summed(logits_NC, counts_N, labels_N, weights_N):
            label_logit_N = jnp.take_along_axis(logits_NC, labels_N[:, None], axis=-1)[:, 0]
            return counts_N.sum(), (counts_N * weights_N).sum(), (counts_N * label_logit_N).sum()

        return outcomes(labels_N, logits=given), sum_chunks(summed, given, labels_N, weights_N)

    whole = jax.jit(outcomes_and_sums)(LABELS, weights_N)
    rechunk(monkeypatch, items_per_chunk * C + C - 1)
    chunked = jax.jit(outcomes_and_sums)(LABELS, weights_N)
    assert_outcomes(chunked[0], whole[0], atol=1e-6)
    assert [float(total) for total in chunked[1][:2]] == [N, N * (N + 1) / 2]
    np.testing.assert_allclose(chunked[1][2], whole[1][2], rtol=1e-5)


def test_factors_give_what_their_product_gives():
    product = FACTORS.hidden_ND.astype(np.float64) @ FACTORS.output_CD.T.astype(np.float64)
    assert_outcomes(outcomes(LABELS, logits=FACTORS), definition(product, LABELS), rtol=1e-5, atol=5e-6)
    some = np.array([4, 1, 7])
    assert_outcomes(outcomes(LABELS[some], logits=take(FACTORS, some)), definition(product[some], LABELS[some]), 1e-5)


def test_chunked_results_may_have_any_shape(monkeypatch):
    rechunk(monkeypatch, 5 * C)
    found = map_chunks(lambda logits, labels: {"a": logits * 2, "b": labels}, LOGITS, LABELS)
    np.testing.assert_array_equal(found["a"], LOGITS * 2)
    np.testing.assert_array_equal(found["b"], LABELS)
