"""Draws and swaps against explicit copies of items."""

import numpy as np
import pytest
from scipy import sparse

from lm.statistics import resampling
from lm.statistics.resampling import Resampler

N = 37
FEATURES = np.random.default_rng(5).normal(size=(N, 3))
OTHERS = np.random.default_rng(6).normal(size=(N, 3))
CLUSTERS = 10 * np.random.default_rng(7).integers(20, size=N) - 3  # any numbers will do


def resampler(clusters=None, seed=3):
    return Resampler(N, resamples=20, seed=seed, clusters_N=clusters)


@pytest.mark.parametrize("clusters", [None, CLUSTERS])
def test_resampled_sums_equal_those_of_copies(clusters):
    counts = np.concatenate(list(resampler(clusters).counts())).astype(int)
    groups = N if clusters is None else len(set(clusters.tolist()))
    assert counts.shape == (20, groups)
    assert (counts.sum(axis=1) == groups).all()
    of_items = counts if clusters is None else counts[:, np.unique(clusters, return_inverse=True)[1]]
    expected = [np.repeat(FEATURES, row, axis=0).sum(axis=0) for row in of_items]
    for features in (FEATURES, sparse.csr_array(FEATURES)):
        np.testing.assert_allclose(resampler(clusters).sums(features), expected, atol=1e-12)
    np.testing.assert_array_equal(resampler(clusters).evaluate(lambda weights: weights), of_items)


@pytest.mark.parametrize("clusters", [None, CLUSTERS])
def test_swapped_sums_equal_those_of_swapped_items(clusters):
    is_swapped = resampler(clusters).evaluate_swapped(lambda swapped: swapped).astype(bool)
    assert is_swapped.shape == (21, N)
    assert not is_swapped[0].any()
    assert 0.3 < is_swapped[1:].mean() < 0.7
    if clusters is not None:
        for number in set(clusters.tolist()):
            within = is_swapped[:, clusters == number]
            assert (within == within[:, :1]).all()
    for kind in (np.asarray, sparse.csr_array):
        one, other = resampler(clusters).swapped_sums(kind(FEATURES), kind(OTHERS))
        for row, of_one, of_other in zip(is_swapped[..., None], one, other, strict=True):
            np.testing.assert_allclose(of_one, np.where(row, OTHERS, FEATURES).sum(axis=0), atol=1e-12)
            np.testing.assert_allclose(of_other, np.where(row, FEATURES, OTHERS).sum(axis=0), atol=1e-12)


def test_few_clusters_are_swapped_in_every_way_once():
    found = resampler(np.arange(N) % 5).evaluate_swapped(lambda swapped: swapped[:, :5])
    assert found.shape == (16, 5)
    both_sides = {tuple(way) for row in found.astype(int).tolist() for way in (row, [1 - each for each in row])}
    assert len(both_sides) == 32


def test_the_seed_makes_the_draws_and_the_chunks_do_not(monkeypatch):
    def drawn(seed):
        of_seed = resampler(seed=seed)
        return np.concatenate([*of_seed.counts(), *of_seed.swaps()])

    whole = drawn(3)
    monkeypatch.setattr(resampling, "_CHUNK_NUMBERS", 7 * N)
    np.testing.assert_array_equal(drawn(3), whole)
    assert (drawn(4) != whole).any()


def test_large_means_cost_resampled_sums_no_precision():
    counts = np.concatenate(list(resampler().counts())).astype(np.float64)
    np.testing.assert_allclose(resampler().sums(1e6 + FEATURES), counts @ (1e6 + FEATURES), rtol=1e-12)


def test_one_cluster_says_nothing():
    alone = resampler(np.zeros(N))
    assert np.isnan(alone.sums(FEATURES)).all()
    assert np.isnan(alone.swapped_sums(FEATURES, OTHERS)).all()
    assert np.isnan(alone.evaluate(lambda weights: weights.sum(axis=1))).all()
    with pytest.raises(ValueError, match="37 items"):
        resampler(np.zeros(N - 1))
