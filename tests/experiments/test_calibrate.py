"""The calibration experiment: its output files, and its messages about bad input."""

import csv
import dataclasses
import json
import re

import jax
import numpy as np
import pytest

from experiments.calibrate import CalibrateConfig, calibrate, define_flags, main, predictions_of, show
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
from tests.tiny import command_line, run, tiny_config

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
    assert json.loads((folder / "run" / "calibration" / "comparison.json").read_text()) == {
        **to_json(comparison),
        "suggested": "temperature",
    }
    before, after = comparison.uncalibrated.entry("ece"), comparison.method("temperature").entry("ece")
    assert after.difference.p < 0.05
    assert after.value < before.value / 2


@pytest.mark.parametrize("name", ["calibration", "tensorboard"])
def test_a_link_in_a_run_from_someone_else_is_not_followed(calibrated, name, tmp_path):
    _, folder = calibrated
    (tmp_path / "run").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(dataclasses.asdict(tiny_config(tmp_path))))
    (tmp_path / "run" / name).symlink_to(tmp_path / "outside")
    config = dataclasses.replace(CONFIG, predictions=str(folder / "mine.npz"))
    with pytest.raises(UserError, match=f"{name} leads to .*outside: remove the link"):
        calibrate(config, WorkDirectory(tmp_path / "run"), QUIET)
    assert not list((tmp_path / "outside").iterdir())


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


def test_exact_zeros_are_fitted_by_those_that_can(tmp_path, capsys):
    """Votes of ten trees: some labels have none."""
    rng = np.random.default_rng(0)
    votes = rng.multinomial(10, [0.5, 0.3, 0.2], size=400) / 10
    labels = (rng.random(400)[:, None] > np.cumsum(0.5 * votes + 0.5 / 3, axis=1)).sum(axis=1).clip(0, 2)
    np.savez(tmp_path / "votes.npz", probabilities=votes, labels=labels, ids=np.arange(5000, 5400))
    config = dataclasses.replace(CONFIG, predictions=str(tmp_path / "votes.npz"))
    comparison = calibrate(config, WorkDirectory(tmp_path / "run"), QUIET)
    assert [method.name for method in comparison.methods] == ["none", "isotonic"]
    (note,) = comparison.notes
    assert re.match(r"Temperature is left out: the label of the item with id 5\d\d\d has probability 0 \(", note)
    assert np.isinf(comparison.uncalibrated.entry("nll").value)
    assert json.loads((tmp_path / "run" / "calibration" / "comparison.json").read_text())["notes"] == [note]
    assert not (tmp_path / "run" / "calibration" / "temperature.json").exists()
    show(comparison, Console(width=80))
    assert note in capsys.readouterr().out


def test_a_rejected_calibrator_is_reported_not_a_crash(tmp_path):
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=1.5, size=(400, 4)).astype(np.float32)
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    np.savez(tmp_path / "calibrated.npz", logits=logits, labels=labels)
    config = dataclasses.replace(CONFIG, predictions=str(tmp_path / "calibrated.npz"), calibrators=("scaling_binning",))
    comparison = calibrate(config, WorkDirectory(tmp_path / "run"), QUIET)
    assert not comparison.method("scaling_binning").accepted, "the example shows nothing"
    held = json.loads((tmp_path / "run" / "calibration" / "comparison.json").read_text())
    assert held["methods"][1]["accepted"] is False
    assert "1 of 1 calibrators was not accepted" in (tmp_path / "run" / "calibration" / "report.html").read_text()


def test_measuring_alone_uses_all_items(tmp_path):
    np.savez(tmp_path / "mine.npz", **over_confident())
    config = dataclasses.replace(CONFIG, predictions=str(tmp_path / "mine.npz"), calibrators=())
    comparison = calibrate(config, WorkDirectory(tmp_path / "run"), QUIET)
    assert (comparison.items.fit, comparison.items.test) == (0, 400)
    assert [method.name for method in comparison.methods] == ["none"]
    assert "No calibrator was fitted." in (tmp_path / "run" / "calibration" / "report.html").read_text()


