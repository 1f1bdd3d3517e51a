"""Evaluation of a task with examples during training."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from lm.data.example_batches import EvaluationExampleBatches
from lm.inference.examples import make_prediction_step, predict_examples
from lm.runs.results import calibration_metrics
from lm.runs.state import TrainState
from lm.statistics.units import shown
from lm.tasks.supervised import Example, Results, Row, SupervisedTask
from lm.training.partitioning import Partitioner


def make_supervised_validation(
    task: SupervisedTask,
    rows: Sequence[Row],
    examples: Sequence[Example],
    batch_size: int,
    buckets: tuple[int, ...],
    partitioner: Partitioner,
) -> Callable[[TrainState], Results]:
    """A function from a state to the task's results for these rows."""
    batches = EvaluationExampleBatches(
        examples, task.axes, task.padding, batch_size, buckets, *partitioner.part_of_batch
    )
    step = partitioner.compile_evaluation_step(make_prediction_step(task, partitioner.axis_name))

    def validate(state: TrainState) -> Results:
        params = state.evaluation_params
        outputs = predict_examples(lambda batch: step(params, partitioner.place_batch(batch)), batches, len(examples))
        return task.results(rows, examples, outputs)

    return validate


def rehearsed_results(task: SupervisedTask, rows: Sequence[Row], batch_size: int, buckets: tuple[int, ...]) -> Results:
    """Results for made-up outputs, without computation, to know the names of the real ones."""
    examples = task.encode(rows).examples
    batches = EvaluationExampleBatches(examples, task.axes, task.padding, batch_size, buckets)
    params = jax.eval_shape(task.init, jax.random.key(0))
    outputs: list[dict[str, Any]] = [{} for _ in examples]
    for number in range(len(batches)):
        shapes = jax.eval_shape(task.predict, params, batches[number])
        made_up = {name: np.ones(leaf.shape[1:], leaf.dtype) for name, leaf in shapes.items()}
        for example in batches[number]["index"]:
            if example >= 0:
                outputs[example] = made_up
    return task.results(rows, examples, outputs)


def validation_metrics(results: Results) -> dict[str, float]:
    """Metrics by the names under which they are logged; per-class metrics are left to `experiments.evaluate`."""
    metrics = {f"validation/{name}": metric.value for name, metric in results.metrics.items() if "/" not in name}
    if results.predictions is not None:
        of_probabilities = {
            f"validation/{name}": value for name, value in calibration_metrics(results.predictions).items()
        }
        metrics |= {name: value for name, value in of_probabilities.items() if name not in metrics}
    return metrics


def describe(metrics: dict[str, float]) -> str:
    """A line about an evaluation."""
    names = ("accuracy", "f1_macro", "f1", "exact_match", "bleu", "chrf", "rougeL", "perplexity", "loss")
    parts = [
        f"{name} {shown(name, metrics[f'validation/{name}'])}" for name in names if f"validation/{name}" in metrics
    ]
    if "validation/ece" in metrics:
        parts.append(f"ECE {metrics['validation/ece']:.2%} (floor {metrics['validation/ece_floor']:.2%})")
    return "validation " + "  ".join(parts)
