"""Each mistake gets one line that names it, and exit status 2, and leaves nothing behind."""

import os
import re
from pathlib import Path

import pytest

from experiments import generate, pretrain
from tests.tiny import command_line, files_below, write_corpus

CONFIG = "--config=configs/quickstart.py"


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])


@pytest.fixture
def small(tmp_path):
    """Flags of a run that would work: on a tiny corpus, with bytes as tokens."""
    source = write_corpus(tmp_path / "corpus")
    return (
        CONFIG,
        f"--workdir={tmp_path / 'run'}",
        f"--config.data.source={source}",
        f"--config.data.cache_dir={tmp_path / 'cache'}",
        "--config.data.validation_fraction=0.2",
        "--config.tokenizer.kind=bytes",
        "--config.model.max_length=16",
    )


def refused(capsys, *flags: str, by=pretrain) -> str:
    """The one line with which a command is refused."""
    assert command_line(by.main, by.define_flags, *flags) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


MISTAKES = {
    "unknown key": (("--config.model.layrs=3",), "config.model.layrs is not a known.*config.model.layers"),
    "unknown group": (("--config.modle.layers=3",), "config.modle.layers is not a known.*config.model.layers"),
    "mistyped": (("--config.training.steps=many",), "config.training.steps=many"),
    "a float for an int": (("--config.training.steps=1.5",), "config.training.steps=1.5"),
    "unknown flag": (("--wrokdir=x",), "wrokdir"),
    "stray argument": (("train",), "train"),
    "heads": (("--config.model.heads=3",), "config.model.heads=3 does not divide config.model.width=128"),
    "kv_heads": (("--config.model.kv_heads=3",), "config.model.kv_heads=3 does not divide config.model.heads=4"),
    "devices": (("--config.training.batch_size=12",), "batch_size=12.*8 devices.*multiple of 8"),
    "mesh": (("--config.partitioning.fsdp=3",), "fsdp=3.*8 devices"),
    "choice": (("--config.optimizer.name=adamm",), "config.optimizer.name must be one of sgd,.*adamm"),
    "source": (
        ("--config.data.source=html:x",),
        "config.data.source must start with one of python:, text:, jsonl:, parquet:, tfds:; got 'html:x'",
    ),
    "glob": (("--config.data.source=text:nowhere/*.txt",), "nowhere/\\*.txt"),
    "cleaning": (("--config.data.cleaning=('polish',)",), "polish.*lowercase"),
    "short corpus": (
        ("--config.model.max_length=100000",),
        "tokens, fewer than a window of 100000.*config.model.max_length",
    ),
    "empty validation": (("--config.data.validation_fraction=0.0",), "validation split is empty.*validation_fraction"),
    "tokenizer file": (
        ("--config.tokenizer.kind=file", "--config.tokenizer.path=LICENSE"),
        "LICENSE.*tokenizer",
    ),
    "small vocabulary": (("--config.model.vocab_size=100",), "config.model.vocab_size=100.*257"),
    "metric": (
        ("--config.training.best_metric=bleu",),
        "config.training.best_metric=bleu is not logged by this run; choose one of .*loss.*bits_per_byte",
    ),
    "profile": (("--profile=5",), "--profile=5 must be FIRST:LAST"),
    "setting": (("--config=configs/shakespeare_char.py:tpu",), "settings cpu.*'tpu'"),
    "no config": (("--config=configs/nowhere.py",), "there is no config file configs/nowhere.py"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(mistake, small, tmp_path, capsys):
    flags, named = MISTAKES[mistake]
    line = refused(capsys, *small, *flags)
    assert re.search(named, line), line
    assert not (tmp_path / "run").exists()
    assert not [name for name in files_below(tmp_path) if Path(name).name.startswith((".", "tmp"))]


def test_flags_that_must_be_there(capsys):
    assert "--config is missing" in refused(capsys, "--workdir=x")
    assert "--workdir is missing" in refused(capsys, CONFIG)
    assert "--workdir is missing" in refused(capsys, by=generate)


def test_a_config_file_with_a_mistake_is_named(tmp_path, capsys):
    for number, (text, named) in enumerate(
        (
            ("def get_config(:", "SyntaxError"),
            ("import nothing_of_the_kind", "nothing_of_the_kind"),
            (
                "from lm.modules.config import ModelConfig\nget_config = lambda: ModelConfig(layrs=1)",
                "layrs",
            ),
            ("x = 1", "get_config"),
        )
    ):
        path = tmp_path / f"broken{number}.py"
        path.write_text(text)
        line = refused(capsys, f"--config={path}", f"--workdir={tmp_path / 'run'}")
        assert str(path) in line
        assert named in line


def test_bytes_that_are_not_text_are_named_by_file_and_offset(small, tmp_path, capsys):
    (tmp_path / "corpus" / "broken.txt").write_bytes(b"fine until \xff here")
    line = refused(capsys, *small)
    assert "broken.txt" in line
    assert "11" in line
    assert not (tmp_path / "run").exists()


def test_a_work_directory_that_cannot_be(small, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    line = refused(capsys, *small, f"--workdir={tmp_path / 'file' / 'run'}")
    assert "is a file, not a directory" in line
    if os.geteuid():  # permissions don't bind root
        (tmp_path / "closed").mkdir(mode=0o500)
        assert "no permission" in refused(capsys, *small, f"--workdir={tmp_path / 'closed' / 'run'}")


def test_a_catalogue_set_that_is_not_there_says_how_to_get_it(small, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    line = refused(capsys, *small, "--config.data.source=tfds:tiny_shakespeare")
    assert "tiny_shakespeare" in line
    assert "TFDS_DATA_DIR" in line
    assert "tfds]" in line


def test_generate_needs_a_run(tmp_path, capsys):
    line = refused(capsys, f"--workdir={tmp_path}", by=generate)
    assert f"--workdir={tmp_path} has no run" in line
    line = refused(capsys, f"--workdir={tmp_path}", "--config.top_p=3.0", by=generate)
    assert "top_p must be in (0, 1]" in line


@pytest.mark.parametrize("experiment", [pretrain, generate])
def test_help_says_what_each_flag_does(experiment, capsys):
    assert command_line(experiment.main, experiment.define_flags, "--help") == 0
    text = capsys.readouterr().out
    assert "--workdir: " in text
    assert "--config: " in text