def test_a_home_is_found_and_names_of_arrays_write_no_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    arrays = over_confident()
    np.savez(tmp_path / "mine.npz", **arrays, **{"notes\nECE is 0\x1b[31m": np.zeros(1)})
    config = dataclasses.replace(CONFIG, predictions="~/mine.npz", calibrators=())
    calibrate(config, WorkDirectory(tmp_path / "run"), Console(stderr=True))
    assert r"not used of" in (said := capsys.readouterr().err)
    assert r"notes\nECE is 0\x1b[31m" in said.replace("\n", "")


@pytest.mark.slow
def test_classes_that_the_fit_lacks_are_named(tmp_path):
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=1.5, size=(600, 3)).astype(np.float32)
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    names = np.array(["cat", "dog", "fish"])
    fit_rows = np.flatnonzero((labels != 2) & (np.arange(600) < 300))
    for name, rows in (("fit", fit_rows), ("test", np.arange(300, 600))):
        np.savez(tmp_path / f"{name}.npz", logits=logits[rows], labels=labels[rows], ids=rows, class_names=names)
    config = dataclasses.replace(
        CONFIG,
        predictions=str(tmp_path / "test.npz"),
        fit_predictions=str(tmp_path / "fit.npz"),
        calibrators=("temperature", "vector"),
    )
    comparison = calibrate(config, WorkDirectory(tmp_path / "run"), QUIET)
    assert comparison.method("temperature").message == ""
    assert (
        "fewer than 5 items to fit class fish: it gets no parameters of its own" in comparison.method("vector").message
    )
    before, after = (comparison.method(name).entry("nll").value for name in ("none", "vector"))
    assert after < before + 0.1


def test_calibrators_know_the_checkpoint_of_their_predictions(tmp_path):
    np.savez(tmp_path / "mine.npz", **over_confident(), checkpoint=np.int64(70), model=np.array("0badcafe"))
    config = dataclasses.replace(CONFIG, predictions=str(tmp_path / "mine.npz"), calibrators=("temperature",))
    calibrate(config, WorkDirectory(tmp_path / "run"), QUIET)
    fitted = Fitted.load(tmp_path / "run" / "calibration" / "temperature.json")
    assert (fitted.checkpoint, fitted.model) == (70, "0badcafe")


def test_a_directory_that_cannot_be_written_is_found_first(tmp_path, monkeypatch):
    np.savez(tmp_path / "mine.npz", **over_confident())
    (tmp_path / "a file").write_text("")
    config = dataclasses.replace(CONFIG, predictions=str(tmp_path / "mine.npz"))
    monkeypatch.setattr("experiments.calibrate.compare", None)  # never reached
    for path in (tmp_path / "a file", tmp_path / "a file" / "run"):
        with pytest.raises(UserError, match="a file is a file, not a directory"):
            calibrate(config, WorkDirectory(path), QUIET)


def test_a_failure_while_writing_leaves_what_was_there(tmp_path, monkeypatch):
    np.savez(tmp_path / "mine.npz", **over_confident())
    config = dataclasses.replace(CONFIG, predictions=str(tmp_path / "mine.npz"), calibrators=())

    def disk_full(comparison):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("experiments.calibrate.report_html", disk_full)
    with pytest.raises(UserError, match="calibration cannot be written: No space left on device"):
        calibrate(config, WorkDirectory(tmp_path / "new" / "run"), QUIET)
    assert not (tmp_path / "new").exists()
    (tmp_path / "old" / "calibration").mkdir(parents=True)
    (tmp_path / "old" / "calibration" / "table.csv").write_text("former")
    with pytest.raises(UserError):
        calibrate(config, WorkDirectory(tmp_path / "old"), QUIET)
    assert [path.name for path in (tmp_path / "old").rglob("*")] == ["calibration", "table.csv"]
    assert (tmp_path / "old" / "calibration" / "table.csv").read_text() == "former"


