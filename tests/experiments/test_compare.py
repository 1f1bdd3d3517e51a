"""Comparing two classifiers on the same rows."""

import dataclasses
import json

import numpy as np
import pytest

from experiments.compare import compare, define_flags, main
from lm.calibration import comparison as calibration_comparison
from lm.calibration.predictions import Predictions
from lm.errors import UserError
from tests.tiny import command_line

ROWS = 400


def write(folder, share_right: float, seed: int, ids=None) -> str:
    """A run that is right on a share of the same rows, with a confidence of 0.8."""
    labels_N = np.arange(ROWS) % 2
    right_N = np.random.default_rng(seed).random(ROWS) < share_right
    predicted_N = np.where(right_N, labels_N, 1 - labels_N)
    logits_NC = np.log(np.where(np.eye(2)[predicted_N] > 0, 0.8, 0.2)).astype(np.float32)
    ids_N = np.arange(ROWS) if ids is None else ids
    Predictions(logits_NC, labels_N, ids_N).save(folder / "predictions" / "test.npz")
    return str(folder)


def test_a_better_training_method_is_distinguished_from_chance(tmp_path):
    worse = [write(tmp_path / f"worse{seed}", 0.6, seed) for seed in range(3)]
    better = [write(tmp_path / f"better{seed}", 0.8, 10 + seed) for seed in range(3)]
    one, other, difference = compare(worse, better)["accuracy"]
    assert one.seeds == other.seeds == 3
    assert difference.value == pytest.approx(other.mean - one.mean)
    assert 0.1 < difference.low < difference.value < difference.high < 0.3
    assert difference.p < 0.01
    assert compare(worse, better)["loss"][2].high < 0
    assert compare(better, worse)["accuracy"][2].value == pytest.approx(-difference.value)


def test_a_run_does_not_differ_from_itself(tmp_path):
    run = write(tmp_path / "run", 0.7, 0)
    difference = compare([run], [run])["accuracy"][2]
    assert (difference.value, difference.low, difference.high, difference.p) == (0, 0, 0, 1)


def test_compare_and_calibrate_give_the_same_p_for_the_same_question(tmp_path):
    """The change of NLL and of accuracy by a calibrator, on 60 rows in 12 clusters."""
    rng = np.random.default_rng(0)
    logits_NC = rng.normal(scale=2, size=(120, 3)).astype(np.float32)
    labels_N = (logits_NC / 2 + rng.gumbel(size=logits_NC.shape)).argmax(axis=1)
    fit_part, test_part = (
        Predictions(logits_NC[rows], labels_N[rows], rows, rows // 5) for rows in (np.arange(60), np.arange(60, 120))
    )
    found, fitted = calibration_comparison.compare(fit_part, test_part, ("vector",))
    after = dataclasses.replace(test_part, logits=np.asarray(fitted["vector"].apply(test_part.logits)))
    for name, predictions in (("before", test_part), ("after", after)):
        predictions.save(tmp_path / name / "predictions" / "test.npz")
    compared = compare([str(tmp_path / "before")], [str(tmp_path / "after")])
    for name, other in (("loss", "nll"), ("accuracy", "accuracy")):
        expected = found.method("vector").entry(other).difference
        assert 0 < expected.p < 1
        assert dataclasses.asdict(compared[name][2]) == pytest.approx(dataclasses.asdict(expected))


def test_one_cluster_has_neither_interval_nor_p(tmp_path, capsys):
    runs = [write(tmp_path / name, share, 0) for name, share in (("one", 0.6), ("other", 0.8))]
    for run in runs:
        path = tmp_path / run / "predictions" / "test.npz"
        dataclasses.replace(Predictions.load(path), clusters_N=np.zeros(ROWS, int)).save(path)
    arguments = (f"--one={runs[0]}", f"--other={runs[1]}")
    assert command_line(main, define_flags, *arguments) == 0
    assert "need at least two rows" in capsys.readouterr().out
    assert command_line(main, define_flags, *arguments, "--json") == 0
    assert json.loads(capsys.readouterr().out)["accuracy"][2]["p"] is None


def test_other_rows_and_missing_predictions_are_errors(tmp_path):
    run, other = write(tmp_path / "run", 0.7, 0), write(tmp_path / "other", 0.7, 0, ids=np.arange(ROWS) + 1)
    with pytest.raises(UserError, match="for other rows"):
        compare([run], [other])
    with pytest.raises(UserError, match=r"experiments\.evaluate --workdir=nowhere --config\.split=validation"):
        compare(["nowhere"], [run], "validation")


def test_the_command_line_prints_json_or_a_table(tmp_path, capsys):
    run, other = write(tmp_path / "run", 0.6, 0), write(tmp_path / "other", 0.9, 1)
    assert command_line(main, define_flags, f"--one={run}", f"--other={other}", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["accuracy"][2]["value"] > 0.2
    assert command_line(main, define_flags, f"--one={run}", f"--other={other}") == 0
    assert "95% interval" in capsys.readouterr().out
    assert command_line(main, define_flags, f"--one={run}") == 2
