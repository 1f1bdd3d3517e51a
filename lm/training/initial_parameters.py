"""Initial parameters that are not random: those of another run, or word vectors.

Axes: V vocabulary, D model width.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from lm.console import Console
from lm.data.tokenizers import Tokenizer
from lm.data.word_vectors import embedding_from_vectors
from lm.runs.config import FinetuneConfig, RunConfig
from lm.runs.trained_run import TrainedRun
from lm.runs.transfer import transfer, with_embedding
from lm.training.step import Task
from lm.types import Params


def params_of_source(config: RunConfig, task: Task, source: TrainedRun, console: Console) -> Params:
    """The parameters of the run in `config.init_from`, random where it has none; prints which are loaded.

    Raises:
      UserError: if they don't fit the task's model.
    """
    moved = transfer(_random_params(config, task), source.params, config.init_from)
    moved.print(console, f"{config.init_from}, step {source.step}")
    return moved.params


def params_with_word_vectors(
    config: FinetuneConfig, task: Task, tokenizer: Tokenizer, texts: Sequence[str], console: Console
) -> Params:
    """Random parameters with a token embedding from `config.word_vectors`; prints its coverage.

    Args:
      config: of the run, with its vocabulary size.
      task: what is learned.
      tokenizer: its tokens are looked up.
      texts: for training, to count tokens.
      console: to print on.

    Raises:
      UserError: if the vectors cannot be read or differ in width from the model.
    """
    counts_V = np.bincount(
        list(itertools.chain.from_iterable(tokenizer.encode_batch(texts))), minlength=config.model.size_of_vocabulary
    )
    table_VD, coverage = embedding_from_vectors(Path(config.word_vectors), tokenizer.vocabulary, counts_V, config.seed)
    params = with_embedding(_random_params(config, task), table_VD)
    console.print(f"word vectors: {coverage}")
    return params


def _random_params(config: RunConfig, task: Task) -> Params:
    return jax.jit(task.init)(jax.random.key(config.seed))
