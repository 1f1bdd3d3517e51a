"""The commands as a person types them, in processes of their own."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import generate
from lm.console import printable
from tests.tiny import command_line, write_corpus

ROOT = Path(__file__).parents[2]


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    # One device: what a laptop has.
    flags = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]
    env = {**os.environ, "XLA_FLAGS": " ".join(flags), **environment}
    return subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    source = write_corpus(folder / "corpus")
    flags = (
        "--config=configs/quickstart.py",
        f"--workdir={folder / 'run'}",
        f"--config.data.source={source}",
        "--config.data.validation_fraction=0.2",
        f"--config.data.cache_dir={folder / 'cache'}",
        "--config.tokenizer.kind=bytes",
        "--config.model.layers=1",
        "--config.model.width=32",
        "--config.model.max_length=32",
        "--config.training.steps=4",
        "--config.training.log_every=2",
        "--config.samples.sampling.max_new_tokens=8",
    )
    return command("experiments.pretrain", *flags, "--profile=2:3"), flags, folder / "run"


def test_pretraining_prints_what_it_did(trained):
    result, _, directory = trained
    assert result.returncode == 0, result.stderr
    for part in (
        "parameters on 1 x cpu",
        "attention: explicit",
        "tokens for training",
        "step 2/4",
        "validation loss",
        "±",
    ):
        assert part in result.stderr
    assert printable((directory / "samples.txt").read_bytes().decode()) in result.stdout
    assert result.stdout.startswith("done: ")
    assert list((directory / "profile").rglob("*.xplane.pb"))
    speed = [json.loads(line) for line in (directory / "speed.jsonl").read_text().splitlines()]
    assert [line["step"] for line in speed] == [2, 4]
    assert all(line["speed/tokens_per_second"] > 0 for line in speed)


@pytest.mark.slow
def test_the_same_command_again_has_nothing_to_do(trained):
    _, flags, directory = trained
    before = (directory / "metrics.jsonl").read_bytes()
    result = command("experiments.pretrain", *flags)
    assert result.returncode == 0
    assert "finished at step 4 already" in result.stderr
    assert (directory / "metrics.jsonl").read_bytes() == before


def test_generation_prints_text_or_json(trained, capsys):
    _, _, directory = trained
    flags = (f"--workdir={directory}", "--prompt=the ", "--config.max_new_tokens=12", "--config.top_k=3")
    plain = command("experiments.generate", *flags)
    assert plain.returncode == 0, plain.stderr
    assert plain.stdout.startswith("the ")
    assert command_line(generate.main, generate.define_flags, *flags, "--beams=2") == 2
    assert "config.top_k has no effect with --beams" in " ".join(capsys.readouterr().err.split())
    result = command("experiments.generate", *flags, "--prompt=model", "--config.samples=2", "--json")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["prompt"] for line in lines] == ["the ", "the ", "model", "model"]
    # The same seed and row; captured output has one kind of line end.
    text = lines[0]["text"].replace("\r\n", "\n").replace("\r", "\n")
    assert "the " + text == plain.stdout.removesuffix("\n")
    for line in lines:
        assert len(line["tokens"]) == len(line["log_probs"]) == len(line["sampling_log_probs"]) <= 12
        assert all(math.isfinite(value) and value <= 0 for value in line["log_probs"] + line["sampling_log_probs"])


@pytest.mark.slow
def test_a_checkpoint_is_chosen_by_name_or_step(trained):
    _, _, directory = trained
    flags = (f"--workdir={directory}", "--config.max_new_tokens=2", "--json")
    for which in ("last", "4"):
        result = command("experiments.generate", *flags, f"--checkpoint={which}")
        assert json.loads(result.stdout)["checkpoint"] == 4
    result = command("experiments.generate", *flags, "--checkpoint=3")
    assert result.returncode == 2
    assert "--checkpoint=3 does not exist: choose best, last or one of 4" in result.stderr