@pytest.mark.slow
def test_tables_fit_80_columns_and_results_go_to_stdout(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    np.savez(tmp_path / "mine.npz", **over_confident())
    flags = [f"--workdir={tmp_path / name}" for name in ("one", "two")]
    for name in ("one", "two"):
        (tmp_path / name / "predictions").mkdir(parents=True)
        np.savez(tmp_path / name / "predictions" / "validation.npz", **over_confident())
    flags += ["--config.settings.resamples=40", "--config.calibrators=('temperature','scaling_binning')"]
    assert command_line(main, define_flags, "--config=configs/calibrate.py", *flags) == 0
    out, err = capsys.readouterr()
    assert "before and after: temperature" in out
    assert "report.html" in err
    tables = [line for line in out.splitlines() if not re.match(r"\(!\)|[A-Z].*\.$", line)]
    assert max(map(len, tables)) <= 80
    assert "…" not in out


def test_fitting_on_test_items_is_refused(tmp_path):
    np.savez(tmp_path / "mine.npz", **over_confident())
    config = dataclasses.replace(
        CONFIG, predictions=str(tmp_path / "mine.npz"), fit_predictions=str(tmp_path / "mine.npz")
    )
    with pytest.raises(UserError, match=r"mine\.npz holds the same items as"):
        calibrate(config, WorkDirectory(tmp_path / "run"), QUIET)
    np.savez(tmp_path / "mine.npz", **over_confident(), ids=np.arange(400))
    with pytest.raises(UserError, match="share 400 ids"):
        calibrate(config, WorkDirectory(tmp_path / "run"), QUIET)


def test_two_files_without_ids_are_told_that_nothing_was_checked(tmp_path):
    arrays = over_confident()
    for name, rows in (("fit", slice(0, 200)), ("test", slice(200, 400))):
        np.savez(tmp_path / f"{name}.npz", **{key: values[rows] for key, values in arrays.items()})
    config = dataclasses.replace(
        CONFIG,
        predictions=str(tmp_path / "test.npz"),
        fit_predictions=str(tmp_path / "fit.npz"),
        calibrators=("temperature",),
    )
    (note,) = calibrate(config, WorkDirectory(tmp_path / "run"), QUIET).notes
    assert "no ids" in note


def test_lost_test_predictions_are_not_replaced_by_validation_rows(tmp_path):
    """The figures would be others, without a word."""
    directory = WorkDirectory(tmp_path)
    directory.predictions.mkdir()
    np.savez(directory.predictions / "validation.npz", **over_confident())
    assert predictions_of(CalibrateConfig(), directory)[0].name == "validation.npz"
    (directory.predictions / "test.metrics.json").write_text("{}")
    with pytest.raises(UserError, match=r"test.npz is missing.* run experiments.evaluate again"):
        calibrate(CalibrateConfig(), directory, Console(quiet=True))


def test_missing_predictions_say_how_to_make_them(tmp_path):
    with pytest.raises(UserError, match=r"config\.predictions\.tokens"):
        calibrate(CONFIG, WorkDirectory(tmp_path), QUIET)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"calibrators": ("temprature",)}, "known are temperature"),
        ({"fit_fraction": 1.0}, "fit_fraction"),
        ({"settings": Settings(bins=0)}, "config.settings"),
        ({"settings": Settings(bins=10**9)}, "config.settings"),
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
        generate(model, params, [[1, 2]], sampling, vocab_size=tokenizer.vocab_size, calibrator=calibrator)[0]
        for calibrator in (None, fitted.apply)
    )
    np.testing.assert_array_equal(plain.tokens, scaled.tokens)
    logits = model.apply({"params": params}, np.array([[1, 2]]))[0, -1]
    expected = jax.nn.log_softmax(logits / fitted.parameters["temperature"])[plain.tokens[0]]
    np.testing.assert_allclose(scaled.log_probs, plain.log_probs, rtol=1e-5)
    np.testing.assert_allclose(
        scaled.calibrated_log_probs[0], expected if fitted.accepted else plain.log_probs[0], rtol=1e-4
    )
