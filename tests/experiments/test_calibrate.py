"""The calibration experiment: its output files, and its messages about bad input."""

import csv
import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments.calibrate import CalibrateConfig, calibrate
from lm.calibration.calibrators import Fitted
from lm.calibration.predictions import Predictions
from lm.calibration.results import Settings, to_json
from lm.console import Console
from lm.decoding.sample import generate
from lm.decoding.sampling import SamplingConfig
from lm.errors import UserError
from lm.models.decoder_lm import DecoderLM
from lm.runs.config import PredictionsConfig
from lm.runs.trained_run import load_run
from lm.runs.work_directory import WorkDirectory
from tests.tiny import run, tiny_config

QUIET = Console(quiet=True)
CONFIG = CalibrateConfig(calibrators=("temperature", "isotonic"), settings=Settings(resamples=40))


def over_confident(items=400, classes=4) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    logits = 4 * rng.normal(size=(items, classes)).astype(np.float32)
    labels = (logits / 4 + rng.gumbel(size=logits.shape)).argmax(axis=1)
    return {"logits": logits, "labels": labels}


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibrate")
    np.savez(folder / "mine.npz", **over_confident())
    config = dataclasses.replace(CONFIG, predictions=str(folder / "mine.npz"))
    return calibrate(config, WorkDirectory(folder / "run"), QUIET), folder


def test_overconfidence_is_corrected_and_all_files_are_written(calibrated):
    comparison, folder = calibrated
    written = {path.name for path in (folder / "run" / "calibration").iterdir()}
    assert written >= {"report.html", "comparison.json", "table.csv", "temperature.json", "isotonic.json", "ece.png"}
    assert json.loads((folder / "run" / "calibration" / "comparison.json").read_text()) == to_json(comparison)
    before, after = comparison.uncalibrated.entry("ece"), comparison.method("temperature").entry("ece")
    assert after.difference.p < 0.05
    assert after.value < before.value / 2


def test_the_table_holds_every_number(calibrated):
    comparison, folder = calibrated
    with (folder / "run" / "calibration" / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(len(method.entries) for method in comparison.methods)
    nll = next(row for row in rows if (row["calibrator"], row["metric"]) == ("temperature", "nll"))
    entry = comparison.method("temperature").entry("nll")
    assert float(nll["value"]) == entry.value
    assert (float(nll["low"]), float(nll["high"])) == (entry.interval.low, entry.interval.high)
    assert float(nll["difference_p"]) == entry.difference.p
    assert nll["floor_mean"] == ""


def test_a_saved_calibrator_is_the_one_measured(calibrated):
    comparison, folder = calibrated
    fitted = Fitted.load(folder / "run" / "calibration" / "temperature.json")
    assert f"T = {float(fitted.parameters['temperature']):.4g}" == comparison.method("temperature").summary


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": None}, "the array `labels` is missing"),
        ({"logits": np.full((400, 4), np.nan, np.float32)}, "item 0 has NaN"),
        ({"labels": np.full(400, 9)}, "not one of the classes 0 to 3"),
        ({"ids": np.zeros(400, int)}, "some are equal"),
        ({"clusters": np.zeros(400, int)}, "only one item or cluster"),
    ],
)
def test_bad_predictions_are_one_line_and_nothing_is_written(change, message, tmp_path):
    arrays = {name: values for name, values in (over_confident() | change).items() if values is not None}
    np.savez(tmp_path / "bad.npz", **arrays)
    config = dataclasses.replace(CONFIG, predictions=str(tmp_path / "bad.npz"))
    with pytest.raises(UserError, match=message) as caught:
        calibrate(config, WorkDirectory(tmp_path / "run"), QUIET)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_label_with_logit_minus_infinity_names_the_file(tmp_path):
    arrays = over_confident()
    arrays["logits"][np.arange(400), arrays["labels"]] = -np.inf
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(UserError, match=r"bad\.npz: the label of item"):
        calibrate(
            dataclasses.replace(CONFIG, predictions=str(tmp_path / "bad.npz")), WorkDirectory(tmp_path / "run"), QUIET
        )


def test_fitting_on_test_items_is_refused(tmp_path):
    np.savez(tmp_path / "mine.npz", **over_confident())
    config = dataclasses.replace(
        CONFIG, predictions=str(tmp_path / "mine.npz"), fit_predictions=str(tmp_path / "mine.npz")
    )
    with pytest.raises(UserError, match="the same 400 items"):
        calibrate(config, WorkDirectory(tmp_path / "run"), QUIET)


def test_missing_predictions_say_how_to_make_them(tmp_path):
    with pytest.raises(UserError, match=r"config\.predictions\.tokens"):
        calibrate(CONFIG, WorkDirectory(tmp_path), QUIET)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"calibrators": ("temprature",)}, "known are temperature"),
        ({"fit_fraction": 1.0}, "fit_fraction"),
        ({"settings": Settings(bins=0)}, "config.settings"),
    ],
)
def test_bad_configs_are_named(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CONFIG, **change)


@pytest.mark.slow
def test_from_a_trained_model_to_calibrated_generation(tmp_path):
    """A run writes predictions, a calibrator is fitted to them, and generation applies it."""
    config = dataclasses.replace(tiny_config(tmp_path, steps=2), predictions=PredictionsConfig(tokens=400))
    directory = WorkDirectory(tmp_path / "run")
    run(config, directory.path)
    predictions = Predictions.load(directory.predictions / "validation.npz")
    trained = load_run(directory, "last")
    model, params, tokenizer = DecoderLM(trained.config.model), trained.params, trained.tokenizer
    assert predictions.logits.shape == (len(predictions), model.config.vocab_size)
    calibrate(dataclasses.replace(CONFIG, calibrators=("temperature",)), directory, QUIET)
    fitted = Fitted.load(directory.calibration / "temperature.json")
    sampling = SamplingConfig(max_new_tokens=6, temperature=0)
    plain, scaled = (
        generate(model, params, [[1, 2]], sampling, None, tokenizer.vocab_size, calibrator=calibrator)[0]
        for calibrator in (None, fitted.apply)
    )
    np.testing.assert_array_equal(plain.tokens, scaled.tokens)
    logits = model.apply({"params": params}, np.array([[1, 2]]))[0, -1]
    expected = jax.nn.log_softmax(logits / fitted.parameters["temperature"])[plain.tokens[0]]
    np.testing.assert_allclose(scaled.log_probs, plain.log_probs, rtol=1e-5)
    np.testing.assert_allclose(
        scaled.calibrated_log_probs[0], expected if fitted.accepted else plain.log_probs[0], rtol=1e-4
    )
