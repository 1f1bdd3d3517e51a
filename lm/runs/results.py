"""Results of an evaluation, and the files that hold them.

predictions/SPLIT.metrics.json  SPLIT.jsonl  SPLIT.npz  SPLIT.confusion.svg
"""

import dataclasses
import json
from typing import Any

import numpy as np

from lm.calibration.binning import Binning, bin_totals
from lm.calibration.errors import ece, ece_floor, resampled_error
from lm.calibration.inputs import checked_clusters
from lm.calibration.predictions import Predictions
from lm.evaluation.pictures import save_confusion_picture
from lm.files import file_digest, json_value, with_digest, write_atomically, write_json
from lm.runs.work_directory import WorkDirectory
from lm.statistics.intervals import Interval
from lm.statistics.metrics import SHARE, Metric, intervals, mean_metric
from lm.tasks.supervised import Results

BINNING = Binning(15)


@dataclasses.dataclass(frozen=True)
class Figure:
    """A measured metric.

    Attributes:
      value: NaN where it is not defined.
      interval: 95%; None for a figure that is reported without one.
    """

    value: float
    interval: Interval | None = None

    def to_json(self) -> dict[str, float]:
        """The value, and the ends of the interval if there is one."""
        if self.interval is None:
            return {"value": self.value}
        return {"value": self.value, "low": self.interval.low, "high": self.interval.high}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The metrics of one model on some rows.

    Attributes:
      split: name of the rows.
      checkpoint: step of the model.
      rows: how many; for text, how many tokens.
      metrics: by name, the most important first.
      signatures: exactly how a metric was computed, where the field has a notation for it.
      cut: how many rows were too long for the model and were truncated.
      unit: what `rows` counts.
      notes: what else there is to say of these rows, a line each.
    """

    split: str
    checkpoint: int
    rows: int
    metrics: dict[str, Figure]
    signatures: dict[str, str] = dataclasses.field(default_factory=dict)
    cut: int = 0
    unit: str = "rows"
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """What SPLIT.metrics.json holds."""
        record: dict[str, Any] = {
            "split": self.split,
            "checkpoint": self.checkpoint,
            "rows": self.rows,
            "metrics": {name: figure.to_json() for name, figure in self.metrics.items()},
        }
        rest = {"signatures": self.signatures, "notes": list(self.notes)}
        return record | {name: value for name, value in rest.items() if value}


def write_results(
    results: Results,
    directory: WorkDirectory,
    split: str,
    resamples: int,
    step: int,
    cut: int = 0,
    notes: tuple[str, ...] = (),
) -> Evaluation:
    """Writes predictions/SPLIT.jsonl, .metrics.json and, for classes, .npz and a plot of the confusion matrix.

    Args:
      results: of the rows.
      directory: of the run.
      split: the beginning of the files' names.
      resamples: for the intervals.
      step: of the checkpoint.
      cut: how many rows were truncated.
      notes: what else there is to say of these rows.

    Returns:
      The figures: metrics with a 95% interval over items, and the noise floor of the ECE without one.
    """
    folder = directory.predictions
    folder.mkdir(parents=True, exist_ok=True)
    metrics = results.metrics
    if results.predictions is not None:
        # A task that generates text has a loss of its own, per token.
        of_probabilities = probability_metrics(results.predictions).items()
        metrics = {**metrics, **{name: metric for name, metric in of_probabilities if name not in metrics}}
    found = intervals(metrics, resamples)
    figures = {name: Figure(metric.value, found[name]) for name, metric in metrics.items()}
    if results.predictions is not None:
        of_all = calibration_metrics(results.predictions)
        figures["ece"] = Figure(of_all["ece"], ece_interval(results.predictions, resamples))
        figures["ece_floor"] = Figure(of_all["ece_floor"])
        results.predictions.save(folder / f"{split}.npz")
    if results.confusion_CC is not None:
        save_confusion_picture(results.confusion_CC, results.class_names, folder / f"{split}.confusion.svg")
    lines = [json.dumps(json_value(record), ensure_ascii=False) for record in results.records]
    write_atomically(folder / f"{split}.jsonl", "\n".join(lines) + "\n")
    evaluation = Evaluation(split, step, len(results.records), figures, results.signatures, cut, notes=notes)
    files = [f"{split}.jsonl", *([] if results.predictions is None else [f"{split}.npz"])]
    digests = {name: file_digest(folder / name) for name in files}
    write_json(folder / f"{split}.metrics.json", with_digest(json_value(evaluation.to_json() | {"files": digests})))
    return evaluation


def calibration_metrics(predictions: Predictions) -> dict[str, float]:
    """`loss` (mean NLL in nats), `confidence`, `ece` and `ece_floor` of the predicted classes, or answers."""
    found = predictions.outcomes()
    totals = bin_totals(found.confidence_N, found.correct_N, BINNING)
    return {
        "loss": float(np.mean(found.nll_N)),
        "confidence": float(np.mean(found.confidence_N)),
        "ece": float(ece(totals)),
        "ece_floor": float(ece_floor(totals)),
    }


def ece_interval(predictions: Predictions, resamples: int) -> Interval:
    """The 95% interval of `calibration_metrics`' ECE, the same as `experiments.calibrate` gives."""
    found = predictions.outcomes()
    clusters_N = checked_clusters(predictions.clusters_N, len(predictions))
    confidence_N, correct_N = np.asarray(found.confidence_N), np.asarray(found.correct_N)
    return resampled_error(confidence_N, correct_N, BINNING, clusters_N=clusters_N, resamples=resamples).interval


def probability_metrics(predictions: Predictions) -> dict[str, Metric]:
    """`loss` and `confidence` as metrics with intervals; items of one cluster are resampled together."""
    found = predictions.outcomes()
    metrics = {
        "loss": mean_metric(found.nll_N, better="lower"),
        "confidence": mean_metric(found.confidence_N, limits=SHARE),
    }
    if predictions.clusters_N is None:
        return metrics
    return {name: metric.in_clusters(predictions.clusters_N) for name, metric in metrics.items()}
