"""Reliability of next-token probabilities, by position, by frequency of the predicted token, and by entropy.

The sums are integers over confidence bins, computed in the evaluation step: they merge over batches and devices without
loss, and cost a few additions per token.

Axes: B batch, T positions, V vocabulary, K buckets, M bins.
"""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jax import Array

from lm.calibration.binning import Binning, BinSums, BinTotals, update
from lm.calibration.errors import ece, ece_floor
from lm.evaluation.token_statistics import TokenStatistics

BINNING = Binning(15)
BUCKETS = 8

ReliabilitySums = dict[str, BinSums]
ReliabilityTotals = dict[str, BinTotals]


@dataclasses.dataclass(frozen=True)
class TokenBuckets:
    """How tokens are grouped.

    Attributes:
      frequency_bucket_V: each token's bucket by frequency in the training text: 0 for the most common tokens, which
        make up the first eighth of the text, 7 for the rarest and those that never occur. None: no grouping by
        frequency.
    """

    frequency_bucket_V: tuple[int, ...] | None = None

    @classmethod
    def of_text(cls, tokens: np.ndarray, vocab_size: int) -> "TokenBuckets":
        """Counts the tokens of a training text (the first ten million of a long one)."""
        return cls(tuple(frequency_buckets(tokens[:10_000_000], vocab_size, BUCKETS).tolist()))


def frequency_buckets(tokens: np.ndarray, vocab_size: int, buckets: int) -> np.ndarray:
    """Each token's bucket by its frequency in a text, [V].

    Args:
      tokens: of the text.
      vocab_size: V.
      buckets: their number. 0 is of the most common tokens, which make up the first of as many parts of the text, and
        the last one of the rarest and those that never occur. A token that makes up several parts leaves some empty.
    """
    counts_V = np.bincount(tokens, minlength=vocab_size)
    order_V = np.argsort(-counts_V, kind="stable")
    before_V = np.cumsum(counts_V[order_V]) - counts_V[order_V]
    bucket_V = np.full(vocab_size, buckets - 1)
    bucket_V[order_V] = np.minimum(before_V * buckets // max(counts_V.sum(), 1), buckets - 1)
    bucket_V[counts_V == 0] = buckets - 1
    return bucket_V


def reliability_sums(
    statistics: TokenStatistics,
    predicted_BT: Array,
    positions_BT: Array,
    weights_BT: Array,
    buckets: TokenBuckets,
    vocab_size: int,
) -> ReliabilitySums:
    """Sums over confidence bins, [K, M], for each kind of bucket; every token is in one bucket of each kind.

    Args:
      statistics: of each token, [B, T].
      predicted_BT: the token with the highest probability. Buckets depend on the prediction, not on the target:
        conditioning on the outcome would make any model look miscalibrated.
      positions_BT: each token's place in its segment.
      weights_BT: 0 where a token doesn't count.
      buckets: of the vocabulary.
      vocab_size: V.
    """
    # Positions 0, 1 to 2, 3 to 6, 7 to 14, ... and entropy in eighths of its largest value.
    position_BT = jnp.minimum(jnp.log2(positions_BT + 1.0).astype(jnp.int32), BUCKETS - 1)
    entropy_BT = jnp.clip(statistics.entropy / math.log(vocab_size) * BUCKETS, 0, BUCKETS - 1).astype(jnp.int32)
    kinds = {"position": position_BT, "entropy": entropy_BT}
    if buckets.frequency_bucket_V is not None:
        kinds["frequency"] = jnp.asarray(buckets.frequency_bucket_V, jnp.int32)[predicted_BT]
    return {
        kind: update(
            BinSums.init(BINNING, (BUCKETS,)),
            statistics.confidence.reshape(-1),
            statistics.correct.reshape(-1),
            BINNING,
            mask_N=weights_BT.reshape(-1) > 0,
            bucket_N=bucket_BT.reshape(-1),
        )
        for kind, bucket_BT in kinds.items()
    }


def reliability_metrics(totals: ReliabilityTotals) -> dict[str, float]:
    """Metrics by name: `ece` and `ece_floor` over all tokens, and `KIND_BUCKET/...` for each non-empty bucket.

    The floor is the mean ECE of a perfectly calibrated model with these confidences and independent tokens. Tokens of
    one document are dependent, so the true floor is somewhat higher.
    """
    whole = BinTotals(*(values.sum(axis=0) for values in totals["position"]))
    metrics = {"ece": float(ece(whole)), "ece_floor": float(ece_floor(whole))}
    for kind, of_kind in totals.items():
        for bucket, name in enumerate(_names(kind)):
            of_bucket = BinTotals(*(values[bucket] for values in of_kind))
            count = of_bucket.count.sum()
            if count > 0:
                prefix = f"{kind}_{name}"
                metrics[f"{prefix}/ece"] = float(ece(of_bucket))
                metrics[f"{prefix}/ece_floor"] = float(ece_floor(of_bucket))
                metrics[f"{prefix}/accuracy"] = float(of_bucket.correct.sum() / count)
                metrics[f"{prefix}/confidence"] = float(of_bucket.confidence.sum() / count)
                metrics[f"{prefix}/tokens"] = float(count)
    return metrics


def _names(kind: str) -> list[str]:
    if kind == "position":
        ends = [f"{2**k - 1}-{2 ** (k + 1) - 2}" for k in range(1, BUCKETS - 1)]
        return ["0", *ends, f"{2 ** (BUCKETS - 1) - 1}-"]
    return [f"{bucket + 1}of{BUCKETS}" for bucket in range(BUCKETS)]
