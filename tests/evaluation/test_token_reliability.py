"""Reliability by bucket: every token once, each in the bucket that it belongs to."""

import jax
import jax.numpy as jnp
import numpy as np

from lm.evaluation.token_reliability import BUCKETS, TokenBuckets, reliability_metrics, reliability_sums
from lm.evaluation.token_statistics import token_statistics

B, T, V = 4, 40, 32
RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(scale=3.0, size=(B, T, V)).astype(np.float32)
TARGETS = RANDOM.integers(0, V, (B, T)).astype(np.int32)
POSITIONS = np.tile(np.arange(T, dtype=np.int32), (B, 1))
TEXT = np.repeat(np.arange(V - 2), np.arange(V - 2, 0, -1) ** 2)  # 0 the most common; the last two never occur
BUCKETS_OF_TEXT = TokenBuckets.of_text(TEXT, V)


@jax.jit
def sums_of(logits, targets, positions, weights):
    statistics = token_statistics(logits, targets)
    return reliability_sums(statistics, statistics.predicted, positions, weights, BUCKETS_OF_TEXT, V)


def totals_of(logits=LOGITS, targets=TARGETS, positions=POSITIONS, weights=None):
    weights = jnp.ones(targets.shape) if weights is None else weights
    return {kind: sums.totals() for kind, sums in sums_of(logits, targets, positions, weights).items()}


def test_every_token_is_in_one_bucket_of_each_kind():
    for kind, totals in totals_of().items():
        assert totals.count.shape == (BUCKETS, 15)
        assert totals.count.sum() == B * T, kind


def test_metrics_equal_those_of_each_bucket_alone():
    metrics = reliability_metrics(totals_of())
    probabilities = np.asarray(jax.nn.softmax(LOGITS, axis=-1), np.float64)
    confidence, correct = probabilities.max(axis=-1), probabilities.argmax(axis=-1) == TARGETS

    def ece(chosen):
        bins = np.clip(np.ceil(confidence[chosen] * 15) - 1, 0, 14).astype(int)
        gap = np.bincount(bins, correct[chosen] - confidence[chosen], 15)
        return np.abs(gap).sum() / chosen.sum()

    everything = np.ones((B, T), bool)
    np.testing.assert_allclose(metrics["ece"], ece(everything), atol=1e-6)
    at_3_to_6 = (POSITIONS >= 3) & (POSITIONS <= 6)
    np.testing.assert_allclose(metrics["position_3-6/ece"], ece(at_3_to_6), atol=1e-6)
    np.testing.assert_allclose(metrics["position_3-6/accuracy"], correct[at_3_to_6].mean(), atol=1e-6)
    rare = np.array(BUCKETS_OF_TEXT.frequency_bucket_V)[probabilities.argmax(axis=-1)] == 7
    np.testing.assert_allclose(metrics["frequency_8of8/confidence"], confidence[rare].mean(), atol=1e-6)
    entropy = -(probabilities * np.log(probabilities)).sum(axis=-1)
    unsure = (entropy >= np.log(V) / 2) & (entropy < np.log(V) * 5 / 8)
    assert metrics["entropy_5of8/tokens"] == unsure.sum() > 0


def test_padding_does_not_count():
    weights = jnp.asarray(RANDOM.integers(0, 2, (B, T)), jnp.float32)
    for totals in totals_of(weights=weights).values():
        assert totals.count.sum() == weights.sum()


def test_frequency_buckets_share_the_text_evenly():
    bucket_V = np.array(BUCKETS_OF_TEXT.frequency_bucket_V)
    assert (np.diff(bucket_V) >= 0).all()
    assert (bucket_V[-2:] == BUCKETS - 1).all(), "a token that never occurs is not among the rarest"
    shares = np.bincount(bucket_V[TEXT], minlength=BUCKETS) / TEXT.size
    assert shares.max() < 2 / BUCKETS


def test_floor_is_what_a_calibrated_model_shows():
    """Targets drawn from the model's own probabilities: the mean ECE over many draws is the floor."""
    rng = np.random.default_rng(1)
    logits = np.tile(LOGITS, (5, 1, 1))
    cumulative = np.asarray(jax.nn.softmax(logits, axis=-1), np.float64).cumsum(axis=-1)
    positions = np.tile(POSITIONS, (5, 1))
    found = []
    for _ in range(60):
        drawn = (cumulative < rng.uniform(size=(5 * B, T, 1))).sum(axis=-1).clip(0, V - 1).astype(np.int32)
        found.append(reliability_metrics(totals_of(logits, drawn, positions)))
    mean = np.mean([metrics["ece"] for metrics in found])
    np.testing.assert_allclose(mean, found[0]["ece_floor"], rtol=0.08)
