"""What a run writes and says at its end is of its best checkpoint, although the last one is worse."""

import json

import numpy as np
import pytest

from experiments import calibrate, generate
from experiments.pretrain import pretrain
from lm.calibration.predictions import Predictions
from lm.console import Console
from lm.data.store import build_corpus
from lm.inference.load import load
from lm.inference.predictions import write_predictions
from lm.inference.samples import write_samples
from lm.runs.config import PredictionsConfig
from lm.runs.work_directory import WorkDirectory
from lm.training import pretraining
from tests.tiny import command_line, replace, tiny_config

PREDICTIONS = PredictionsConfig(tokens=100)


@pytest.fixture(scope="module")
def overfitted(tmp_path_factory):
    """The folder of a run whose evaluation at step 4 is worse than that at step 2, its config, and what it printed."""
    folder = tmp_path_factory.mktemp("overfitted")
    make = pretraining.make_validation

    def make_worse(*arguments):
        validate = make(*arguments)

        def worse(state):
            metrics = validate(state)
            return {**metrics, "validation/loss": metrics["validation/loss"] + 3 * (int(state.step) == 4)}

        return worse

    config = replace(tiny_config(folder, steps=4, evaluate_every=2), predictions=PREDICTIONS)
    with pytest.MonkeyPatch.context() as patch, open(folder / "printed", "w+") as printed:
        patch.setattr(pretraining, "make_validation", make_worse)
        patch.setattr("sys.stdout", printed)
        pretrain(config, WorkDirectory(folder / "run"), Console(file=printed))
        printed.seek(0)
        return folder, config, printed.read()


def test_predictions_and_samples_are_of_the_best_checkpoint(overfitted, tmp_path):
    folder, config, _ = overfitted
    directory = WorkDirectory(folder / "run")
    model = load(directory.path, "2")
    found = Predictions.load(directory.predictions / "validation.npz")
    assert (found.checkpoint, found.model) == (2, model.digest)
    corpus = build_corpus(config.data, config.tokenizer)
    expected = write_predictions(model, corpus.validation, PREDICTIONS, config.seed, tmp_path / "it.npz")
    np.testing.assert_array_equal(found.logits, expected.logits)
    assert directory.samples.read_bytes().decode() == write_samples(model, config.samples, tmp_path / "it.txt")
    assert "checkpoint 2" in directory.samples.read_text()


def test_the_last_lines_name_the_best_and_the_last_checkpoint(overfitted):
    folder, _, printed = overfitted
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["validation/loss"] for line in lines if "validation/loss" in line}
    assert f"done: best checkpoint: step 2, validation loss {losses[2]:.4f}" in printed
    assert f"last checkpoint: step 4, validation loss {losses[4]:.4f}" in printed
    assert "predictions of" in printed
    assert "by checkpoint 2 are in" in printed
    command = f"python -m experiments.calibrate --config=calibrate_quickstart --workdir={folder / 'run'}"
    assert printed.endswith(f"everything is in {folder / 'run'}\nnext: {command}\n")


@pytest.mark.slow
def test_a_calibrator_of_the_best_checkpoint_refuses_the_last(overfitted, tmp_path, capsys):
    folder, _, _ = overfitted
    (tmp_path / "config.py").write_text(
        "from experiments.calibrate import CalibrateConfig\n"
        "from lm.calibration.results import Settings\n"
        "from lm.configuration import to_config_dict\n"
        "def get_config():\n"
        "    return to_config_dict(CalibrateConfig(calibrators=('temperature',), settings=Settings(resamples=20)))\n"
    )
    arguments = (f"--config={tmp_path / 'config.py'}", f"--workdir={folder / 'run'}")
    assert command_line(calibrate.main, calibrate.define_flags, *arguments) == 0
    assert json.loads((folder / "run" / "calibration" / "temperature.json").read_text())["checkpoint"] == 2
    capsys.readouterr()
    arguments = (f"--workdir={folder / 'run'}", "--calibrator=temperature", "--prompt=the", "--config.max_new_tokens=2")
    assert command_line(generate.main, generate.define_flags, *arguments) == 0
    assert command_line(generate.main, generate.define_flags, *arguments, "--checkpoint=last") == 2
    assert "fitted to checkpoint 2, and this is checkpoint 4: use --checkpoint=2" in capsys.readouterr().err
