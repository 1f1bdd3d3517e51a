"""Each mistake gets one line that names it, and exit status 2, and leaves nothing behind."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import generate, pretrain, prompt
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
    "mistyped": (("--config.training.steps=many",), "config.training.steps must be an integer, got 'many'"),
    "a float for an int": (("--config.training.steps=1.5",), "config.training.steps must be an integer.*1.5"),
    "not a number": (("--config.optimizer.learning_rate=nan",), "learning_rate must be a finite number, got nan"),
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
        "tokens, fewer than a window of 100000.*config.model.sequence_length",
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
    "sample prompt": (
        ("--config.tokenizer.kind=characters", "--config.samples.prompts=('the', '漢字')"),
        "config.samples.prompts: .*漢",
    ),
    "empty sample prompt": (
        ("--config.tokenizer.end_of_text=False", "--config.samples.prompts=('',)"),
        "config.samples.prompts: an empty prompt needs a tokenizer with an end-of-text token",
    ),
    "profile": (("--profile=5",), "--profile=5 must be FIRST:LAST"),
    "setting": (("--config=configs/shakespeare_char.py:tpu",), "settings cpu.*'tpu'"),
    "no config": (("--config=configs/nowhere.py",), "there is no config file configs/nowhere.py"),
    "near config": (("--config=quikstart",), "there is no config file quikstart; did you mean quickstart"),
    "other kind": (("--config=sst2",), "sst2.py holds a FinetuneConfig, for experiments.finetune; .* PretrainConfig"),
    "bytes": (("--workdir=run\udcff",), "'--workdir=run.*' is not UTF-8"),
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


def failing_with(error):
    def main(values):
        raise error

    return main


OUTSIDE = {
    "interrupted": (KeyboardInterrupt(), 130, "error: stopped\n"),
    "a full disk": (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 2, "error: No space left on device\n"),
    "a file": (PermissionError(errno.EACCES, "Permission denied", "/a\nb"), 2, r"error: /a\\nb: Permission denied"),
    "memory": (MemoryError(), 1, "error: out of memory: lower config.training.batch_size"),
    "device memory": (RuntimeError("RESOURCE_EXHAUSTED: 12 GB\nstack"), 1, "batch_size.*RESOURCE_EXHAUSTED: 12 GB"),
    "a pipe that closed": (BrokenPipeError(), 141, "^$"),
}


@pytest.mark.parametrize("kind", OUTSIDE)
def test_what_fails_outside_is_one_line(kind, capsys):
    error, status, said = OUTSIDE[kind]
    assert command_line(failing_with(error), lambda values: None) == status
    text = capsys.readouterr().err
    assert re.search(said, text), text
    assert text.count("\n") == bool(text)


def test_what_can_be_continued_says_so(capsys):
    assert command_line(failing_with(KeyboardInterrupt()), lambda values: None, resumable=True) == 130
    assert capsys.readouterr().err == "stopped; run the same command to continue\n"


def test_a_mistake_of_ours_keeps_its_traceback():
    with pytest.raises(KeyError, match="ours"):
        command_line(failing_with(KeyError("ours")), lambda values: None)


PRINTS = """
from lm.command_line import run
run(lambda values: print("\\u6771\\udcff " * 20_000), lambda values: None, "usage")
"""


@pytest.mark.parametrize(
    ("shell", "status", "errors"),
    [
        ("> /dev/full", 2, "error: No space left on device\n"),
        ("> /dev/full 2> /dev/full", 2, ""),
        ("| head -c 10 > /dev/null; exit ${PIPESTATUS[0]}", 141, ""),
        ("> /dev/null", 0, ""),
        (">&-", 0, ""),
    ],
)
def test_standard_output_may_fail_or_have_any_encoding(shell, status, errors):
    command = f'"$PYTHON" -c "$PROGRAM" {shell}'
    variables = {**os.environ, "PYTHON": sys.executable, "PROGRAM": PRINTS, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(["bash", "-c", command], env=variables, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (status, errors)


@pytest.mark.parametrize("experiment", [pretrain, generate])
def test_help_says_what_each_flag_does(experiment, capsys):
    assert command_line(experiment.main, experiment.define_flags, "--help") == 0
    text = capsys.readouterr().out
    assert "--workdir: " in text
    assert "--config: " in text
    assert all(len(line) <= 120 for line in text.splitlines())


def test_help_shows_what_a_config_file_has_instead_of_the_defaults(capsys):
    assert command_line(prompt.main, prompt.define_flags, "--help", "--config=prompt:trec") == 0
    text = capsys.readouterr().out
    assert "--config.prompt.item: text (default: '{text}\\n'; here: 'Question: {text}\\nAnswer type:')\n" in text
    assert "--config.seed: integer (default: 0)\n" in text


def test_help_lists_the_keys_of_the_config(capsys):
    assert command_line(pretrain.main, pretrain.define_flags, "--help") == 0
    text = capsys.readouterr().out
    assert "--config.optimizer.learning_rate: number (default: 0.001)\n      the peak of the schedule." in text
    assert "--config.samples.sampling.top_p: number (default: 1.0)" in text
