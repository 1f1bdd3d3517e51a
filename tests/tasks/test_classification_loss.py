"""The loss of a choice among classes: its formula, its special cases, and gradients that stay finite."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm.errors import UserError
from lm.tasks.classification_loss import ClassificationLoss, class_weights
from lm.tasks.supervised import TaskConfig

N, C = 6, 3
LOGITS = np.random.default_rng(0).normal(size=(N, C), scale=3).astype(np.float32)
LABELS = np.array([0, 1, 2, 2, 1, 0])
ONE_HOT = np.eye(C, dtype=np.float32)[LABELS]


def test_the_plain_loss_is_cross_entropy():
    np.testing.assert_allclose(
        ClassificationLoss()(LOGITS, ONE_HOT), optax.softmax_cross_entropy(LOGITS, ONE_HOT), rtol=1e-6
    )
    mixed = 0.3 * ONE_HOT + 0.7 * ONE_HOT[::-1]
    np.testing.assert_allclose(
        ClassificationLoss()(LOGITS, mixed), optax.softmax_cross_entropy(LOGITS, mixed), rtol=1e-6
    )


def test_label_smoothing_equals_smoothed_labels():
    smoothed = optax.smooth_labels(jnp.asarray(ONE_HOT), 0.1)
    np.testing.assert_allclose(
        ClassificationLoss(label_smoothing=0.1)(LOGITS, ONE_HOT),
        optax.softmax_cross_entropy(LOGITS, smoothed),
        rtol=1e-6,
    )


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_the_focal_loss_equals_its_formula(gamma):
    probabilities = np.exp(LOGITS.astype(np.float64))
    p = (probabilities / probabilities.sum(axis=1, keepdims=True))[np.arange(N), LABELS]
    expected = -((1 - p) ** gamma) * np.log(p)
    np.testing.assert_allclose(ClassificationLoss(focal_gamma=gamma)(LOGITS, ONE_HOT), expected, rtol=1e-4)


def test_class_weights_multiply_the_loss_of_their_class():
    loss = ClassificationLoss(weights_C=(1.0, 2.5, 0.5))(LOGITS[:, None], ONE_HOT[:, None])
    plain = ClassificationLoss()(LOGITS[:, None], ONE_HOT[:, None])
    np.testing.assert_allclose(loss, plain * np.array([1, 2.5, 0.5])[LABELS][:, None], rtol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_gradients_are_finite_at_saturated_logits(gamma, smoothing):
    saturated = jnp.array([[1e4, 0.0, -1e4], [-1e4, 0.0, 1e4], [30.0, 0.0, 0.0]])
    target = jnp.eye(C)[jnp.array([0, 0, 0])]
    loss = ClassificationLoss(label_smoothing=smoothing, focal_gamma=gamma)
    value, gradient = jax.value_and_grad(lambda logits: loss(logits, target).sum())(saturated)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    assert gradient[1, 0] < 0 < gradient[1, 2], "a confident mistake must be corrected"


@pytest.mark.parametrize("classes", ["abc", "abcd"])
def test_balanced_weights_have_a_mean_of_one_over_the_training_items(classes):
    labels = "aaaabbc"
    weights = dict(zip(classes, class_weights("balanced", classes, labels), strict=True))
    assert np.mean([weights[label] for label in labels]) == pytest.approx(1)
    assert weights["a"] * 4 == pytest.approx(weights["b"] * 2) == pytest.approx(weights["c"])


def test_balanced_weights_need_no_training_items_when_a_model_is_only_used():
    config = TaskConfig(class_weights="balanced")
    assert ClassificationLoss.from_config(config, "ab", []) == ClassificationLoss()


def test_a_config_gives_the_loss_it_describes():
    config = TaskConfig(label_smoothing=0.1, focal_gamma=2.0, class_weights="1,2.5")
    assert ClassificationLoss.from_config(config, "ab", "ab") == ClassificationLoss(0.1, 2.0, (1.0, 2.5))
    assert ClassificationLoss.from_config(TaskConfig(), "ab", "ab") == ClassificationLoss()


@pytest.mark.parametrize("description", ["", "even", "1", "1,2,3", "1,0", "1,-2", "1,nan", "1,inf", "1,x"])
def test_bad_class_weights_are_named(description):
    with pytest.raises(UserError, match=r"config.task.class_weights must be none, balanced or 2 positive numbers"):
        class_weights(description, "ab", "ab")
