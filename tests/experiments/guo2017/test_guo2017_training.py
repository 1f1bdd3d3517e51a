"""Training of small text classifiers: it learns, repeats itself, and predicts each text by itself."""

import itertools

import numpy as np
import optax
import pytest

from experiments.guo2017.network import DeepAveragingNetwork
from experiments.guo2017.texts import Words
from experiments.guo2017.training import predict, train_epochs
from lm.errors import TrainingError

MODEL = DeepAveragingNetwork(vocab_size=12, classes=3, width=4, hidden_width=8, layers=1, batch_norm=True)
OPTIMIZER = optax.adamw(0.03)
RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(3, size=70).astype(np.int32)
LENGTHS = RANDOM.integers(1, 6, size=70).astype(np.int32)
# Each class has four words of its own.
WORDS = Words((4 * LABELS[:, None] + RANDOM.integers(4, size=(70, 5))).astype(np.int32), LENGTHS)


def trained(epochs, seed=0, optimizer=OPTIMIZER, words=WORDS, batch_size=16):
    training = train_epochs(MODEL, optimizer, words, LABELS, batch_size=batch_size, seed=seed)
    *_, (variables, loss) = itertools.islice(training, epochs)
    return np.asarray(predict(MODEL, variables, words)), loss


def test_a_learnable_task_is_learned():
    _, first = trained(1)
    logits, last = trained(12)
    assert last < first / 2
    assert (logits.argmax(axis=1) == LABELS).all()


def test_training_is_a_function_of_the_seed():
    logits, loss = trained(2)
    again, loss_again = trained(2)
    np.testing.assert_array_equal(logits, again)
    assert loss == loss_again
    assert np.abs(trained(2, seed=1)[0] - logits).max() > 1e-3


def test_padding_does_not_change_training():
    # Ids of other classes behind each text's end.
    other = np.where(np.arange(5)[None] < LENGTHS[:, None], WORDS.ids_NT, (WORDS.ids_NT + 5) % 12)
    np.testing.assert_array_equal(trained(2, words=Words(other, LENGTHS))[0], trained(2)[0])


def test_fewer_texts_than_the_batch_size_make_one_batch():
    logits, loss = trained(1, batch_size=1000)
    assert logits.shape == (70, 3)
    assert np.isfinite(loss)


def test_predictions_do_not_depend_on_other_texts():
    variables, _ = next(train_epochs(MODEL, OPTIMIZER, WORDS, LABELS, batch_size=16, seed=0))
    many = WORDS.take(np.arange(300) % 70)  # more than one batch, the last of them not full
    logits = np.asarray(predict(MODEL, variables, many))
    np.testing.assert_allclose(logits[:70], predict(MODEL, variables, WORDS), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(logits[290:], logits[10:20], rtol=1e-5, atol=1e-6)


def test_a_nan_loss_stops_training():
    with pytest.raises(TrainingError, match="loss of seed 3 is nan"):
        trained(3, seed=3, optimizer=optax.sgd(float("nan")))
