"""A full pass over the validation split.

Axes: B rows of a batch, W windows of text.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax import Array

from lm.evaluation.token_reliability import ReliabilityTotals, reliability_metrics
from lm.objectives.objective import PretrainingTask
from lm.runs.state import TrainState
from lm.statistics.metrics import Metric, mean_metric
from lm.statistics.weighted_mean import WeightedMean
from lm.training.partitioning import Partitioner
from lm.training.step import make_evaluation_step
from lm.types import Batches, HostBatch


def evaluate(
    evaluation_step: Callable[[TrainState, dict[str, Array]], dict[str, Any]],
    state: TrainState,
    batches: Iterable[HostBatch],
    partitioner: Partitioner,
) -> tuple[dict[str, WeightedMean], ReliabilityTotals]:
    """The weighted mean of each statistic over all batches, with windows of text as clusters, and reliability totals.

    Args:
      evaluation_step: compiled, from `make_evaluation_step`; its result has `weight` and any number of other sums.
      state: whose evaluation parameters to use.
      batches: this host's part of every batch; windows of padding have weight 0.
      partitioner: places the batches on devices.
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


def make_validation(
    task: PretrainingTask, batches: Batches, num_bytes: int | None, partitioner: Partitioner
) -> Callable[[TrainState], dict[str, float]]:
    """A function from a state to the metrics of a full pass over these batches.

    Args:
      task: what is learned.
      batches: this host's part of each batch.
      num_bytes: as in `validation_metrics`.
      partitioner: compiles the step.
    """
    step = partitioner.compile_evaluation_step(make_evaluation_step(task, axis_name=partitioner.axis_name))

    def validate(state: TrainState) -> dict[str, float]:
        sums = evaluate(step, state, (batches[i] for i in range(len(batches))), partitioner)
        return validation_metrics(*sums, num_bytes)

    return validate


def rehearsed_metrics(
    task: PretrainingTask, batches: Batches, num_bytes: int | None, partitioner: Partitioner
) -> dict[str, float]:
    """Metrics of made-up sums, without computation, to know the names of the real ones."""
    params = jax.eval_shape(task.init, jax.random.key(0))
    state = TrainState.of_params(params)
    shapes = jax.eval_shape(make_evaluation_step(task), state, batches[0])
    sums = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)
    return validation_metrics(*evaluate(lambda *_: sums, state, [batches[0]], partitioner), num_bytes)


def loss_by_window(task: PretrainingTask, state: TrainState, batches: Batches, partitioner: Partitioner) -> Metric:
    """The validation loss as a metric with windows as items, for paired comparisons of models on the same text."""
    step = partitioner.compile_evaluation_step(make_evaluation_step(task, axis_name=partitioner.axis_name))
    found = [step(state, partitioner.place_batch(batches[number])) for number in range(len(batches))]
    loss_W, weight_W = (np.concatenate([np.asarray(sums[name]) for sums in found]) for name in ("loss", "weight"))
    used_W = weight_W > 0
    return mean_metric(loss_W[used_W] / weight_W[used_W], weight_W[used_W], better="lower")


def validation_metrics(
    means: dict[str, WeightedMean], reliability: ReliabilityTotals, num_bytes: int | None
) -> dict[str, float]:
    """Metrics by the names in the log.

    Args:
      means: from `evaluate`, `loss` in nats per token.
      reliability: from `evaluate`.
      num_bytes: of the UTF-8 text whose tokens were counted, for bits per byte; None if a task predicts only part of
        them.
    """
    metrics = {}
    for name, mean in means.items():
        metrics[f"validation/{name}"] = mean.mean
        metrics[f"validation/{name}_stderr"] = mean.standard_error
    loss = means["loss"]
    metrics["validation/perplexity"] = math.exp(min(loss.mean, 700.0))
    if num_bytes is not None:
        metrics["validation/bits_per_byte"] = loss.total / math.log(2) / num_bytes
    metrics["validation/tokens"] = loss.weight
    metrics |= {f"validation/{name}": value for name, value in reliability_metrics(reliability).items()}
    return metrics


def describe(metrics: dict[str, float]) -> str:
    """A line about an evaluation, with standard errors."""
    loss, accuracy = metrics["validation/loss"], metrics["validation/accuracy"]
    parts = [
        f"validation loss {loss:.4f} ± {metrics['validation/loss_stderr']:.4f}",
        f"perplexity {metrics['validation/perplexity']:.2f}",
        f"accuracy {accuracy:.2%} ± {metrics['validation/accuracy_stderr']:.2%}",
        f"confidence {metrics['validation/confidence']:.2%}",
        f"ECE {metrics['validation/ece']:.2%} (floor {metrics['validation/ece_floor']:.2%})",
    ]
    if "validation/bits_per_byte" in metrics:
        parts.insert(2, f"bits per byte {metrics['validation/bits_per_byte']:.4f}")
    if "validation/next_sentence_accuracy" in metrics:
        parts.append(f"next sentence {metrics['validation/next_sentence_accuracy']:.2%}")
    return "  ".join(parts)
