"""Evaluation of tasks with examples: each example gets its own output, and what is written says what was found.

Axes: N items, C classes.
"""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.calibration.binning import Binning, bin_totals
from lm.calibration.calibrators import Fitted
from lm.calibration.errors import ece_floor, expected_calibration_error
from lm.calibration.predictions import Predictions
from lm.data.example_batches import EvaluationExampleBatches
from lm.errors import UserError
from lm.evaluation.bootstrap import mean_metric
from lm.runs.config import PartitioningConfig
from lm.runs.state import TrainState
from lm.runs.work_directory import WorkDirectory
from lm.tasks.sequence_classification import classification_results
from lm.tasks.supervised import Results
from lm.training.partitioning import make_partitioner
from lm.training.supervised_evaluation import (
    calibration_metrics,
    make_prediction_step,
    make_supervised_validation,
    predict_examples,
    validation_metrics,
    with_calibrator,
    write_results,
)

CLASSES = ("no", "perhaps", "yes")
RANDOM = np.random.default_rng(0)
LOGITS = 3 * RANDOM.normal(size=(41, 3)).astype(np.float32)
LABELS = np.where(RANDOM.random(41) < 0.6, LOGITS.argmax(axis=1), RANDOM.integers(3, size=41))
ROWS = [{"place": f"test:{i + 1}", "text": f"text {i}", "label": CLASSES[label]} for i, label in enumerate(LABELS)]
EXAMPLES = [
    {"tokens": np.full(length, i + 1, np.int32), "label": np.int32(LABELS[i])}
    for i, length in enumerate(RANDOM.integers(1, 20, size=41))
]


class Lookup:
    """A task whose model knows each example by its first token."""

    axes, padding = {"tokens": "T"}, {"tokens": 0}

    def predict(self, params, batch):
        number_B = jnp.maximum(batch["tokens"][:, 0] - 1, 0)
        return {"logits": params["table"][number_B], "tokens": batch["tokens"]}

    def results(self, rows, examples, outputs):
        return classification_results(rows, np.stack([output["logits"] for output in outputs]), CLASSES)


def state_of(partitioner):
    """Parameters that are wrong and averages that are right."""

    def init(key):
        wrong, right = ({"table": jnp.asarray(values)} for values in (LOGITS[::-1], LOGITS))
        return TrainState(jnp.zeros((), jnp.int32), wrong, (), right)

    return partitioner.compile_init(init)(jax.random.key(0))


LAYOUTS = {
    "data": PartitioningConfig(data=8),
    "mixed": PartitioningConfig(data=2, fsdp=2, tensor=2),
    "pmap": PartitioningConfig(strategy="pmap"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("batch_size", "buckets"), [(8, (4, 8, 16)), (16, (32,)), (64, (8,))])
def test_every_example_gets_its_own_output(layout, batch_size, buckets):
    partitioner = make_partitioner(LAYOUTS[layout])
    batches = EvaluationExampleBatches(EXAMPLES, Lookup.axes, Lookup.padding, batch_size, buckets)
    predict = make_prediction_step(Lookup(), partitioner)
    outputs = predict_examples(predict, state_of(partitioner), batches, len(EXAMPLES), partitioner)
    assert len(outputs) == len(EXAMPLES)
    for example, output, logits in zip(EXAMPLES, outputs, LOGITS, strict=True):
        np.testing.assert_array_equal(output["logits"], logits)
        length = len(example["tokens"])
        np.testing.assert_array_equal(output["tokens"][:length], example["tokens"])
        assert not output["tokens"][length:].any()


def temperature(value, classes=3):
    parameters = {"temperature": np.float32(value), "converged": True, "at_bound": False}
    return Fitted("temperature", parameters, classes, 41, 1.0, 0.9, True, False)


def test_validation_calls_the_task_and_applies_the_calibrator():
    partitioner = make_partitioner(LAYOUTS["data"])
    for calibrator, logits in ((None, LOGITS), (temperature(2.0), LOGITS / 2)):
        validate = make_supervised_validation(Lookup(), ROWS, EXAMPLES, 16, (8, 32), partitioner, calibrator)
        results = validate(state_of(partitioner))
        np.testing.assert_allclose(results.predictions.logits, logits, rtol=1e-6)
        np.testing.assert_array_equal(results.predictions.labels_N, LABELS)
        assert results.metrics["accuracy"].value == pytest.approx(np.mean(LOGITS.argmax(axis=1) == LABELS))


def test_a_calibrator_acts_on_each_choice_of_each_output():
    tags = [{"logits": logits, "place": i} for i, logits in enumerate(np.split(LOGITS, [2, 3, 30]))]
    for output, mended in zip(tags, with_calibrator(tags, temperature(4.0)), strict=True):
        np.testing.assert_allclose(mended["logits"], output["logits"] / 4, rtol=1e-6)
        assert mended["place"] == output["place"]
    with pytest.raises(UserError, match=r"config.calibrator is for 5 classes, and this model chooses among 3"):
        with_calibrator(tags, temperature(4.0, classes=5))
    with pytest.raises(UserError, match=r"config.calibrator: this task's answers are no choice among classes"):
        with_calibrator([{"tokens": np.zeros(3)}], temperature(4.0))


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


def test_what_is_logged_leaves_single_classes_out():
    logged = validation_metrics(results_of())
    assert {"validation/accuracy", "validation/f1_macro", "validation/loss", "validation/ece"} <= logged.keys()
    assert all(name.count("/") == 1 and isinstance(value, float) for name, value in logged.items())
    texts = Results({"bleu": mean_metric([0.5, 0.7])}, [])
    assert validation_metrics(texts) == {"validation/bleu": pytest.approx(0.6)}


def strictly(text):
    """JSON as its standard has it."""

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_what_was_found_is_written(tmp_path):
    results = results_of()
    about = write_results(results, WorkDirectory(tmp_path), "test", 200, 7)
    folder = tmp_path / "predictions"
    assert strictly((folder / "test.metrics.json").read_text()) == about
    assert (about["split"], about["checkpoint"], about["rows"]) == ("test", 7, 41)
    for name, metric in results.metrics.items():
        figure = about["metrics"][name]
        assert figure["low"] <= figure["value"] == metric.value <= figure["high"]
    accuracy = about["metrics"]["accuracy"]
    assert accuracy["low"] < accuracy["value"] < accuracy["high"]
    assert about["metrics"]["ece"]["value"] == calibration_metrics(results.predictions)["ece"]

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
    about = write_results(results, WorkDirectory(tmp_path), "validation", 50, 3)
    folder = tmp_path / "predictions"
    assert about["metrics"] == {"bleu": {"value": 0.5, "low": None, "high": None}}
    assert strictly((folder / "validation.metrics.json").read_text()) == about
    line = (folder / "validation.jsonl").read_text(encoding="utf-8")
    assert "größer" in line
    assert strictly(line) == {"text": "größer", "score": None, "spans": [{"p": None}, {"p": 0.5}], "none": None}
    assert not (folder / "validation.npz").exists()
