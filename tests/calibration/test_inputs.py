"""What the door of `lm.calibration` lets in, and what it says to the rest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from lm.calibration.inputs import (
    InputError,
    checked_clusters,
    checked_confidence,
    checked_correct,
    checked_labels,
    checked_logits,
    checked_weights,
)
from lm.calibration.logits import FactoredLogits
from lm.calibration.outcomes import outcomes
from lm.errors import UserError

N, C = 12, 3
RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(size=(N, C)).astype(np.float32)
PROBABILITIES = special.softmax(LOGITS.astype(np.float64), axis=1)
LABELS = RANDOM.integers(C, size=N)


class Foreign:
    """An array of another library: NumPy sees it through `__array__` alone."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.values, dtype)


class Tensor:
    """Like PyTorch's: no `__array__` before it is detached, and none in bfloat16."""

    def __init__(self, values, dtype="torch.float32", detached=False):
        self.values, self.dtype, self.detached = values, dtype, detached

    def detach(self):
        return Tensor(self.values, self.dtype, True)

    def cpu(self):
        return self

    def float(self):
        return Tensor(self.values, "torch.float32", self.detached)

    def __array__(self, dtype=None, copy=None):
        if not self.detached or "bfloat16" in self.dtype:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad.\nsecond line")
        return np.asarray(self.values, dtype)


def refused(function, *arguments, **named) -> str:
    with pytest.raises(InputError) as caught:
        function(*arguments, **named)
    assert isinstance(caught.value, UserError)
    assert isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def changed(values, place, value):
    values = np.array(values)
    values[place] = value
    return values


@pytest.mark.parametrize(
    "of",
    [
        np.asarray,
        jnp.asarray,
        np.ndarray.tolist,
        Foreign,
        Tensor,
        lambda x: Tensor(x, "torch.bfloat16"),
        lambda x: x.astype(x.dtype.newbyteorder(">")),
        lambda x: x.astype(np.longdouble) if x.dtype.kind == "f" else x,
    ],
)
def test_arrays_may_come_from_anywhere(of):
    np.testing.assert_array_equal(checked_logits(logits=of(LOGITS)), LOGITS)
    np.testing.assert_array_equal(checked_labels(of(LABELS), (N, C)), LABELS)
    found, expected = outcomes(of(LABELS), probabilities=of(PROBABILITIES)), outcomes(LABELS, logits=LOGITS)
    for values, of_logits in zip(found, expected, strict=True):
        np.testing.assert_allclose(values, of_logits, atol=1e-5)


def test_torch_and_pandas_are_let_in():
    torch = pytest.importorskip("torch")
    logits = torch.tensor(LOGITS, requires_grad=True)
    np.testing.assert_array_equal(checked_logits(logits=logits), LOGITS)
    half = checked_logits(logits=logits.bfloat16())
    np.testing.assert_array_equal(half, np.asarray(jnp.asarray(LOGITS, jnp.bfloat16), np.float32))
    np.testing.assert_array_equal(checked_labels(torch.tensor(LABELS), (N, C)), LABELS)
    pandas = pytest.importorskip("pandas")
    np.testing.assert_array_equal(checked_labels(pandas.Series(LABELS, dtype="Int64"), (N, C)), LABELS)


@pytest.mark.parametrize("shape", [(N,), (N, 1)])
def test_one_column_is_class_1_of_two(shape):
    p = PROBABILITIES[:, 1]
    two = np.stack([1 - p, p], axis=1)
    for given in (
        {"probabilities": p.reshape(shape)},
        {"log_probs": np.log(p).reshape(shape)},
        {"logits": special.logit(p).reshape(shape)},
    ):
        np.testing.assert_allclose(special.softmax(checked_logits(**given), axis=1), two, atol=1e-6)
    at_ends = checked_logits(probabilities=np.array([0.0, 1.0]))
    np.testing.assert_array_equal(np.exp(at_ends), [[1, 0], [0, 1]])


