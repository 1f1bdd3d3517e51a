"""The tasks with examples by name. A new one needs a file with its class and an entry here."""

from collections.abc import Mapping, Sequence

from jax.sharding import Mesh

from lm.configuration import idle_beside, refuse_idle
from lm.data.tokenizers import Tokenizer
from lm.errors import UserError
from lm.modules.config import ModelConfig
from lm.tasks.completion import Completion
from lm.tasks.sequence_classification import SequenceClassification
from lm.tasks.sequence_to_sequence import SequenceToSequence
from lm.tasks.span_extraction import SpanExtraction
from lm.tasks.supervised import Columns, Row, SupervisedTask, TaskConfig
from lm.tasks.token_classification import TokenClassification

TASKS: dict[str, type[SupervisedTask]] = {
    "classification": SequenceClassification,
    "tagging": TokenClassification,
    "question_answering": SpanExtraction,
    "sequence_to_sequence": SequenceToSequence,
    "completion": Completion,
}


def check_task(config: TaskConfig) -> None:
    """Checks the name, and that no unused settings are set.

    Raises:
      UserError: otherwise.
    """
    _class_of(config)
    refuse_idle(config, "config.task", idle_settings(config.name))


def idle_settings(name: str) -> Mapping[str, str]:
    """The settings of `TaskConfig` without effect for a task, each with the name of the setting that disables it."""
    return idle_beside(name, {each: task.settings for each, task in TASKS.items()})


def make_supervised_task(
    config: TaskConfig,
    model: ModelConfig,
    tokenizer: Tokenizer,
    classes: tuple[str, ...] = (),
    train_rows: Sequence[Row] = (),
    mesh: Mesh | None = None,
) -> SupervisedTask:
    """The task, with its model.

    Args:
      config: which, and its settings.
      model: the shape of the network, including the vocabulary size.
      tokenizer: how texts become tokens.
      classes: names of the classes or tags, from `classes_of`; empty for a task without classes.
      train_rows: used for "balanced" class weights; needed only for training.
      mesh: of devices, or None for one.

    Raises:
      UserError: if the task and the architecture don't fit.
    """
    return _class_of(config).from_config(config, model, tokenizer, mesh, classes, train_rows)


def columns_of(config: TaskConfig) -> Columns:
    """The columns that rows must have and may have."""
    return _class_of(config).columns(config)


def texts_of(config: TaskConfig, rows: Sequence[Row]) -> list[str]:
    """The texts of rows, for training a tokenizer."""
    return _class_of(config).texts(config, rows)


def classes_of(config: TaskConfig, train_rows: Sequence[Row]) -> tuple[str, ...]:
    """Names of the classes or tags: from the config, else the training rows, sorted; empty for other tasks.

    Raises:
      UserError: if there are fewer than two.
    """
    labels = _class_of(config).labels(train_rows)
    if labels is None:
        return ()
    if config.classes:
        return tuple(config.classes)
    found = sorted(set(labels))
    if len(found) < 2:
        raise UserError(f"the training rows have only the class {', '.join(found)}: at least two are needed")
    return tuple(found)


def _class_of(config: TaskConfig) -> type[SupervisedTask]:
    if config.name not in TASKS:
        raise UserError(f"config.task.name must be one of {', '.join(TASKS)}; got {config.name!r}")
    return TASKS[config.name]
