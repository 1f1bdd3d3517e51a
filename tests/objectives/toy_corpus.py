"""A small corpus, made in a moment, and stores whose tokens tell their place, for tests of pretraining objectives."""

import functools
import itertools

import numpy as np

from lm.data.config import TokenizerConfig
from lm.data.store import Corpus, TokenStore
from lm.data.tokenizers import Tokenizer, train_tokenizer
from lm.models.build import make_language_model
from lm.modules.config import ModelConfig
from lm.objectives.objective import ObjectiveConfig
from lm.objectives.registry import OBJECTIVES, make_task, special_tokens

WORDS = [
    "the",
    "model",
    "knows",
    "what",
    "it",
    "says",
    ",",
    "calibrated",
    "probability",
    "that",
    "we",
    "measured",
    "is",
]


@functools.cache
def documents() -> tuple[str, ...]:
    random = np.random.default_rng(0)
    sentences = [" ".join(random.choice(WORDS, size=random.integers(3, 12))) + "." for _ in range(400)]
    cuts = np.sort(random.choice(np.arange(1, 400), size=39, replace=False))
    return tuple(" ".join(part) for part in np.split(np.array(sentences), cuts))


@functools.cache
def tokenizer_for(objective: ObjectiveConfig) -> Tokenizer:
    plain = train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=300), lambda split: documents())
    return plain.with_special_tokens(special_tokens(objective))


@functools.cache
def corpus_for(objective: ObjectiveConfig) -> Corpus:
    """Three quarters of the documents to train on and the rest to validate on."""
    tokenizer = tokenizer_for(objective)
    encoded = tokenizer.encode_batch(documents())
    splits = [store_of(part, tokenizer.end_of_text) for part in (encoded[:30], encoded[30:])]
    return Corpus(tokenizer, *splits)


def store_of(texts: list[list[int]], end: int | None) -> TokenStore:
    prefix = [] if end is None else [end]
    stream, starts = [], []
    for text in texts:
        starts.append(len(stream))
        stream += [*prefix, *text]
    return TokenStore(np.array(stream + prefix, np.uint16), np.array(starts, np.int64), len(stream), end)


def counting_store(lengths: list[int], end: int | None) -> TokenStore:
    """Documents of the numbers 1000, 1001, ...: a token tells its place in the corpus."""
    borders = 1000 + np.cumsum([0, *lengths])
    return store_of([list(range(*pair)) for pair in itertools.pairwise(borders)], end)


def toy_model(objective: ObjectiveConfig, length: int = 32, **values):
    architecture = OBJECTIVES[objective.name].architecture
    config = ModelConfig(
        architecture=architecture,
        vocab_size=tokenizer_for(objective).vocab_size,
        layers=1,
        width=16,
        heads=2,
        max_length=length,
        segment_types=2 if architecture == "encoder" else 0,
        **values,
    )
    return make_language_model(config)


def toy_task(objective: ObjectiveConfig, length: int = 32):
    return make_task(objective, toy_model(objective, length).config, tokenizer_for(objective))
