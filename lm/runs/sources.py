"""The model that a run starts from: another run's, or a published one."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from lm.configuration import differences
from lm.console import Console
from lm.data.tokenizers import Tokenizer
from lm.errors import UserError
from lm.modules.config import ModelConfig
from lm.pretrained.load import is_published, open_published
from lm.runs.config import PretrainConfig, RunConfig
from lm.runs.published_runs import load_published
from lm.runs.trained_run import TrainedRun, load_run
from lm.runs.work_directory import AnyConfig, WorkDirectory, with_vocabulary


@contextlib.contextmanager
def naming_source(init_from: str) -> Iterator[None]:
    """Adds the name of the source, if there is one, to errors raised inside."""
    try:
        yield
    except UserError as error:
        if not init_from:
            raise
        reason = str(error).removeprefix("--workdir=")
        raise UserError(f"config.init_from={init_from}: {reason}") from error


def load_source(config: RunConfig) -> TrainedRun | None:
    """The run to start from, or a published model as one, if the config names one.

    Raises:
      UserError: if it can't be read.
    """
    if not config.init_from:
        return None
    with naming_source(config.init_from):
        if not is_published(config.init_from):
            return load_run(WorkDirectory(Path(config.init_from)), config.init_checkpoint, "config.init_checkpoint")
        if config.init_checkpoint != "best":
            raise UserError("a published model has no checkpoints: leave config.init_checkpoint out")
        return load_published(config.init_from, config.model)


def with_model_of_source(config: AnyConfig) -> AnyConfig:
    """With `init_from`, the config with the shape of the source's model, executed as this config says.

    A pretraining run that starts from another one says its shape itself, since it may differ in what parameters do not
    show. The shape of a published model has dozens of settings and no other is right.

    Raises:
      UserError: if the source cannot be read.
    """
    if not config.init_from:
        return config
    with naming_source(config.init_from):
        if is_published(config.init_from):
            found = open_published(config.init_from).config.executed_as(config.model)
            return dataclasses.replace(config, model=dataclasses.replace(found, scan_layers=config.model.scan_layers))
        directory = WorkDirectory(Path(config.init_from))
        theirs = directory.load_config()
        if isinstance(config, PretrainConfig) and not theirs.imported_from:
            return config
        found = with_vocabulary(theirs, Tokenizer.load(directory.tokenizer)).model
        return dataclasses.replace(config, model=found.executed_as(config.model))


def print_shape(config: RunConfig, own: ModelConfig, console: Console) -> None:
    """Prints how the shape that comes from the source differs from the config's own, if that had one.

    Args:
      config: with the shape of the source.
      own: the model before.
      console: to print on.
    """
    changed = differences(own, config.model)
    no_shape = ModelConfig(architecture=own.architecture).executed_as(own)
    if changed and own != no_shape:
        listed = ", ".join(f"{name} {new!r} (not {old!r})" for name, (old, new) in changed.items())
        console.print(f"the model has the shape of {config.init_from}: {listed}")
