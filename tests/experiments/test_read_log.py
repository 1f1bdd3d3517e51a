"""From another tool's log to floor, interval and paired test."""

import json

import numpy as np
import pytest

from experiments import calibrate, compare, read_log
from lm.calibration.predictions import Predictions
from tests.calibration.logs.harness_writing import line, write_samples
from tests.calibration.logs.inspect_writing import stated, write_log
from tests.tiny import command_line


def overconfident(folder, name, seed):
    """A log of 120 items whose log-likelihoods are twice too far apart."""
    random = np.random.default_rng(0)
    logits_NC = random.normal(size=(120, 3)) * 2
    labels_N = (logits_NC + random.gumbel(size=logits_NC.shape)).argmax(axis=1)
    noise_NC = np.random.default_rng(seed).normal(size=logits_NC.shape)
    lines = [
        line(n, (2 * logits_NC[n] + noise_NC[n] - 9).tolist(), int(labels_N[n]), options=("a", "b", "c"))
        for n in range(len(labels_N))
    ]
    return write_samples(folder / f"samples_{name}.jsonl", lines)


def call(module, *flags):
    return command_line(module.main, module.define_flags, *flags)


def test_a_log_is_calibrated(tmp_path, capsys):
    source, output = overconfident(tmp_path, "task", 1), tmp_path / "mine.npz"
    assert call(read_log, f"--source={source}", f"--output={output}") == 0
    said = capsys.readouterr().out
    accuracy = np.mean([json.loads(each)["acc"] for each in source.read_text().splitlines()])
    assert f"120 items, accuracy {accuracy:.1%}" in said
    flags = ["--config=configs/calibrate.py", f"--config.predictions={output}", f"--workdir={tmp_path / 'run'}"]
    few = ["--config.calibrators=('temperature',)", "--config.settings.resamples=50"]
    assert call(calibrate, *flags, *few) == 0
    methods = json.loads((tmp_path / "run/calibration/comparison.json").read_text())["methods"]
    ece, nll = methods[0]["metrics"]["ece"], methods[1]["metrics"]["nll"]
    assert ece["floor_mean"] > 0
    assert ece["low"] <= ece["value"] <= ece["high"]
    assert nll["difference"]["value"] < 0
    assert 0 < nll["difference"]["p"] <= 1


def test_two_models_are_compared_on_the_items_of_their_logs(tmp_path, capsys):
    for name, seed in (("one", 1), ("other", 2)):
        source = overconfident(tmp_path, name, seed)
        assert call(read_log, f"--source={source}", f"--output={tmp_path / name}/predictions/test.npz") == 0
    capsys.readouterr()
    assert call(compare, f"--one={tmp_path / 'one'}", f"--other={tmp_path / 'other'}", "--json") == 0
    assert {"accuracy", "loss", "ece"} <= json.loads(capsys.readouterr().out).keys()


def test_judgements_are_measured(tmp_path, capsys):
    source, output = tmp_path / "log.eval", tmp_path / "mine.npz"
    write_log(source, [stated(n, 0.9, value="CI"[n % 2]) for n in range(8)])
    assert call(read_log, f"--source={source}", f"--output={output}") == 0
    assert "accuracy 50.0%, mean confidence 90.0%, of the model's statement" in capsys.readouterr().out
    assert Predictions.load(output).class_names == ("wrong", "right")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "--source is missing"),
        (("--source=x.jsonl",), "--output is missing"),
        (("--source=x.jsonl", "--output=y.npz"), "x.jsonl: no such log"),
        (("--source={log}", "--output=y.csv"), "npz"),
        (("--source={log}", "--output=y.npz", "--normalization=words"), "normalization"),
        (("--source={log}", "--output=y.npz", "--scorer=choice"), "are for logs of Inspect"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    log = write_samples(tmp_path / "samples.jsonl", [line(0, (-2.0, -1.0), 1)])
    assert call(read_log, *(flag.format(log=log) for flag in flags)) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not list(tmp_path.glob("y.*"))
