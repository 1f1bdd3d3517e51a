"""Text to token ids to batches, where every batch is a pure function of (seed, step).

`sources` reads documents, `cleaning` cleans them, `tokenizers` turns them into ids, `store` keeps the ids in a
memory-mapped file, `windows` cuts that file into batches. Of larger texts `sharding` makes `shards`;
`corpora` opens them all.
"""

from lm.data.config import DataConfig, TokenizerConfig
from lm.data.store import Corpus, TokenStore, build_corpus
from lm.data.tokenizers import Tokenizer
from lm.data.windows import TrainBatches, ValidationBatches, prefetch, window

__all__ = [
    "Corpus",
    "DataConfig",
    "TokenStore",
    "Tokenizer",
    "TokenizerConfig",
    "TrainBatches",
    "ValidationBatches",
    "build_corpus",
    "prefetch",
    "window",
]
