"""Training from shards and mixtures, as users do it: the commands, resuming, and what is refused."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from experiments import pretrain, tokenize_corpus
from lm.console import Console
from lm.data.config import DataConfig, TokenizerConfig
from lm.data.sharding import Job, ShardsConfig, make_shards
from lm.errors import UserError
from lm.runs.work_directory import WorkDirectory
from tests.tiny import command_line, replace, run, tiny_config, write_corpus

SHARDS = ShardsConfig(tokenizer=TokenizerConfig(kind="bytes"), window=32, shards=3)


@pytest.fixture
def shards(tmp_path_factory):
    """A folder of three shards, made by the command."""
    folder = tmp_path_factory.mktemp("sharded")
    flags = (
        "--config=configs/shards.py",
        f"--output={folder / 'shards'}",
        f"--config.data.source={write_corpus(folder / 'texts')}",
        "--config.data.validation_fraction=0.2",
        "--config.tokenizer.kind=bytes",
        "--config.window=32",
        "--config.shards=3",
    )
    for part in ("0/2", "1/2"):
        assert command_line(tokenize_corpus.main, tokenize_corpus.define_flags, *flags, f"--part={part}") == 0
    return folder / "shards"


class Stopped(Exception):
    """Ends a run."""


def leaves(outcome):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(outcome.state.params)]


def config_of(shards, folder):
    tiny = tiny_config(folder, ())
    text = tiny.data.source
    source = f"mixture:0.75=shards:{shards},0.25={text}"
    return replace(tiny, data={"source": source})


@pytest.mark.slow
def test_a_run_on_a_mixture_of_shards_and_text_resumes_exactly(shards, tmp_path):
    whole = run(config_of(shards, tmp_path), tmp_path / "whole")

    def stop(step, metrics):
        raise Stopped

    directory = WorkDirectory(tmp_path / "halves")
    with pytest.raises(Stopped):
        pretrain.pretrain(config_of(shards, tmp_path), directory, Console(quiet=True), on_evaluation=stop)
    resumed = run(config_of(shards, tmp_path), tmp_path / "halves")
    for one, two in zip(leaves(whole), leaves(resumed), strict=True):
        np.testing.assert_array_equal(one, two)
    corpus = Job.of(
        dataclasses.replace(SHARDS, data=DataConfig(write_corpus(tmp_path / "other", 30))), str(tmp_path / "new")
    )
    make_shards(corpus.with_tokenizer(), range(3))
    corpus.with_tokenizer().finish()
    shutil.rmtree(shards)
    shutil.copytree(tmp_path / "new", shards)
    with pytest.raises(UserError, match="holds a run on other data"):
        run(config_of(shards, tmp_path), tmp_path / "whole")


def test_pairs_and_remote_runs_are_refused(shards, tmp_path, capfd):
    tiny = replace(tiny_config(tmp_path, ()), data={"source": f"shards:{shards}"})
    encoder = replace(
        tiny, model={"architecture": "encoder", "segment_types": 2}, objective={"name": "masked_next_sentence"}
    )
    with pytest.raises(UserError, match="which shards and mixtures don't keep"):
        run(encoder, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="is remote"):
        WorkDirectory("gs://bucket/run")
    flags = ("--config=configs/quickstart.py", "--workdir=s3://bucket/run")
    assert command_line(pretrain.main, pretrain.define_flags, *flags) == 2
    assert "mount the bucket" in capfd.readouterr().err
