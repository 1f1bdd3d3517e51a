"""A random order without a table: where a place goes is computed, so that a trillion places need no memory."""

import numpy as np

_ROUNDS = 6
_MULTIPLIERS = np.array([0xBF58476D1CE4E5B9, 0x94D049BB133111EB], np.uint64)  # of SplitMix64 (Steele et al. 2014)


def permuted(places_b: np.ndarray, size: int, key: tuple[int, ...]) -> np.ndarray:
    """Where a permutation of range(size) sends some places, int64 [b].

    A Feistel network permutes the next power of four; a place that leaves the range goes round until it is inside again
    (Black & Rogaway 2002, Ciphers with Arbitrary Finite Domains).

    Args:
      places_b: in [0, size), [b].
      size: at least 1 and below 2**62.
      key: non-negative integers that choose the permutation.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)  # bits
    keys = np.random.default_rng(key).integers(2**63, size=_ROUNDS, dtype=np.uint64)
    values_b = _network(np.asarray(places_b).astype(np.uint64), half, keys)
    while (outside_b := values_b >= size).any():
        values_b[outside_b] = _network(values_b[outside_b], half, keys)
    return values_b.astype(np.int64)


def _network(values: np.ndarray, half: int, keys: np.ndarray) -> np.ndarray:
    mask, shift = np.uint64(2**half - 1), np.uint64(half)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right ^ key) & mask)
    return left << shift | right


def _mixed(values: np.ndarray) -> np.ndarray:
    values = (values ^ values >> np.uint64(30)) * _MULTIPLIERS[0]
    values = (values ^ values >> np.uint64(27)) * _MULTIPLIERS[1]
    return values ^ values >> np.uint64(31)
