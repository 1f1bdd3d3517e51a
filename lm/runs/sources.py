"""The model that a run starts from: another run's, or a published one."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from lm.data.tokenizers import Tokenizer
from lm.errors import UserError
from lm.modules.config import ModelConfig
from lm.pretrained.load import is_published, open_published
from lm.runs.config import RunConfig
from lm.runs.published_runs import load_published
from lm.runs.trained_run import TrainedRun, load_run
from lm.runs.work_directory import WorkDirectory, with_vocabulary


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


def model_of_source(init_from: str) -> ModelConfig:
    """The shape of the source's model, without reading its parameters.

    Raises:
      UserError: if it can't be read.
    """
    if is_published(init_from):
        return open_published(init_from).config
    directory = WorkDirectory(Path(init_from))
    return with_vocabulary(directory.load_config(), Tokenizer.load(directory.tokenizer)).model
