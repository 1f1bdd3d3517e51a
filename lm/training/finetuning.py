"""Learning from rows, as a problem for the training loop."""

import dataclasses

from lm.data.example_batches import TrainExampleBatches
from lm.data.rows import Splits
from lm.runs.config import FinetuneConfig
from lm.runs.data_record import Fingerprint
from lm.tasks.supervised import Encoded, SupervisedTask
from lm.training.partitioning import Partitioner
from lm.training.problem import Problem
from lm.training.supervised_evaluation import (
    describe,
    make_supervised_validation,
    rehearsed_results,
    validation_metrics,
)
from lm.types import Params


def make_train_batches(
    config: FinetuneConfig, task: SupervisedTask, train: Encoded, part: tuple[int, int] = (0, 1)
) -> TrainExampleBatches:
    """This host's batches of the training rows.

    Args:
      config: of the run.
      task: of the config.
      train: the training rows as arrays.
      part: which part of each batch this host provides, and the number of parts.

    Raises:
      UserError: if there are no rows, or the hosts don't divide the batch.
    """
    return TrainExampleBatches(
        train.examples,
        task.axes,
        task.padding,
        config.training.batch_size,
        config.seed,
        config.lengths,
        *part,
    )


def with_steps(config: FinetuneConfig, steps_per_epoch: int) -> FinetuneConfig:
    """The config with epochs turned into steps."""
    if not config.epochs:
        return config
    training = dataclasses.replace(
        config.training,
        steps=config.epochs * steps_per_epoch,
        evaluate_every=steps_per_epoch,
        checkpoint_every=steps_per_epoch,
    )
    return dataclasses.replace(config, training=training)


def row_fingerprints(splits: Splits) -> dict[str, Fingerprint]:
    """What a run on these rows must find again when it resumes."""
    named = {"training": splits.train, "validation": splits.validation, "test": splits.test}
    return {name: Fingerprint.of_rows(rows) for name, rows in named.items() if rows}


def finetuning_problem(
    config: FinetuneConfig,
    task: SupervisedTask,
    batches: TrainExampleBatches,
    splits: Splits,
    validation: Encoded,
    partitioner: Partitioner,
    initial_params: Params | None = None,
) -> Problem:
    """The problem that a config describes.

    Args:
      config: its vocabulary size known.
      task: of the config.
      batches: from `make_train_batches`.
      splits: the rows.
      validation: the validation rows as arrays.
      partitioner: of the devices.
      initial_params: to begin with, or None for random ones.
    """
    rows = config.training.evaluation_batch_size or config.training.batch_size
    validate = make_supervised_validation(
        task, splits.validation, validation.examples, rows, config.lengths, partitioner
    )
    return Problem(
        task,
        batches,
        lambda state: validation_metrics(validate(state)),
        validation_metrics(rehearsed_results(task, splits.validation[:1], rows, config.lengths)),
        describe,
        unit=task.unit,
        initial_params=initial_params,
    )
