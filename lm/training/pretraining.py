"""Learning from text, as a problem for the training loop."""

import dataclasses

from lm.data.corpora import open_corpus
from lm.data.store import Corpus
from lm.data.tokenizers import Tokenizer
from lm.data.windows import MixedBatches
from lm.models.accounting import training_flops_per_token
from lm.objectives.objective import PretrainingTask
from lm.runs.config import PretrainConfig
from lm.runs.data_record import Fingerprint
from lm.training.evaluation import describe, make_validation, rehearsed_metrics
from lm.training.partitioning import Partitioner
from lm.training.problem import Problem
from lm.types import Batches, Params


def pretraining_problem(
    config: PretrainConfig,
    task: PretrainingTask,
    corpus: Corpus,
    partitioner: Partitioner,
    initial_params: Params | None = None,
    mixed: Corpus | None = None,
) -> Problem:
    """The problem that a config describes.

    Args:
      config: its vocabulary size known.
      task: of the config.
      corpus: of the config.
      partitioner: of the devices.
      initial_params: to begin with, or None for random ones.
      mixed: from `mixed_corpus`.

    Raises:
      UserError: if there is too little text.
    """
    rows = config.training.evaluation_batch_size or config.training.batch_size
    batches = task.validation_batches(corpus, rows, *partitioner.part_of_batch)
    num_bytes = corpus.validation.num_bytes if task.counts_bytes else None
    # Where validation counts only a part of the bytes, so does training: a batch's weight is less than its tokens.
    flops = training_flops_per_token(config.model, config.model.size_of_sequence) if task.counts_bytes else None
    return Problem(
        task,
        _train_batches(config, task, corpus, mixed, partitioner.part_of_batch),
        make_validation(task, batches, num_bytes, partitioner),
        rehearsed_metrics(task, batches, num_bytes, partitioner),
        describe,
        flops_per_unit=flops,
        initial_params=initial_params,
    )


def mixed_corpus(config: PretrainConfig, tokenizer: Tokenizer) -> Corpus | None:
    """The text to mix into the training text, or None if the config names none.

    Raises:
      UserError: if it cannot be read.
    """
    data = config.data
    if data.mixed_source is None:
        return None
    other = dataclasses.replace(
        data, source=data.mixed_source, validation_source=data.mixed_source, mixed_source=None, mixed_share=0.0
    )
    return open_corpus(other, config.tokenizer, tokenizer)


def text_fingerprints(corpus: Corpus, mixed: Corpus | None) -> dict[str, Fingerprint]:
    """What a run on this text must find again when it resumes."""
    stores = {"training": corpus.train, "validation": corpus.validation}
    if mixed is not None:
        stores["mixed"] = mixed.train
    return {name: Fingerprint.of_text(store) for name, store in stores.items()}


def _train_batches(
    config: PretrainConfig, task: PretrainingTask, corpus: Corpus, mixed: Corpus | None, part: tuple[int, int]
) -> Batches:
    """This host's batches of the training text, and of the text mixed into it."""

    def batches_of(corpus: Corpus) -> Batches:
        size, offsets = config.training.batch_size, config.data.random_offsets
        return task.train_batches(corpus, size, config.seed, offsets, *part)

    if mixed is None:
        return batches_of(corpus)
    return MixedBatches(batches_of(corpus), batches_of(mixed), config.data.mixed_share)
