"""Pairs of tiny texts, and what tasks that write texts are tested with."""

import jax
import numpy as np

from lm.data.config import TokenizerConfig
from lm.data.tokenizers import Tokenizer, train_tokenizer
from lm.models.build import make_language_model
from lm.modules.config import ModelConfig

LETTERS = "abcdef "
TOKENIZER: Tokenizer = train_tokenizer(TokenizerConfig(kind="characters"), lambda split: [LETTERS])
END = TOKENIZER.end_of_text
VOCAB = TOKENIZER.vocab_size
PADDED = VOCAB + 3  # the last ids pad the table
MAX_LENGTH = 16


def tiny_model(architecture, **values):
    """One layer, wide enough to learn to copy."""
    shape = {"vocab_size": PADDED, "layers": 1, "width": 32, "heads": 2, "max_length": MAX_LENGTH} | values
    return make_language_model(ModelConfig(architecture=architecture, **shape))


def random_params(task, seed=0, scale=0.3):
    """Weights large enough that distributions are far from uniform, and largest for the ids of padding."""
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    random = np.random.default_rng(seed)
    params = jax.tree.map(lambda leaf: random.normal(size=leaf.shape, scale=scale).astype(np.float32), shapes)
    params["token_embedding"]["embedding"][VOCAB:] *= 4
    return params


def make_batch(task, examples, lengths, filler=0):
    """The examples padded to these lengths of their axes, and rows that only fill the batch."""
    batch = {"row_weights": np.array([1] * len(examples) + [0] * filler, np.float32)}
    for name, first in examples[0].items():
        rows = [example[name] for example in examples] + [np.zeros_like(first)] * filler
        if name in task.axes:
            rows = [np.pad(row, (0, lengths[task.axes[name]] - row.size)) for row in rows]
        batch[name] = np.stack(rows)
    return batch


def unbatch(outputs, rows):
    """What `results` takes: the outputs of each of the first rows."""
    return [{name: np.asarray(value)[row] for name, value in outputs.items()} for row in range(rows)]
