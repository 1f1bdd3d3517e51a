"""The corpus of a config: text that is tokenized here and cached, shards that were made before, or a mixture."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from lm.data.config import DataConfig, TokenizerConfig
from lm.data.mixtures import SCHEME as MIXTURE
from lm.data.mixtures import Mixture, parse_mixture
from lm.data.shards import Shards
from lm.data.store import Corpus, build_corpus
from lm.data.tokenizers import Tokenizer
from lm.errors import UserError
from lm.files import cache_directory

SHARDS = "shards:"


def open_corpus(
    data: DataConfig,
    tokenizer: TokenizerConfig,
    kept: Tokenizer | None = None,
    special_tokens: Sequence[str] = (),
) -> Corpus:
    """Opens the corpus that the configs describe, building what is not in the cache yet.

    Args:
      data: what to read. The first source of a mixture gives the validation split and, unless one is kept, the
        tokenizer.
      tokenizer: the tokenizer to train; shards bring their own.
      kept: a tokenizer to use instead, such as that of a work directory.
      special_tokens: tokens that the tokenizer needs in addition to its end-of-text token; missing ones are added.

    Raises:
      UserError: if a source cannot be read, a split is empty, shards were made with another tokenizer, or the cache
        cannot be written.
    """
    if data.source.startswith(MIXTURE):
        return _mixed(data, tokenizer, kept, special_tokens)
    if data.source.startswith(SHARDS):
        return _sharded(data, kept, special_tokens)
    return build_corpus(data, tokenizer, kept, special_tokens)


def _mixed(
    data: DataConfig, tokenizer: TokenizerConfig, kept: Tokenizer | None, special_tokens: Sequence[str]
) -> Corpus:
    sources, weights = parse_mixture(data.source)
    configs = [dataclasses.replace(data, source=source) for source in sources]
    first = open_corpus(configs[0], tokenizer, kept, special_tokens)
    others = [open_corpus(config, tokenizer, first.tokenizer, special_tokens) for config in configs[1:]]
    train = Mixture((first.train, *(other.train for other in others)), weights)
    return Corpus(first.tokenizer, train, first.validation)


def _sharded(data: DataConfig, kept: Tokenizer | None, special_tokens: Sequence[str]) -> Corpus:
    if data.validation_source is not None:
        raise UserError(
            f"config.data.validation_source={data.validation_source}: {data.source} has a validation split: set "
            "it to None"
        )
    cache = Path(data.cache_dir).expanduser() if data.cache_dir else cache_directory()
    folder = data.source.removeprefix(SHARDS)
    shards = Shards.open(folder, cache)
    made = shards.tokenizer.with_special_tokens(special_tokens)  # they come after the ids in the shards
    if kept is not None and kept.with_special_tokens(special_tokens).digest != made.digest:
        raise UserError(
            f"config.data.source={data.source} was made with another tokenizer than the one in use: tokenize it anew "
            "with config.tokenizer.kind=file and config.tokenizer.path naming that one's tokenizer.json"
        )
    return Corpus(made, shards.train, shards.validation)
