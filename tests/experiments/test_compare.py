"""Comparing two classifiers on the same rows."""

import json

import numpy as np
import pytest

from experiments.compare import compare, define_flags, main
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


def test_a_better_way_of_training_is_told_from_chance(tmp_path):
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


def test_other_rows_and_missing_predictions_are_errors(tmp_path):
    run, other = write(tmp_path / "run", 0.7, 0), write(tmp_path / "other", 0.7, 0, ids=np.arange(ROWS) + 1)
    with pytest.raises(UserError, match="of other rows"):
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
