"""Evaluation of finished runs: the same figures each time, other rows, other checkpoints, calibrated probabilities."""

import json
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


@pytest.mark.parametrize(
    "kind",
    ["classification", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS if kind != "classification")],
)
def test_evaluating_again_gives_the_same(kind, finetuned, here, capsys):
    workdir = finetuned(kind)
    metrics, records = metrics_of(workdir, "test"), records_of(workdir, "test")
    # Batches of another size, but where that would cost another search for the best text to be compiled.
    size = 0 if kind in ("sequence_to_sequence", "completion") else 5
    assert evaluate_run(workdir, "--config.split=test", f"--config.batch_size={size}") == 0
    again = metrics_of(workdir, "test")
    assert list(again) == list(metrics)
    np.testing.assert_allclose([again[name] for name in metrics], list(metrics.values()), rtol=1e-4, atol=1e-6)
    assert [row["predicted"] for row in records_of(workdir, "test")] == [row["predicted"] for row in records]
    printed = capsys.readouterr().out
    assert f"{next(iter(metrics.values())):.4f}" in printed
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


def test_a_checkpoint_is_chosen_by_name_or_step(finetuned, here, capsys):
    workdir = finetuned("tagging")
    for which, step in {"last": 4, "2": 2}.items():
        assert evaluate_run(workdir, f"--checkpoint={which}", "--config.split=validation") == 0
        found = json.loads((workdir / "predictions" / "validation.metrics.json").read_text())
        assert found["checkpoint"] == step
        assert f"checkpoint {step}" in capsys.readouterr().out
    assert evaluate_run(workdir, "--checkpoint=3") == 2
    assert "--checkpoint=3 does not exist: choose best, last or one of 2, 4" in capsys.readouterr().err


def test_runs_are_calibrated_together_and_evaluated_with_the_calibrator(finetuned, here, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "calibrate.py").write_text(CALIBRATE)
    runs = [finetuned("classification"), finetuned("pair")]
    flags = (f"--config={tmp_path / 'calibrate.py'}", *(f"--workdir={workdir}" for workdir in runs))
    assert command_line(calibrate.main, calibrate.define_flags, *flags) == 0
    table = capsys.readouterr().err.split("before and after: temperature")[1]
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


def test_a_pretraining_run_is_measured_on_its_validation_text(tmp_path, capsys):
    outcome = run(tiny_config(tmp_path, steps=3, evaluate_every=3), tmp_path / "run")
    before = set((tmp_path / "run").rglob("*"))
    assert evaluate_run(tmp_path / "run") == 0
    assert set((tmp_path / "run").rglob("*")) == before
    shown = capsys.readouterr().out
    loss, error = (outcome.validation[f"validation/{name}"] for name in ("loss", "loss_stderr"))
    assert f"{loss:.4f}" in shown
    assert f"{loss - 1.96 * error:.4f} to {loss + 1.96 * error:.4f}" in shown


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
    "name": ("--config.name=../other", "config.name"),
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