def test_zeros_are_allowed_and_rounded_rows_can_be_normalized():
    counts = np.array([[3.0, 1.0, 0.0], [0.0, 0.0, 7.0]])
    shares = counts / counts.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(np.exp(checked_logits(probabilities=shares)), shares)
    np.testing.assert_allclose(np.exp(checked_logits(probabilities=counts, normalize=True)), shares)
    rounded = np.full((2, 3), 0.33)
    said = refused(checked_logits, probabilities=rounded)
    assert "sum to 0.99, not to 1 (2 in all): they look rounded; pass normalize=True" in said
    assert "logits" not in said  # which would be a second softmax
    np.testing.assert_allclose(np.exp(checked_logits(probabilities=rounded, normalize=True)), np.full((2, 3), 1 / 3))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"probabilities": 100 * PROBABILITIES}, "percentages"),
        ({"probabilities": 100 * PROBABILITIES[:, 0]}, "percentages"),
        ({"probabilities": LOGITS}, "give them as logits"),
        ({"probabilities": 3 * special.softmax(LOGITS, axis=1)}, "sum to 3, not to 1 (12 in all)"),
        ({"probabilities": special.expit(LOGITS)}, "one column at a time"),
        ({"probabilities": changed(PROBABILITIES, (4, 1), np.nan)}, "probabilities of item 4 is nan (1 in all)"),
        ({"probabilities": changed(PROBABILITIES, 4, [1.5, -0.5, 0])}, "probabilities of item 4 is -0.5"),
        ({"probabilities": 0 * PROBABILITIES, "normalize": True}, "must be positive"),
        ({"probabilities": PROBABILITIES[:, 0], "normalize": True}, "a column for each class"),
        ({"logits": LOGITS, "normalize": True}, "normalize=True is for probabilities"),
        ({"log_probs": LOGITS}, "probabilities of log_probs of item 0 sum to"),
        ({"log_probs": np.array([-0.1, 0.2])}, "log_probs of item 1 has NaN"),
        ({"logits": changed(LOGITS, (4, 1), np.nan)}, "logits of item 4 has NaN"),
        ({"logits": changed(LOGITS.astype(jnp.bfloat16), (4, 1), np.nan)}, "logits of item 4 has NaN"),
        ({"logits": changed(LOGITS.astype(float), (4, 1), 1e300)}, "+inf"),
        ({"logits": np.zeros((2, C, 4, 4))}, "move the axis of classes to the end"),
        ({"logits": np.float32(1)}, "at least 1 item"),
        ({"logits": LOGITS[:0]}, "at least 1 item"),
        ({"logits": []}, "at least 1 item"),
        ({"logits": LABELS}, "predicted classes are no scores"),
        ({"logits": [[1.0, 2.0], [3.0]]}, "logits cannot be read as an array"),
        ({"logits": [["a", "b"]]}, "not text"),
        ({"logits": [[1.0, None]]}, "item 0 is a missing value"),
        ({"logits": {"a": 1}}, "logits must hold numbers, but it is of type dict"),
        ({"logits": LOGITS + 1j}, "real numbers"),
        ({"logits": np.ma.masked_less(LOGITS, 0)}, "masked"),
        ({"logits": FactoredLogits(LOGITS, LOGITS[:, :2])}, "the same width"),
        ({"logits": FactoredLogits(LOGITS, LOGITS[:1])}, "2 classes"),
        ({"logits": FactoredLogits(LOGITS, changed(LOGITS, (0, 0), np.inf))}, "output has NaN or infinity"),
        ({}, "not none"),
        ({"logits": LOGITS, "probabilities": LOGITS}, "not logits and probabilities"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_wrong_scores_are_refused(given, message):
    assert message in refused(checked_logits, **given)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (changed(LABELS, [2, 5], -100), "labels: 2 items have -100"),
        (changed(LABELS, 5, -1), "label -1 of item 5 is not one of the classes 0 to 2 (1 in all)"),
        (LABELS + 3, "label"),
        (1 + np.arange(N) % 3, "if they count from 1, subtract 1"),
        (LABELS.astype(float), "labels must be integers"),
        (LABELS > 0, "labels must be integers"),
        (LABELS.astype(str), "not text"),
        (np.eye(C, dtype=int)[LABELS], "multi-label"),
        (LABELS[:, None], "pass labels.ravel()"),
        (LABELS[1:], "labels must have shape (12,)"),
        ([None] * N, "missing"),
    ],
)
def test_wrong_labels_are_refused(labels, message):
    assert message in refused(checked_labels, labels, (N, C))


def test_bools_are_labels_of_two_classes():
    np.testing.assert_array_equal(checked_labels([True, False], (2, 2)), [1, 0])


def test_wrong_numbers_of_items_are_refused():
    confidence = PROBABILITIES.max(axis=1)
    np.testing.assert_array_equal(checked_confidence(confidence), confidence)
    np.testing.assert_array_equal(checked_correct([True, False, 0.5], 3), [1, 0, 0.5])
    assert "percentages" in refused(checked_confidence, 100 * confidence)
    assert "item 3 is nan" in refused(checked_confidence, changed(confidence, 3, np.nan))
    assert "empty" in refused(checked_confidence, [])
    assert "shape (12, 3)" in refused(checked_confidence, PROBABILITIES)
    assert "predictions == labels" in refused(checked_correct, 2 * np.ones(N), N)
    assert "11 items, but there are 12" in refused(checked_correct, np.ones(N - 1), N)
    assert "not negative" in refused(checked_weights, -np.ones(N), N)
    assert "not negative" in refused(checked_weights, np.full(N, np.inf), N)
    assert "all 0" in refused(checked_weights, np.zeros(N), N)
    assert checked_weights(None, N) is checked_clusters(None, N) is None
    np.testing.assert_array_equal(checked_clusters(["b", "a", "b"], 3), [1, 0, 1])
    assert "shape (12,)" in refused(checked_clusters, np.ones(N - 1), N)
    for missing in (None, float("nan"), np.datetime64("NaT")):
        assert "clusters of item 1 is missing" in refused(checked_clusters, np.array(["a", missing], object), 2)
    assert "divide them by their mean" in refused(checked_weights, np.full(N, 1e200), N)
    assert "divide them by their mean" in refused(checked_weights, np.full(N, 1e-200), N)
    assert "not bools" in refused(checked_confidence, np.ones(N, bool))


def test_under_jit_types_are_checked_and_values_are_not():
    bad = jnp.asarray(changed(LOGITS, (6, 0), np.nan))
    assert np.isnan(jax.jit(lambda logits: checked_logits(logits=logits))(bad)).any()
    with pytest.raises(InputError, match="labels must be integers"):
        jax.jit(lambda labels: checked_labels(labels, (N, C)))(LABELS.astype(np.float32))
