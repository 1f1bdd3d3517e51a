"""Evaluation of finished runs: the same figures each time, other rows, other checkpoints, calibrated probabilities."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from experiments import calibrate, evaluate
from lm.calibration.predictions import Predictions
from tests.tiny import command_line, run, tiny_config
from tests.tiny_tasks import KINDS, rows_of, write_rows

CALIBRATE = """
from experiments.calibrate import CalibrateConfig
from lm.calibration.results import Settings
from lm.configuration import to_config_dict


def get_config():
    return to_config_dict(CalibrateConfig(calibrators=("temperature",), settings=Settings(resamples=40, bins=5)))
"""


def evaluate_run(workdir, *flags):
    return command_line(evaluate.main, evaluate.define_flags, f"--workdir={workdir}", "--config.resamples=20", *flags)


def metrics_of(workdir, name):
    found = json.loads((Path(workdir) / "predictions" / f"{name}.metrics.json").read_text())
    return {metric: figure["value"] for metric, figure in found["metrics"].items()}


def records_of(workdir, name):
    lines = (Path(workdir) / "predictions" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_evaluating_again_gives_the_same(kind, finetuned, here, tmp_path, capsys):
    workdir = shutil.copytree(finetuned(kind), tmp_path / "run")  # other tests read the predictions of the run itself
    metrics, records = metrics_of(workdir, "test"), records_of(workdir, "test")
    # Batches of another size, but where that would cost another search for the best text to be compiled.
    size = 0 if kind in ("sequence_to_sequence", "completion") else 5
    assert evaluate_run(workdir, "--config.split=test", f"--config.batch_size={size}") == 0
    again = metrics_of(workdir, "test")
    assert list(again) == list(metrics)
    np.testing.assert_allclose([again[name] for name in metrics], list(metrics.values()), rtol=1e-4, atol=1e-6)
    assert [row["predicted"] for row in records_of(workdir, "test")] == [row["predicted"] for row in records]
    printed = capsys.readouterr().out
    name, value = next(iter(metrics.items()))
    assert (f"{value:.4f}" if name == "bleu" else f"{100 * value:.2f}%") in printed
    assert ("bleu: nrefs:1|case:mixed|eff:no|tok:13a" in printed) == ("bleu" in metrics)


def test_other_rows_are_read_by_their_own_columns_and_need_no_training_rows(finetuned, here, tmp_path, capsys):
    workdir = finetuned("classification").absolute()
    rows = [{"review": row["text"], "label": row["label"]} for row in rows_of("classification", "test")[:7]]
    source = write_rows(tmp_path / "other.jsonl", rows)
    with pytest.MonkeyPatch.context() as elsewhere:
        elsewhere.chdir(tmp_path)  # where the run's own sources are not
        flags = (f"--config.source={source}", "--config.columns=('text=review',)", "--config.name=elsewhere")
        assert evaluate_run(workdir, *flags) == 0
    known = records_of(workdir, "test")[:7]
    for number, (record, before) in enumerate(zip(records_of(workdir, "elsewhere"), known, strict=True), start=1):
        assert record["place"] == f"other.jsonl:{number}"
        assert [record[name] for name in ("text", "label", "predicted")] == [
            before[name] for name in ("text", "label", "predicted")
        ]
        # Batches of other sizes round otherwise.
        assert record["probabilities"] == pytest.approx(before["probabilities"], rel=1e-5)


@pytest.mark.slow
def test_a_checkpoint_is_chosen_by_name_or_step(finetuned, here, tmp_path, capsys):
    workdir = shutil.copytree(finetuned("tagging"), tmp_path / "run")
    for which, step in {"last": 4, "2": 2}.items():
        assert evaluate_run(workdir, f"--checkpoint={which}", "--config.split=validation") == 0
        found = json.loads((workdir / "predictions" / "validation.metrics.json").read_text())
        assert found["checkpoint"] == step
        assert f"checkpoint {step}" in capsys.readouterr().out
    assert evaluate_run(workdir, "--checkpoint=3") == 2
    assert "--checkpoint=3 does not exist: choose best, last or one of 2, 4" in capsys.readouterr().err


@pytest.mark.slow
def test_runs_are_calibrated_together_and_evaluated_with_the_calibrator(finetuned, here, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "calibrate.py").write_text(CALIBRATE)
    runs = [shutil.copytree(finetuned(kind), tmp_path / kind) for kind in ("classification", "pair")]
    flags = (f"--config={tmp_path / 'calibrate.py'}", *(f"--workdir={workdir}" for workdir in runs))
    assert command_line(calibrate.main, calibrate.define_flags, *flags) == 0
    table = capsys.readouterr().out.split("before and after: temperature")[1]
    comparison = json.loads((runs[0] / "calibration" / "comparison.json").read_text())
    assert (comparison["items"]["fit"], comparison["items"]["test"]) == (16, 16)
    for workdir in runs:
        assert workdir.name in table

    workdir = runs[0]
    before = metrics_of(workdir, "test")
    assert evaluate_run(workdir, "--config.calibrator=temperature") == 0
    after = metrics_of(workdir, "test.temperature")
    assert metrics_of(workdir, "test") == before
    assert after["accuracy"] == before["accuracy"]
    assert abs(after["confidence"] - before["confidence"]) > 1e-3
    expected = comparison["methods"][1]["metrics"]["nll"]["value"]
    np.testing.assert_allclose(after["loss"], expected, rtol=1e-4)
    predictions = Predictions.load(workdir / "predictions" / "test.temperature.npz")
    np.testing.assert_array_equal(
        predictions.logits.argmax(1), Predictions.load(workdir / "predictions" / "test.npz").logits.argmax(1)
    )


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """The folder of a pretraining run, with its metrics."""
    folder = tmp_path_factory.mktemp("pretrained")
    config = tiny_config(folder, prompts=(), steps=3, evaluate_every=3)
    return folder, run(config, folder / "run").validation


def measure_text(workdir, *flags):
    return command_line(evaluate.main, evaluate.define_flags, f"--workdir={workdir}", *flags)


@pytest.mark.slow
def test_a_pretraining_run_is_measured_on_its_validation_text(pretrained, capsys):
    folder, logged = pretrained
    before = set((folder / "run").rglob("*"))
    assert measure_text(folder / "run") == 0
    assert set((folder / "run").rglob("*")) == before
    shown = capsys.readouterr().out
    loss, error = (logged[f"validation/{name}"] for name in ("loss", "loss_stderr"))
    assert f"{loss:.4f}" in shown
    assert f"{loss - 1.96 * error:.4f} to {loss + 1.96 * error:.4f}" in shown
    assert f"{100 * logged['validation/accuracy']:.2f}%" in shown
    assert f"validation: {int(logged['validation/tokens']):,} tokens, checkpoint 3" in shown


@pytest.mark.parametrize(
    "flag",
    ["--config.calibrator=temperature", "--config.source=jsonl:x", "--config.split=test", "--config.resamples=40"],
)
def test_what_has_no_effect_on_a_pretraining_run_is_refused(flag, pretrained, capsys):
    folder, _ = pretrained
    assert measure_text(folder / "run", flag) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "pretraining run" in line


def test_a_run_from_someone_else_is_not_evaluated_on_what_it_names(pretrained, tmp_path, capsys, monkeypatch):
    folder, _ = pretrained
    monkeypatch.setenv("LM_CACHE_DIR", str(tmp_path / "mine"))
    before = {path.name for path in tmp_path.rglob("*")}
    assert measure_text(folder / "run") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"read text:{folder}/corpus/*.txt and write to {folder}/cache" in line
    assert "--config.trust=True" in line
    assert {path.name for path in tmp_path.rglob("*") if path.name != "compiled"} <= before | {"mine", "signing_key"}
    assert measure_text(folder / "run", "--config.trust=True") == 0


def test_rows_of_a_run_from_someone_else_are_named_or_allowed(finetuned, here, tmp_path, capsys, monkeypatch):
    workdir = Path(shutil.copytree(finetuned("classification"), tmp_path / "received"))
    monkeypatch.setenv("LM_CACHE_DIR", str(tmp_path / "mine"))
    capsys.readouterr()
    assert evaluate_run(workdir) == 2
    assert "would" not in (line := capsys.readouterr().err)
    assert "jsonl:rows/classification/test.jsonl: if you want that, add --config.trust=True, or name rows" in line
    assert evaluate_run(workdir, "--config.source=jsonl:rows/classification/test.jsonl") == 0
    shutil.move(workdir / "predictions", tmp_path / "outside")
    (workdir / "predictions").symlink_to(tmp_path / "outside")
    assert evaluate_run(workdir, "--config.source=jsonl:rows/classification/test.jsonl") == 2
    assert f"leads to {tmp_path / 'outside'}" in capsys.readouterr().err
    assert evaluate_run(workdir, "--config.trust=True") == 0


def test_a_directory_that_cannot_be_written_is_found_before_anything_is_computed(finetuned, here, capsys, monkeypatch):
    workdir = finetuned("classification")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "predictions")
    monkeypatch.setattr(evaluate, "load", None)
    assert evaluate_run(workdir) == 2
    assert "no permission to write in" in capsys.readouterr().err


def test_rows_that_changed_since_training_are_named(finetuned, here, tmp_path, capsys, monkeypatch):
    workdir = Path(shutil.copytree(finetuned("classification"), tmp_path / "run"))
    shutil.copytree("rows", tmp_path / "rows")
    monkeypatch.chdir(tmp_path)
    assert evaluate_run(workdir) == 0
    assert "since training" not in capsys.readouterr().out
    write_rows(Path("rows/classification/test.jsonl"), rows_of("classification", "test")[:9])
    assert evaluate_run(workdir) == 0
    assert "(!) since training, the test data changed from 16 rows to 9 rows" in capsys.readouterr().out


MISTAKES = {
    "split": ("--config.split=train", "config.split must be test or validation, got 'train'"),
    "calibrator": ("--config.calibrator=isotonic", "calibration/isotonic.json: no such calibrator"),
    "source": ("--config.source=jsonl:nowhere.jsonl", "config.source=jsonl:nowhere.jsonl matches no file"),
    "columns": (
        "--config.source=jsonl:rows/tagging/test.jsonl",
        "test.jsonl:1 has no column 'text'; it has words, tags: name the right one in config.columns",
    ),
    "labels": (
        "--config.source=jsonl:rows/labels.jsonl",
        "rows/labels.jsonl:2: the label 'plant' is not among the classes animal, colour",
    ),
    "folder": ("--config.name=../other", "config.name must be a prefix of a file name, without folders"),
    "test": ("--config.name=test", "config.name=test is for the run's own rows"),
    "validation": ("--config.name=validation.mine", "config.name=validation.mine is for the run's own rows"),
    "idle name": ("--config.name=mine", "config.name=mine has no effect without config.source"),
    "idle columns": ("--config.columns=('text=a',)", "has no effect without config.source"),
    "calibrator elsewhere": ("--config.calibrator=../../evil", "../../evil: no such calibrator"),
    "resamples": ("--config.resamples=3", "config.resamples at least 20"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_writes_nothing(mistake, finetuned, here, capsys):
    write_rows(Path("rows/labels.jsonl"), [{"text": "the cat", "label": "animal"}, {"text": "x", "label": "plant"}])
    workdir = finetuned("classification")
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    capsys.readouterr()
    flag, message = MISTAKES[mistake]
    assert evaluate_run(workdir, flag) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before
