"""What an evaluation found: figures as `lm.calibration` computes them, and files that say the same.

Axes: N items, C classes.
"""

import json
import math

import numpy as np
import pytest

from lm.calibration.binning import Binning, bin_totals
from lm.calibration.comparison import compare
from lm.calibration.errors import ece_floor, expected_calibration_error
from lm.calibration.predictions import Predictions
from lm.calibration.results import Settings
from lm.files import file_digest, is_unchanged
from lm.runs.results import calibration_metrics, write_results
from lm.runs.work_directory import WorkDirectory
from lm.statistics.metrics import mean_metric
from lm.tasks.sequence_classification import classification_results
from lm.tasks.supervised import Results

CLASSES = ("no", "perhaps", "yes")
RANDOM = np.random.default_rng(0)
LOGITS = 3 * RANDOM.normal(size=(41, 3)).astype(np.float32)
LABELS = np.where(RANDOM.random(41) < 0.6, LOGITS.argmax(axis=1), RANDOM.integers(3, size=41))
ROWS = [{"place": f"test:{i + 1}", "text": f"text {i}", "label": CLASSES[label]} for i, label in enumerate(LABELS)]


def results_of(logits=LOGITS):
    return classification_results(ROWS, logits, CLASSES)


def test_calibration_is_measured_as_lm_calibration_measures_it():
    log_probs = LOGITS - np.log(np.exp(LOGITS.astype(np.float64)).sum(axis=1, keepdims=True))
    confidence_N, correct_N = np.exp(log_probs.max(axis=1)), LOGITS.argmax(axis=1) == LABELS
    found = calibration_metrics(results_of().predictions)
    assert found.keys() == {"loss", "confidence", "ece", "ece_floor"}
    assert found["loss"] == pytest.approx(-log_probs[np.arange(41), LABELS].mean(), rel=1e-5)
    assert found["confidence"] == pytest.approx(confidence_N.mean(), rel=1e-5)
    assert found["ece"] == pytest.approx(expected_calibration_error(LABELS, logits=LOGITS).value, rel=1e-6)
    gaps = np.bincount(np.ceil(15 * confidence_N).astype(int), confidence_N - correct_N)
    assert found["ece"] == pytest.approx(np.abs(gaps).sum() / 41, rel=1e-4)
    assert found["ece_floor"] == pytest.approx(float(ece_floor(bin_totals(confidence_N, correct_N, Binning(15)))))


def strictly(text):
    """JSON as its standard has it."""

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_what_was_found_is_written(tmp_path):
    results = results_of()
    about = write_results(results, WorkDirectory(tmp_path), "test", 200, 7)
    folder = tmp_path / "predictions"
    record = strictly((folder / "test.metrics.json").read_text())
    assert {name: record[name] for name in record if name not in ("files", "digest")} == about.to_json()
    assert is_unchanged(record)
    assert record["files"] == {name: file_digest(folder / name) for name in ("test.jsonl", "test.npz")}
    assert (about.split, about.checkpoint, about.rows, about.cut) == ("test", 7, 41, 0)
    for name, metric in results.metrics.items():
        figure = about.metrics[name]
        assert figure.interval.low <= figure.value == metric.value <= figure.interval.high
    accuracy = about.metrics["accuracy"]
    assert accuracy.interval.low < accuracy.value < accuracy.interval.high
    error = about.metrics["ece"]
    assert about.to_json()["metrics"]["ece"] == {
        "value": error.value,
        "low": error.interval.low,
        "high": error.interval.high,
    }
    measured = compare(None, results.predictions, (), Settings(resamples=200))[0].uncalibrated.entry("ece")
    assert (error.value, error.interval) == (pytest.approx(measured.value), measured.interval)
    assert "low" not in about.to_json()["metrics"]["ece_floor"]
    assert about.metrics["ece"].value == calibration_metrics(results.predictions)["ece"]

    lines = [strictly(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == [row["text"] for row in ROWS]
    assert [line["predicted"] for line in lines] == [CLASSES[best] for best in LOGITS.argmax(axis=1)]

    predictions = Predictions.load(folder / "test.npz")
    np.testing.assert_array_equal(predictions.logits, LOGITS)
    np.testing.assert_array_equal(predictions.labels_N, LABELS)
    assert predictions.ids_N.tolist() == [row["place"] for row in ROWS]
    assert predictions.class_names == CLASSES
    assert (folder / "test.confusion.svg").stat().st_size > 0
    assert {path.name for path in folder.iterdir()} == {
        "test.jsonl",
        "test.metrics.json",
        "test.npz",
        "test.confusion.svg",
    }


def test_a_task_without_classes_writes_texts_and_figures_and_no_nan(tmp_path):
    records = [{"text": "größer", "score": math.nan, "spans": [{"p": math.inf}, {"p": 0.5}], "none": None}]
    results = Results({"bleu": mean_metric([0.5])}, records)  # one item has no interval
    write_results(results, WorkDirectory(tmp_path), "validation", 50, 3)
    folder = tmp_path / "predictions"
    found = strictly((folder / "validation.metrics.json").read_text())
    assert is_unchanged(found)
    del found["digest"]
    assert found.pop("files") == {"validation.jsonl": file_digest(folder / "validation.jsonl")}
    assert found == {
        "split": "validation",
        "checkpoint": 3,
        "rows": 1,
        "metrics": {"bleu": {"value": 0.5, "low": None, "high": None}},
    }
    line = (folder / "validation.jsonl").read_text(encoding="utf-8")
    assert "größer" in line
    assert strictly(line) == {"text": "größer", "score": None, "spans": [{"p": None}, {"p": 0.5}], "none": None}
    assert not (folder / "validation.npz").exists()
