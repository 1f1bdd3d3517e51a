"""Baselines: the most frequent class has its share, and the regression learns what words tell."""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments import baseline
from lm.calibration.predictions import Predictions
from lm.tasks.supervised import TaskConfig
from tests.tiny import command_line
from tests.tiny_tasks import CONFIG, rows_of, write_rows


def run_baseline(kind, workdir, *flags):
    return command_line(baseline.main, baseline.define_flags, f"{CONFIG}:{kind}", f"--workdir={workdir}", *flags)


def metrics_of(workdir, name):
    found = json.loads((Path(workdir) / "predictions" / f"{name}.metrics.json").read_text())
    return {metric: figure["value"] for metric, figure in found["metrics"].items()}


@pytest.mark.parametrize(("kind", "accuracy"), [("classification", "accuracy"), ("tagging", "token_accuracy")])
def test_the_majority_has_its_share_and_the_regression_is_right(kind, accuracy, here, capsys):
    workdir = Path(f"runs/{kind}_baseline")
    assert run_baseline(kind, workdir) == 0
    rows = rows_of(kind, "test")
    labels = [label for row in rows for label in (row["tags"] if kind == "tagging" else [row["label"]])]
    most = max(set(labels), key=labels.count)  # in the training rows too
    assert metrics_of(workdir, "test.majority")[accuracy] == pytest.approx(labels.count(most) / len(labels))
    assert metrics_of(workdir, "test")[accuracy] > labels.count(most) / len(labels) + 0.1
    constant = np.unique(Predictions.load(workdir / "predictions" / "test.majority.npz").logits, axis=0)
    train = [t for row in rows_of(kind, "train") for t in (row["tags"] if kind == "tagging" else [row["label"]])]
    names = Predictions.load(workdir / "predictions" / "test.npz").class_names
    np.testing.assert_allclose(np.exp(constant), [[train.count(name) / len(train) for name in names]], rtol=1e-4)
    assert "test.majority: " in capsys.readouterr().out
    predictions = Predictions.load(workdir / "predictions" / "test.npz")
    assert [predictions.class_names[label] for label in predictions.labels_N] == labels
    right = (predictions.logits.argmax(axis=1) == predictions.labels_N).mean()
    assert right == pytest.approx(metrics_of(workdir, "test")[accuracy])
    assert len((workdir / "predictions" / "test.jsonl").read_text().splitlines()) == len(rows)


def test_a_pair_is_read_whole():
    task = TaskConfig(name="classification", pair=True)
    items = baseline.items_of(task, [{"text": "a cat", "pair": "one dog", "label": "1"}])
    assert items == baseline.Items(["a cat\none dog"], ["1"])


NO_OTHER_ROWS = ("--config.data.validation=", "--config.data.test=")
MISTAKES = {
    "task": ("completion", (), "config.task.name=completion has no classes"),
    "classes": (
        "classification",
        ("--config.task.classes=('animal','plant')",),
        "config.task.classes lacks 'colour', which training rows have",
    ),
    "unread pair": ("pair", ("--config.task.pair=False",), "set config.task.pair=True"),
    "no validation": (
        "classification",
        ("--config.data.validation=", "--config.data.validation_fraction=0.0"),
        "config.data.validation_fraction",
    ),
    "one class": (
        "classification",
        ("--config.data.train=jsonl:one.jsonl", *NO_OTHER_ROWS, "--config.task.classes=('animal','colour')"),
        "config.data.train: a regression cannot be fitted",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(mistake, here, tmp_path, capsys):
    write_rows(Path("one.jsonl"), [{"text": f"the cat {number}", "label": "animal"} for number in range(8)])
    kind, flags, message = MISTAKES[mistake]
    assert run_baseline(kind, tmp_path / "run", *flags) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not (tmp_path / "run").exists()


def test_the_predictions_of_a_run_are_not_overwritten(here, tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    assert run_baseline("classification", tmp_path) == 2
    assert "holds a run, whose predictions would be lost" in capsys.readouterr().err
