"""Self-training: rounds that leave their texts and the effect, go on where they stopped, and refuse what can't be."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments import self_train
from experiments.self_train import SelfTrainConfig
from lm.configuration import to_config_dict
from lm.decoding.sampling import SamplingConfig
from lm.errors import UserError
from lm.runs.config import OptimizerConfig, TrainingConfig
from lm.training.progress import read_metrics
from tests.tiny import command_line, files_below, replace, run, tiny_config

pytestmark = pytest.mark.slow

CONFIG = f"--config={Path(__file__).absolute()}"


def get_config():
    """This file is the config file too."""
    training = TrainingConfig(steps=2, batch_size=8, evaluate_every=2, checkpoint_every=2, log_every=1)
    return to_config_dict(
        SelfTrainConfig(
            texts=12,
            sampling=SamplingConfig(max_new_tokens=12),
            optimizer=OptimizerConfig(warmup_steps=1),
            training=training,
        )
    )


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    run(tiny_config(folder, prompts=(), steps=2, evaluate_every=2), folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def trained(pretrained, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("self_training") / "rounds"
    flags = (CONFIG, f"--config.init_from={pretrained}", f"--workdir={workdir}")
    assert command_line(self_train.main, self_train.define_flags, *flags) == 0
    return workdir, flags


def test_every_round_leaves_its_texts_and_both_arms(trained):
    workdir, _ = trained
    texts = {}
    for number in (1, 2):
        lines = (workdir / f"round_{number}" / "generated.jsonl").read_text().splitlines()
        texts[number] = [json.loads(line)["text"] for line in lines]
        assert len(texts[number]) == 12
        for arm, source in {
            "self-training": f"jsonl:{workdir}/round_{number}/generated.jsonl",
            "control": None,
        }.items():
            config = json.loads((workdir / f"round_{number}" / arm / "config.json").read_text())
            assert config["data"]["mixed_source"] == source
            before = workdir / "round_1" / arm
            assert number == 1 or config["init_from"] == str(before)
    assert texts[1] != texts[2]
    assert len(set(texts[1])) > 6


def test_the_effect_is_the_difference_of_the_last_losses(trained):
    workdir, _ = trained
    found = json.loads((workdir / "effect.json").read_text())
    for arm in ("self-training", "control"):
        logged = [read_metrics(workdir / f"round_{number}" / arm / "metrics.jsonl")[-1] for number in (1, 2)]
        assert [each["validation/loss"] for each in found["rounds"][arm]] == [
            line["validation/loss"] for line in logged
        ]
    last = {arm: rounds[-1]["validation/loss"] for arm, rounds in found["rounds"].items()}
    change = found["change"]
    assert change["value"] == pytest.approx(last["self-training"] - last["control"], rel=1e-4) != 0
    assert change["low"] < change["value"] < change["high"]
    errors = [rounds[-1]["validation/loss_stderr"] for rounds in found["rounds"].values()]
    assert change["high"] - change["low"] < sum(errors), "pairs are compared more sharply than independent texts"


def test_the_same_command_resumes(trained, capsys):
    workdir, flags = trained
    effect = (workdir / "effect.json").read_bytes()
    generated = workdir / "round_2" / "generated.jsonl"
    text, kept = generated.read_bytes(), (workdir / "round_1" / "generated.jsonl").stat().st_mtime_ns
    for lost in (workdir / "effect.json", generated):
        lost.unlink()
    assert command_line(self_train.main, self_train.define_flags, *flags) == 0
    assert generated.read_bytes() == text
    assert (workdir / "round_1" / "generated.jsonl").stat().st_mtime_ns == kept
    assert (workdir / "effect.json").read_bytes() == effect


def test_rounds_of_another_config_are_refused(trained, capsys):
    workdir, flags = trained
    before = files_below(workdir)
    assert command_line(self_train.main, self_train.define_flags, *flags, "--config.texts=13") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "config.texts was 12, is 13" in line
    assert files_below(workdir) == before


MISTAKES = {
    "no run": ("--config.init_from=nowhere", "config.init_from=nowhere: nowhere has no run"),
    "none named": ("--config.init_from=", "config.init_from is missing"),
    "share": ("--config.share=1.0", "config.share must be between 0 and 1, got 1.0"),
    "augmentation": (
        "--config.augmentation.replace_rate=1.5",
        "config.augmentation.replace_rate must be in [0, 1), got 1.5",
    ),
    "rounding": ("--config.share=0.01", "config.share=0.01 of 8 windows is 0 when rounded"),
    "devices": ("--config.training.batch_size=12", "config.training.batch_size=12"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(mistake, pretrained, tmp_path, capsys):
    flag, message = MISTAKES[mistake]
    flags = (CONFIG, f"--config.init_from={pretrained}", f"--workdir={tmp_path / 'run'}", flag)
    assert command_line(self_train.main, self_train.define_flags, *flags) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not (tmp_path / "run").exists()


def test_a_run_that_was_trained_on_a_mixture_is_refused(tmp_path):
    config = tiny_config(tmp_path, steps=2)
    config = replace(config, data={"mixed_source": config.data.source, "mixed_share": 0.5})
    with pytest.raises(UserError, match=r"was trained on a mixture, with config\.data\.mixed_source=text:"):
        self_train.check(SelfTrainConfig(init_from="run"), SimpleNamespace(config=config), tmp_path / "rounds")


def test_a_run_from_someone_else_names_no_text(pretrained, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LM_CACHE_DIR", str(tmp_path / "mine"))
    flags = (CONFIG, f"--config.init_from={pretrained}", f"--workdir={tmp_path / 'run'}")
    assert command_line(self_train.main, self_train.define_flags, *flags) == 2
    assert "was not trained by you on this machine" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
