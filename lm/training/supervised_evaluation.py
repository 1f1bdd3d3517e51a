"""What a model trained on a task with examples gets right, while it trains and afterwards.

Axes: N items, C classes.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array

from lm.calibration.binning import Binning, bin_totals
from lm.calibration.calibrators import Fitted
from lm.calibration.errors import ece, ece_floor
from lm.calibration.outcomes import outcomes
from lm.calibration.predictions import Predictions
from lm.data.example_batches import EvaluationExampleBatches
from lm.errors import UserError
from lm.evaluation.bootstrap import Metric, intervals, mean_metric
from lm.evaluation.pictures import save_confusion_picture
from lm.files import json_value, write_atomically, write_json
from lm.runs.state import TrainState
from lm.runs.work_directory import WorkDirectory
from lm.tasks.supervised import Example, Results, Row, SupervisedTask
from lm.training.partitioning import Partitioner
from lm.types import Batch, HostBatch

BINNING = Binning(15)

Predict = Callable[[TrainState, Batch], dict[str, Array]]


def make_prediction_step(task: SupervisedTask, partitioner: Partitioner) -> Predict:
    """Compiles (state, batch) to what the task predicts for every row of the whole batch, known to every device."""

    def step(state: TrainState, batch: Batch) -> dict[str, Array]:
        outputs = task.predict(state.evaluation_params, batch)
        if partitioner.axis_name is not None:
            outputs = jax.lax.all_gather(outputs, partitioner.axis_name, tiled=True)
        return outputs

    return partitioner.compile_evaluation_step(step)


def predict_examples(
    predict: Predict, state: TrainState, batches: Sequence[HostBatch], examples: int, partitioner: Partitioner
) -> list[dict[str, Any]]:
    """For each example its part of the outputs, in the order of the examples.

    Args:
      predict: from `make_prediction_step`.
      state: whose evaluation parameters to use.
      batches: with an `index` that says which example each row is, -1 for none.
      examples: how many there are.
      partitioner: places batches.
    """
    found: list[dict[str, Any]] = [{} for _ in range(examples)]
    for number in range(len(batches)):
        batch = batches[number]
        outputs = jax.tree.map(np.asarray, predict(state, partitioner.place_batch(batch)))
        for row, example in enumerate(batch["index"]):
            if example >= 0:
                found[example] = {name: values[row] for name, values in outputs.items()}
    return found


def make_supervised_validation(
    task: SupervisedTask,
    rows: Sequence[Row],
    examples: Sequence[Example],
    batch_size: int,
    buckets: tuple[int, ...],
    partitioner: Partitioner,
    calibrator: Fitted | None = None,
) -> Callable[[TrainState], Results]:
    """A function from a state to the task's results for these rows."""
    batches = EvaluationExampleBatches(examples, task.axes, task.padding, batch_size, buckets)
    predict = make_prediction_step(task, partitioner)

    def validate(state: TrainState) -> Results:
        outputs = predict_examples(predict, state, batches, len(examples), partitioner)
        if calibrator is not None:
            outputs = with_calibrator(outputs, calibrator)
        return task.results(rows, examples, outputs)

    return validate


def rehearsed_results(task: SupervisedTask, rows: Sequence[Row], batch_size: int, buckets: tuple[int, ...]) -> Results:
    """Results for made-up outputs, which cost nothing and have the names of the true ones."""
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
    """Metrics by the names under which they are logged; those of single classes are left to `experiments.evaluate`."""
    metrics = {f"validation/{name}": metric.value for name, metric in results.metrics.items() if "/" not in name}
    if results.predictions is not None:
        metrics |= {f"validation/{name}": value for name, value in calibration_metrics(results.predictions).items()}
    return metrics


def calibration_metrics(predictions: Predictions) -> dict[str, float]:
    """`loss` (mean NLL in nats), `confidence`, `ece` and `ece_floor` of predicted classes."""
    found = outcomes(predictions.labels_N, logits=predictions.logits)
    totals = bin_totals(found.confidence_N, found.correct_N, BINNING)
    return {
        "loss": float(np.mean(found.nll_N)),
        "confidence": float(np.mean(found.confidence_N)),
        "ece": float(ece(totals)),
        "ece_floor": float(ece_floor(totals)),
    }


