"""Resampling whole clusters of items: drawn with replacement for intervals, swapped between two systems for tests.

Items that share a document, a prompt or a seed are not independent, so whole clusters are drawn or swapped. Items are
never copied: draws and swaps are weights of sums.

Axes: N items, G clusters, F features (summed statistics), R resamples, S swaps.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from scipy import sparse

_CHUNK_NUMBERS = 2**19  # draws of clusters, or weights of items, in memory at a time
_ENUMERATED = 12  # clusters up to which all swaps are tried: 2,048 of them

# A NumPy array or one of SciPy's sparse ones, which have no types.
Features = Any


class Resampler:
    """Draws and swaps of clusters, the same for everything that is compared.

    Attributes:
      groups: G.
    """

    def __init__(self, items: int, *, resamples: int, seed: int, clusters_N: np.ndarray | None = None):
        """Prepares the clusters; nothing is drawn yet.

        Args:
          items: N.
          resamples: R; also the number of random swaps, if there are too many to enumerate.
          seed: of draws and swaps.
          clusters_N: a number for each item, the same for items of one cluster; None: each is its own cluster.

        Raises:
          ValueError: if there isn't one number for each item.
        """
        self.resamples, self._seed, self._cluster_N = resamples, seed, None
        self.groups = items
        if clusters_N is not None:
            numbers, self._cluster_N = _numbered(clusters_N, items)
            self.groups = numbers.size

    def counts(self) -> Iterator[np.ndarray]:
        """How often each cluster is drawn, float32 [r, G] at a time, R rows in all; the same at each call."""
        rng = np.random.default_rng(self._seed)
        for rows in self._chunks(self.resamples):
            drawn = np.empty((rows, self.groups), np.float32)
            for row in drawn:  # ten times faster than drawing multinomial counts
                row[:] = np.bincount(rng.integers(0, self.groups, self.groups), minlength=self.groups)
            yield drawn

    def swaps(self) -> Iterator[np.ndarray]:
        """Which clusters two systems swap (1) or keep (0), float32 [s, G] at a time, the same at each call.

        The first row swaps nothing and gives the observed value. Up to 12 clusters the rows enumerate all 2^(G - 1)
        distinct swaps (swapping the complement only flips the difference's sign); beyond that, R random ones.
        """
        if self.groups <= _ENUMERATED:
            ways = np.arange(2 ** max(self.groups - 1, 0))
            yield (ways[:, None] >> np.arange(self.groups) & 1).astype(np.float32)
            return
        rng = np.random.default_rng((self._seed, 1))
        yield np.zeros((1, self.groups), np.float32)
        for rows in self._chunks(self.resamples):
            yield np.stack([rng.integers(0, 2, self.groups, np.int8) for _ in range(rows)]).astype(np.float32)

    def sums(self, features_NF: Features) -> np.ndarray:
        """Resampled sums of features over items, [R, F] in float64; NaN with fewer than two clusters."""
        features_GF = self._of_clusters(features_NF)
        return self._known(np.concatenate([_product(counts, features_GF) for counts in self.counts()]))

    def evaluate(self, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """`function(weights_rN) -> [r, ...]` for the weight of each item in each resample, R rows in all."""
        return self._known(np.concatenate([function(self._of_items(counts)) for counts in self.counts()]))

    def swapped_sums(self, one_NF: Features, other_NF: Features) -> tuple[np.ndarray, np.ndarray]:
        """Sums of two systems' features, [S, F] each, after each of the swaps; the first row is as observed."""
        one_GF, other_GF = self._of_clusters(one_NF), self._of_clusters(other_NF)
        change_GF = other_GF - one_GF
        moved_SF = np.concatenate([_product(swaps, change_GF) for swaps in self.swaps()])
        one_F, other_F = (np.asarray(each_GF.sum(axis=0)) for each_GF in (one_GF, other_GF))
        return self._known(one_F + moved_SF), self._known(other_F - moved_SF)

    def evaluate_swapped(self, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """`function(is_swapped_sN) -> [s, ...]` of items, S rows in all; the first is as observed."""
        return self._known(np.concatenate([function(self._of_items(swaps)) for swaps in self.swaps()]))

    def _chunks(self, rows: int) -> Iterator[int]:
        items = self.groups if self._cluster_N is None else self._cluster_N.size
        at_a_time = max(1, _CHUNK_NUMBERS // max(items, 1))
        for start in range(0, rows, at_a_time):
            yield min(at_a_time, rows - start)

    def _of_clusters(self, features_NF: Features) -> Features:
        if self._cluster_N is not None:
            return _added_up(features_NF, self._cluster_N, self.groups)
        return features_NF.astype(np.float64)

    def _of_items(self, weights_RG: np.ndarray) -> np.ndarray:
        return weights_RG if self._cluster_N is None else weights_RG[:, self._cluster_N]

    def _known(self, values: np.ndarray) -> np.ndarray:
        """NaN with one cluster, which shows nothing about the spread between clusters."""
        return values if self.groups > 1 else np.full_like(values, np.nan, np.float64)


def sum_by_cluster(statistics_NK: np.ndarray, clusters_N: np.ndarray) -> np.ndarray:
    """Sums of the items that have the same number, [G, K], in increasing order of the numbers.

    Raises:
      ValueError: if there isn't one number for each item.
    """
    statistics_NK = np.asarray(statistics_NK)
    numbers, cluster_N = _numbered(clusters_N, len(statistics_NK))
    return _added_up(statistics_NK, cluster_N, numbers.size)


def _numbered(clusters_N: np.ndarray, items: int) -> tuple[np.ndarray, np.ndarray]:
    if np.shape(clusters_N) != (items,):
        raise ValueError(f"{items} items, but clusters of shape {np.shape(clusters_N)}")
    return np.unique(clusters_N, return_inverse=True)


def _added_up(features_NF: Features, cluster_N: np.ndarray, groups: int) -> Features:
    items = np.arange(cluster_N.size)
    member_GN = sparse.csr_array((np.ones(items.size), (cluster_N, items)), shape=(groups, items.size))
    return member_GN @ features_NF.astype(np.float64)


def _product(weights_RG: np.ndarray, features_GF: Features) -> np.ndarray:
    """In float64, where products of integers are exact, so that equal resamples give equal results."""
    if sparse.issparse(features_GF):
        return (features_GF.T @ weights_RG.T.astype(np.float64)).T
    return weights_RG.astype(np.float64) @ features_GF
