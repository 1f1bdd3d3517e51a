"""Proper scores and ranking: exact sums, ties, and weights that stand for copies."""

import itertools

import numpy as np
import pytest

from lm.calibration.scores import Ranking, accuracy_at_coverage, aurc, auroc, brier_decomposition, risk_coverage

RANDOM = np.random.default_rng(0)
N = 60
CONFIDENCE = np.round(RANDOM.uniform(0.2, 1, size=N), 1)  # many ties
CORRECT = (RANDOM.random(N) < CONFIDENCE).astype(np.float64)
CORRECT[:6] = 1 / 2  # as where two classes share the highest probability
RANKING = Ranking.of(CONFIDENCE)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("bins", [1, 4, 15])
def test_brier_decomposition_adds_up(classes, bins):
    probabilities = RANDOM.dirichlet(np.ones(classes), size=200)
    probabilities[:3] = np.eye(classes)[[0, 1, 0]]
    labels = RANDOM.integers(classes - 1, size=200)  # the last class never is
    found = brier_decomposition(labels, probabilities, bins)
    assert found.brier == pytest.approx(((probabilities - np.eye(classes)[labels]) ** 2).sum(axis=1).mean(), abs=1e-14)
    parts = found.reliability - found.resolution + found.uncertainty + found.within_bins
    assert parts == pytest.approx(found.brier, abs=1e-14)
    assert found.uncertainty == pytest.approx(1 - ((np.bincount(labels) / 200) ** 2).sum())
    assert min(found.reliability, found.resolution) >= 0
    if bins == 1:
        assert found.resolution == pytest.approx(0, abs=1e-14)


def test_within_bins_is_0_where_probabilities_of_a_bin_are_equal():
    first = RANDOM.choice([0.1, 0.45, 0.8], size=300)
    found = brier_decomposition((RANDOM.random(300) > first).astype(int), np.stack([first, 1 - first], axis=1), 10)
    assert found.within_bins == pytest.approx(0, abs=1e-14)
    assert found.resolution > 0.1


# --- ranking ---


def auroc_by_pairs(confidence, correct):
    """Over all pairs of items; an answer that is half right is half of each."""
    higher = (confidence[:, None] > confidence) + 0.5 * (confidence[:, None] == confidence)
    pairs = correct[:, None] * (1 - correct)
    return (pairs * higher).sum() / pairs.sum()


def aurc_in_order(correct):
    return ((1 - correct).cumsum() / np.arange(1, correct.size + 1)).mean()


def test_auroc_equals_that_of_all_pairs():
    assert auroc(RANKING, CORRECT) == pytest.approx(auroc_by_pairs(CONFIDENCE, CORRECT))
    assert auroc(Ranking.of(np.arange(4.0)), np.array([0, 0, 1, 1])) == 1
    assert auroc(Ranking.of(np.arange(4.0)), np.array([1, 1, 0, 0])) == 0
    assert auroc(Ranking.of(np.full(4, 0.3)), np.array([1, 0, 1, 0])) == 0.5


@pytest.mark.parametrize("constant", [0.0, 1.0])
def test_auroc_of_answers_that_are_all_alike_is_nan(constant):
    assert np.isnan(auroc(RANKING, np.full(N, constant)))
    assert aurc(RANKING, np.full(N, constant)) == pytest.approx(1 - constant)


def test_aurc_equals_its_mean_over_every_way_to_break_ties():
    confidence = np.array([0.9, 0.5, 0.5, 0.5, 0.7, 0.7, 0.1])
    correct = np.array([1.0, 0, 1, 0, 0, 1, 1])
    orders = [order for order in itertools.permutations(range(7)) if (np.diff(confidence[list(order)]) <= 0).all()]
    assert len(orders) == 12
    expected = np.mean([aurc_in_order(correct[list(order)]) for order in orders])
    assert aurc(Ranking.of(confidence), correct) == pytest.approx(expected)


def test_aurc_without_ties_is_the_mean_of_cumulative_error_rates():
    confidence = RANDOM.permutation(N) / N
    order = np.argsort(-confidence)
    assert aurc(Ranking.of(confidence), CORRECT) == pytest.approx(aurc_in_order(CORRECT[order]))


def test_the_order_of_items_means_nothing():
    for _ in range(5):
        order = RANDOM.permutation(N)
        ranking = Ranking.of(CONFIDENCE[order])
        for function in (auroc, aurc):
            assert function(ranking, CORRECT[order]) == pytest.approx(function(RANKING, CORRECT), rel=1e-12)
        assert accuracy_at_coverage(ranking, CORRECT[order], 0.33) == pytest.approx(
            accuracy_at_coverage(RANKING, CORRECT, 0.33)
        )


@pytest.mark.parametrize("function", [auroc, aurc])
def test_weights_stand_for_copies(function):
    counts = RANDOM.poisson(1.0, size=(6, N))
    counts[0], counts[1, CONFIDENCE == 0.5] = 1, 0  # as it is; and a group that was not drawn
    found = function(RANKING, CORRECT, counts)
    copies = [function(Ranking.of(np.repeat(CONFIDENCE, row)), np.repeat(CORRECT, row)) for row in counts]
    np.testing.assert_allclose(found, copies, rtol=1e-9)
    assert found[0] == function(RANKING, CORRECT)


def test_risk_coverage_is_read_at_the_end_of_each_tie():
    coverage, risk = risk_coverage(Ranking.of(np.array([0.5, 0.9, 0.5, 0.2])), np.array([0, 1, 1, 0]))
    np.testing.assert_allclose(coverage, [0.25, 0.75, 1])
    np.testing.assert_allclose(risk, [0, 1 / 3, 1 / 2])


def test_accuracy_at_coverage_shares_ties():
    ranking, correct = Ranking.of(np.array([0.5, 0.9, 0.5, 0.2])), np.array([0, 1, 1, 0])
    found = [accuracy_at_coverage(ranking, correct, coverage) for coverage in (0.25, 0.5, 0.75, 1)]
    assert found == pytest.approx([1, 3 / 4, 2 / 3, 1 / 2])
    for wrong in (0, 1.1):
        with pytest.raises(ValueError, match="coverage"):
            accuracy_at_coverage(ranking, correct, wrong)
