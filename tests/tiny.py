"""A tiny corpus, model and run that tests share. Everything about it fits in a second or two."""

import dataclasses
import sys
from pathlib import Path

import numpy as np

from experiments.pretrain import pretrain
from lm.command_line import run as run_command
from lm.console import Console
from lm.data.config import DataConfig, TokenizerConfig
from lm.decoding.sampling import SamplingConfig
from lm.modules.config import ModelConfig
from lm.runs.config import OptimizerConfig, PartitioningConfig, PretrainConfig, SamplesConfig, TrainingConfig
from lm.runs.work_directory import WorkDirectory
from lm.training.loop import Outcome

WORDS = [
    "the",
    "model",
    "knows",
    "what",
    "it",
    "knows",
    "and",
    "says",
    "how",
    "sure",
    "it",
    "is",
    "of",
    "every",
    "word",
    "that",
    "it",
    "writes",
]


def write_corpus(folder: Path, documents: int = 40) -> str:
    """Writes text files of random words and returns their `config.data.source`."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for number in range(documents):
        text = " ".join(random.choice(WORDS, size=60))
        (folder / f"{number}.txt").write_text(text, encoding="utf-8")
    return f"text:{folder}/*.txt"


def tiny_config(folder: Path, prompts: tuple[str, ...] = ("the",), **training) -> PretrainConfig:
    """A run of 6 steps on a corpus below `folder`; keyword arguments change `TrainingConfig`.

    Each of `prompts` is continued at the end; without any, nothing is compiled for that.
    """
    source = write_corpus(folder / "corpus")
    values = {"steps": 6, "batch_size": 8, "evaluate_every": 3, "checkpoint_every": 2, "log_every": 2, **training}
    return PretrainConfig(
        model=ModelConfig(layers=2, width=16, heads=2, max_length=16, dropout=0.1),
        data=DataConfig(source=source, validation_fraction=0.2, cache_dir=str(folder / "cache")),
        tokenizer=TokenizerConfig(kind="bytes"),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=2, ema_decay=0.5),
        training=TrainingConfig(**values),
        partitioning=PartitioningConfig(strategy="jit", data=8),
        samples=SamplesConfig(prompts=prompts, sampling=SamplingConfig(max_new_tokens=4)),
    )


def run(config: PretrainConfig, workdir: Path) -> Outcome:
    """Pretrains quietly."""
    return pretrain(config, WorkDirectory(workdir), Console(quiet=True))


def replace(config: PretrainConfig, **sections) -> PretrainConfig:
    """The config with values of sections changed: `replace(config, training={"steps": 3})`."""
    changed = {
        name: dataclasses.replace(getattr(config, name), **values) if isinstance(values, dict) else values
        for name, values in sections.items()
    }
    return dataclasses.replace(config, **changed)


def files_below(folder: Path) -> set[str]:
    """Relative names of all files."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def command_line(main, define, *arguments: str, resumable: bool = False) -> int:
    """Runs an experiment's command line in this process and returns its exit status."""
    known = sys.argv
    sys.argv = ["experiment", *arguments]
    try:
        run_command(main, define, "usage", resumable)
    except SystemExit as exit_:
        return exit_.code
    finally:
        sys.argv = known
    raise AssertionError("a command line always exits")