def probability_metrics(predictions: Predictions) -> dict[str, Metric]:
    """`loss` and `confidence` as figures that know their uncertainty; items of one cluster are resampled together."""
    found = outcomes(predictions.labels_N, logits=predictions.logits)
    metrics = {"loss": mean_metric(found.nll_N), "confidence": mean_metric(found.confidence_N)}
    if predictions.clusters_N is None:
        return metrics
    return {name: metric.in_clusters(predictions.clusters_N) for name, metric in metrics.items()}


def describe(metrics: dict[str, float]) -> str:
    """A line about an evaluation."""
    shown = ("accuracy", "f1_macro", "f1", "exact_match", "bleu", "chrf", "rougeL", "perplexity", "loss")
    parts = [f"{name} {metrics[f'validation/{name}']:.4g}" for name in shown if f"validation/{name}" in metrics]
    if "validation/ece" in metrics:
        parts.append(f"ECE {metrics['validation/ece']:.2%} (floor {metrics['validation/ece_floor']:.2%})")
    return "validation " + "  ".join(parts)


def with_calibrator(outputs: list[dict[str, Any]], calibrator: Fitted) -> list[dict[str, Any]]:
    """The outputs with a calibrator applied to their `logits`, from which predicted classes and confidences follow.

    Raises:
      UserError: if there are no logits, or the calibrator is for another number of classes.
    """
    if "logits" not in outputs[0]:
        raise UserError("config.calibrator: this task's answers are no choice among classes, so there is none to apply")
    classes = outputs[0]["logits"].shape[-1]
    if calibrator.classes != classes:
        raise UserError(
            f"config.calibrator is for {calibrator.classes} classes, and this model chooses among {classes}"
        )
    flat = [output["logits"].reshape(-1, classes) for output in outputs]
    mended = np.asarray(calibrator.apply(np.concatenate(flat)))
    parts = np.split(mended, np.cumsum([len(part) for part in flat])[:-1])
    return [
        {**output, "logits": part.reshape(output["logits"].shape)} for output, part in zip(outputs, parts, strict=True)
    ]


def write_results(results: Results, directory: WorkDirectory, split: str, resamples: int, step: int) -> dict[str, Any]:
    """Writes predictions/SPLIT.jsonl, .metrics.json and, for classes, .npz and a picture of the confusion matrix.

    Returns:
      What the metrics file holds: for each metric its value and a 95% bootstrap interval over items, and signatures.
    """
    folder = directory.predictions
    folder.mkdir(parents=True, exist_ok=True)
    metrics = results.metrics
    if results.predictions is not None:
        metrics = {**metrics, **probability_metrics(results.predictions)}
    found = intervals(metrics, resamples)
    figures: dict[str, Any] = {
        name: {"value": metric.value, "low": found[name].low, "high": found[name].high}
        for name, metric in metrics.items()
    }
    if results.predictions is not None:
        # Without an interval: a binned error needs more than a bootstrap, and `experiments.calibrate` gives it.
        of_all = calibration_metrics(results.predictions)
        figures |= {name: {"value": of_all[name]} for name in ("ece", "ece_floor")}
        results.predictions.save(folder / f"{split}.npz")
    if results.confusion_CC is not None:
        save_confusion_picture(results.confusion_CC, results.class_names, folder / f"{split}.confusion.svg")
    lines = [json.dumps(json_value(record), ensure_ascii=False) for record in results.records]
    write_atomically(folder / f"{split}.jsonl", "\n".join(lines) + "\n")
    about = {"split": split, "checkpoint": step, "rows": len(results.records), "metrics": figures}
    if results.signatures:
        about["signatures"] = results.signatures
    write_json(folder / f"{split}.metrics.json", about)
    return about
