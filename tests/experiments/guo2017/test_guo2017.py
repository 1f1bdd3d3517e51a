"""The reproduction of Guo et al. 2017 at toy size, run from the command line, and its table."""

import csv
import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from configs.guo2017 import get_config
from experiments.guo2017.__main__ import Guo2017Config, Parts, define_flags, main
from experiments.guo2017.table import COLUMNS, METHODS, measure
from lm.calibration.predictions import Predictions
from lm.configuration import from_config_dict
from tests.tiny import command_line, files_below
from tests.tiny_texts import write_sst, write_wheel

pytestmark = pytest.mark.slow

CONFIG = f"--config={Path(__file__).parents[3] / 'configs' / 'guo2017.py'}"
TOY = (
    CONFIG,
    "--config.data_sets=('reuters','sst_fine')",
    "--config.reuters.fit_items=40",
    "--config.sst_fine.epochs=12",
    "--config.seeds=2",
    "--config.width=4",
    "--config.hidden_width=8",
    "--config.vocabulary=40",
    "--config.batch_size=16",
    "--config.learning_rate=0.02",
    "--config.most_epochs=3",
)


def texts(rng, items, classes):
    """Texts that mostly, not always, use the three words of their class."""
    labels = np.arange(items) % classes
    words = np.where(rng.random((items, 6)) < 0.6, 3 * labels[:, None] + rng.integers(3, size=(items, 6)), 12)
    return [(int(label), " ".join(f"w{word}" for word in row)) for label, row in zip(labels, words, strict=True)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    write_wheel(folder, {"reuters-r8": (texts(rng, 100, 3), texts(rng, 50, 3))})
    # As many texts as above: what is compiled for the one serves the other.
    parts = {"train": texts(rng, 60, 3), "validation": texts(rng, 40, 3), "test": texts(rng, 50, 3)}
    write_sst(folder, "sst5", parts)
    return folder


@pytest.fixture
def here(data, monkeypatch):
    monkeypatch.setenv("LM_CACHE_DIR", str(data))
    monkeypatch.setenv("LM_DATA_DIR", str(data))


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "guo"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LM_CACHE_DIR", str(data))
        patch.setenv("LM_DATA_DIR", str(data))
        assert command_line(main, define_flags, *TOY, f"--workdir={workdir}") == 0
    return workdir


def test_the_whole_experiment(finished):
    names = {
        f"{name}_seed{seed}_{part}" for name in ("reuters", "sst_fine") for seed in (0, 1) for part in ("fit", "test")
    }
    tables = {"config.json", "table.json", "table.csv", "table.md"}
    assert files_below(finished) == {f"predictions/{name}.npz" for name in names} | tables
    rows = json.loads((finished / "table.json").read_text())
    assert [row["data_set"] for row in rows] == ["reuters", "sst_fine"]
    for row in rows:
        assert [cell["name"] for cell in row["methods"]] == list(METHODS)
        for cell in row["methods"]:
            assert 0 <= cell["floor"] <= 100
            assert 0 <= cell["ece"] <= 100
            assert math.isfinite(cell["ece_stderr"])
        cells = {cell["name"]: cell for cell in row["methods"]}
        assert cells["none"]["error"] == cells["temperature"]["error"], "temperature changed a class"
        assert cells["none"]["error"] < 45, "nothing was learned"
    assert rows[0]["methods"][1]["published_ece"] == rows[0]["methods"][2]["published_ece"] == 1.75
    lines = list(csv.DictReader((finished / "table.csv").open()))
    assert len(lines) == 2 * len(METHODS)
    assert float(lines[0]["ece"]) == rows[0]["methods"][0]["ece"]
    text = (finished / "table.md").read_text()
    assert f"{rows[0]['methods'][0]['ece']:.2f} ± {rows[0]['methods'][0]['ece_stderr']:.2f}" in text


def test_training_sees_neither_texts_nor_words_of_the_held_out_parts(tmp_path):
    rows = [(row % 2, f"common own{row} own{row}") for row in range(50)]
    write_wheel(tmp_path, {"reuters-r8": (rows, [(0, "common other other"), (1, "common own3")])})
    config = from_config_dict(Guo2017Config, get_config())
    config = dataclasses.replace(
        config, reuters=dataclasses.replace(config.reuters, fit_items=20), cache_dir=str(tmp_path)
    )
    parts = Parts(config, "reuters").of(0)
    train, fit = (set(parts[part][1].ids) for part in ("train", "fit"))
    assert (len(train), len(fit)) == (30, 20)
    assert not train & fit
    assert parts["train"][0].length_N.tolist() == [3] * 30
    # Of other parts' texts only "common" is known, and own3 where training saw it.
    assert parts["fit"][0].length_N.tolist() == [1] * 20
    assert parts["test"][0].length_N.tolist() == [1, 2 if "train/3" in train else 1]
    for words, labelled in parts.values():
        assert len(words.length_N) == len(labelled.labels_N) == len(labelled.texts)
    assert [rows[int(name.split("/")[1])][1] for name in parts["fit"][1].ids] == list(parts["fit"][1].texts)


def test_each_seed_draws_its_own_split(finished):
    ids = {}
    for seed in (0, 1):
        fit, test = (
            Predictions.load(finished / "predictions" / f"reuters_seed{seed}_{part}.npz") for part in ("fit", "test")
        )
        assert (len(fit), len(test)) == (40, 50)
        assert {name.split("/")[0] for name in fit.ids_N} == {"train"}
        assert {name.split("/")[0] for name in test.ids_N} == {"test"}
        assert fit.class_names == ("0", "1", "2")
        ids[seed] = set(fit.ids_N)
    assert ids[0] != ids[1]
    fit = Predictions.load(finished / "predictions" / "sst_fine_seed0_fit.npz")
    assert fit.ids_N.tolist() == [f"validation/{i}" for i in range(40)]


def test_the_same_command_reuses_predictions(finished, here, capsys):
    before = {file: file.stat().st_mtime_ns for file in (finished / "predictions").iterdir()}
    lost = finished / "predictions" / "sst_fine_seed1_test.npz"
    known = Predictions.load(lost)
    lost.unlink()
    assert command_line(main, define_flags, *TOY, f"--workdir={finished}") == 0
    assert "sst_fine, seed 1" in (said := capsys.readouterr().err)
    assert "seed 0" not in said
    np.testing.assert_array_equal(Predictions.load(lost).logits, known.logits)
    for file, time in before.items():
        assert file.stat().st_mtime_ns == time or "sst_fine_seed1" in file.name


def test_another_config_needs_another_directory(finished, here, capsys):
    assert command_line(main, define_flags, *TOY, "--config.reuters.epochs=2", f"--workdir={finished}") == 2
    assert "was made with config.reuters.epochs=7, not 2: use another --workdir" in capsys.readouterr().err


def test_choosing_epochs_prints_accuracies(here, capsys):
    assert command_line(main, define_flags, *TOY, "--choose_epochs") == 0
    said = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in said] == ["reuters", "sst_fine"]
    assert all("; best after " in line for line in said)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "--workdir is missing"),
        (("--config.data_sets=('news',)",), "config.data_sets names 'news'; known: newsgroups, reuters"),
        (("--config.seeds=0",), "config.seeds must be at least 1"),
        (("--config.reuters.fit_items=100", "--workdir={}"), "config.reuters.fit_items must be below 100"),
        (("--config.reuters.fit_items=0", "--workdir={}"), "config.reuters.fit_items must be at least 1"),
        (("--config.reuters.published_ece=(1.0,)",), f"needs {len(COLUMNS)} numbers"),
        (("--config.data_sets=('reuters','sst_binary')", "--workdir={}"), "sst2/train.jsonl"),
    ],
)
def test_user_errors_are_one_line(flags, message, here, capsys, tmp_path):
    arguments = [flag.format(tmp_path / "run") for flag in flags]
    assert command_line(main, define_flags, *TOY, *arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists(), "something was written"


def predictions(rng, items, factor):
    """Predictions whose logits are too large by a factor."""
    logits = rng.normal(size=(items, 4)) * 1.5
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    return Predictions((factor * logits).astype(np.float32), labels.astype(np.int32), np.arange(items))


def test_a_calibrator_is_measured_on_other_items_than_it_was_fitted_to(monkeypatch):
    names = ("none", "histogram_equal_mass", "temperature")
    monkeypatch.setattr("experiments.guo2017.table.METHODS", {name: METHODS[name] for name in names})
    rng = np.random.default_rng(0)
    fit, test, calibrated = (predictions(rng, 1500, factor) for factor in (3, 3, 1))
    found = measure(fit, test)
    assert found["none"].ece > 0.15
    assert found["histogram_equal_mass"].ece < 0.06
    assert found["temperature"].ece < 2 * found["temperature"].floor
    assert found["none"].error == pytest.approx((test.logits.argmax(axis=1) != test.labels_N).mean())
    found = measure(fit, calibrated)
    assert found["none"].ece < 2 * found["none"].floor
    assert found["temperature"].ece > 0.1, "scaling calibrated predictions must make them worse"
