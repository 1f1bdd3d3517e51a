"""A full pass over the validation split."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax import Array

from lm.evaluation.statistics import WeightedMean
from lm.tasks.token_reliability import ReliabilityTotals, reliability_metrics
from lm.training.partitioning import HostBatch, Partitioner
from lm.training.step import TrainState


def evaluate(
    evaluation_step: Callable[[TrainState, dict[str, Array]], dict[str, Any]],
    state: TrainState,
    batches: Iterable[HostBatch],
    partitioner: Partitioner,
) -> tuple[dict[str, WeightedMean], ReliabilityTotals]:
    """The weighted mean of each statistic over all batches, with windows of text as clusters; and reliability's totals.

    Args:
      evaluation_step: compiled, from `make_evaluation_step`; its result has `weight` and any number of other sums.
      state: whose evaluation parameters to use.
      batches: this host's part of every batch; windows of padding have weight 0.
      partitioner: places them.
    """
    means: dict[str, WeightedMean] = {}
    reliability: ReliabilityTotals = {}

    def add(sums: dict[str, Any]) -> None:
        for kind, of_batch in sums.pop("reliability").items():
            totals = of_batch.totals()  # multiples of 2^-24: float64 adds them exactly
            reliability[kind] = jax.tree.map(np.add, reliability[kind], totals) if kind in reliability else totals
        weight_B = np.asarray(sums["weight"])
        for name, total_B in sums.items():
            if name != "weight":
                means[name] = means.get(name, WeightedMean()) + WeightedMean.from_clusters(total_B, weight_B)

    waiting = None  # fetched while the next batch is computed
    for batch in batches:
        sums = evaluation_step(state, partitioner.place_batch(batch))
        if waiting is not None:
            add(waiting)
        waiting = sums
    if waiting is not None:
        add(waiting)
    return means, reliability


def validation_metrics(
    means: dict[str, WeightedMean], reliability: ReliabilityTotals, num_bytes: int
) -> dict[str, float]:
    """Metrics by the names under which they are logged.

    Args:
      means: from `evaluate`, `loss` in nats a token.
      reliability: from `evaluate`.
      num_bytes: of the UTF-8 text whose tokens were counted, for bits per byte.
    """
    metrics = {}
    for name, mean in means.items():
        metrics[f"validation/{name}"] = mean.mean
        metrics[f"validation/{name}_stderr"] = mean.standard_error
    loss = means["loss"]
    metrics["validation/perplexity"] = math.exp(min(loss.mean, 700.0))
    metrics["validation/bits_per_byte"] = loss.total / math.log(2) / num_bytes
    metrics["validation/tokens"] = loss.weight
    metrics |= {f"validation/{name}": value for name, value in reliability_metrics(reliability).items()}
    return metrics
