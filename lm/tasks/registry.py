"""From a config to the task with examples that it names."""

from collections.abc import Sequence

from jax.sharding import Mesh

from lm.data.tokenizers import Tokenizer
from lm.errors import UserError
from lm.models.build import make_language_model
from lm.models.heads import SequenceClassifier, SpanExtractor, TokenClassifier
from lm.modules.config import RECURRENT, ModelConfig
from lm.tasks.classification_loss import ClassificationLoss
from lm.tasks.completion import Completion
from lm.tasks.sequence_classification import SequenceClassification
from lm.tasks.sequence_to_sequence import SequenceToSequence
from lm.tasks.span_extraction import SpanExtraction
from lm.tasks.supervised import Row, SupervisedTask, TaskConfig
from lm.tasks.token_classification import TokenClassification


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
      model: the shape of the network, its vocabulary size known.
      tokenizer: how texts become tokens.
      classes: names of the classes or tags, from `classes_of`; none for a task without.
      train_rows: by which "balanced" class weights count; needed for training alone.
      mesh: of devices, or None for one.

    Raises:
      UserError: if the task and the architecture don't fit.
    """
    if config.name == "classification":
        loss = ClassificationLoss.from_config(config, classes, [row["label"] for row in train_rows])
        return SequenceClassification(
            SequenceClassifier(model, len(classes), mesh, compares=config.pair and model.architecture in RECURRENT),
            config,
            tokenizer,
            classes,
            loss,
        )
    if config.name == "tagging":
        loss = ClassificationLoss.from_config(config, classes, [tag for row in train_rows for tag in row["tags"]])
        return TokenClassification(
            TokenClassifier(model, len(classes), mesh), tokenizer, classes, loss, config.truncate
        )
    if config.name == "question_answering":
        return SpanExtraction(SpanExtractor(model, mesh), config, tokenizer)
    if config.name == "sequence_to_sequence":
        return SequenceToSequence(make_language_model(model, mesh), config, tokenizer)
    return Completion(make_language_model(model, mesh), config, tokenizer)


def classes_of(config: TaskConfig, train_rows: Sequence[Row]) -> tuple[str, ...]:
    """Names of the classes or tags: those of the config, else those of the training rows, sorted; none for other tasks.

    Raises:
      UserError: if there are fewer than two.
    """
    if config.name not in ("classification", "tagging"):
        return ()
    if config.classes:
        return tuple(config.classes)
    if config.name == "classification":
        found = {row["label"] for row in train_rows}
    else:
        found = {tag for row in train_rows for tag in row["tags"]}
    if len(found) < 2:
        raise UserError(f"the training rows have only the class {', '.join(found)}: a choice needs two")
    return tuple(sorted(found))


def texts_of(config: TaskConfig, rows: Sequence[Row]) -> list[str]:
    """The texts of rows, for training a tokenizer."""
    columns = {
        "classification": ("text", "pair") if config.pair else ("text",),
        "question_answering": ("context", "question"),
        "sequence_to_sequence": ("source", "target"),
        "completion": ("prompt", "completion"),
    }
    if config.name == "tagging":
        return [" ".join(row["words"]) for row in rows]
    return [row[name] for row in rows for name in columns[config.name]]
