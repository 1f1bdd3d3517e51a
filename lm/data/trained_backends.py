"""Tokenizers of the `tokenizers` library, one function per kind, trained on documents.

BPE (Sennrich et al. 2016) and unigram (Kudo 2018) work on bytes (Radford et al. 2019), so they have no unknown text.
WordPiece (Devlin et al. 2019) and whole words map unknown words to [UNK].
"""

import itertools
import re
import sys
from collections.abc import Callable, Iterable, Iterator

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from lm.data.config import Split, TokenizerConfig
from lm.data.files import note
from lm.data.segmentation import count_words, segmenter, split_spaceless
from lm.data.special_tokens import END_OF_TEXT, UNKNOWN

_LONGEST_WORD = 500  # of WordPiece, in characters
_LONGEST_PIECE = 1000  # in the training of BPE
_LONG_RUN = re.compile(rf"\S{{{_LONGEST_PIECE}}}|\s{{{_LONGEST_PIECE}}}")
_LONG_WORD = re.compile(rf"\w{{{_LONGEST_PIECE}}}")

DocumentsFactory = Callable[[Split], Iterable[str]]


def _bytes(config: TokenizerConfig, documents: DocumentsFactory) -> Backend:
    vocabulary = {character: i for i, character in enumerate(_byte_alphabet())}
    return _byte_level(models.BPE(vocab=vocabulary, merges=[]), use_regex=False)


def _characters(config: TokenizerConfig, documents: DocumentsFactory) -> Backend:
    characters: set[str] = set()
    for document in itertools.chain(documents("train"), documents("validation")):
        characters.update(document)
    vocabulary = {character: i for i, character in enumerate(sorted(characters))}
    # BPE without merges treats each character separately, five times faster than splitting into one-letter words.
    backend = Backend(models.BPE(vocab=vocabulary, merges=[]))
    backend.decoder = decoders.Fuse()
    return backend


def _bpe(config: TokenizerConfig, documents: DocumentsFactory) -> Backend:
    backend = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        show_progress=sys.stderr.isatty(),
        initial_alphabet=_byte_alphabet(),
        special_tokens=_special_tokens(config),
    )
    backend.train_from_iterator(_in_short_pieces(documents("train")), trainer)
    return backend


def _in_short_pieces(documents: Iterable[str]) -> Iterator[str]:
    """Documents, with breaks in long runs of characters that are not spaces, or of spaces.

    Training takes time quadratic in their length, and cannot be interrupted.
    """
    for document in documents:
        if not _LONG_RUN.search(document):
            yield document
            continue
        if found := _LONG_WORD.search(document):
            note(
                f"a word of more than {_LONGEST_PIECE:,} letters, {found[0][:20]}..., is cut for training the "
                "tokenizer: for text that is not in words use config.tokenizer.kind=bytes"
            )
        ends = [match.end() for match in _LONG_RUN.finditer(document)]
        yield from (document[start:end] for start, end in itertools.pairwise([0, *ends, len(document)]) if start < end)


def _unigram(config: TokenizerConfig, documents: DocumentsFactory) -> Backend:
    backend = _byte_level(models.Unigram())
    settings = {"initial_alphabet": _byte_alphabet(), "special_tokens": _special_tokens(config)}
    trainer = trainers.UnigramTrainer(vocab_size=config.vocab_size, show_progress=sys.stderr.isatty(), **settings)
    backend.train_from_iterator(documents("train"), trainer)
    return backend


def _wordpiece(config: TokenizerConfig, documents: DocumentsFactory) -> Backend:
    # The model is quadratic in the length of a word, and longer words than this are unknown to it, so they are cut.
    backend = _word_level(models.WordPiece(unk_token=UNKNOWN, max_input_chars_per_word=_LONGEST_WORD), config)
    cut = pre_tokenizers.Split(Regex(f".{{{_LONGEST_WORD}}}"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([backend.pre_tokenizer, cut])
    backend.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=config.vocab_size,
        special_tokens=[UNKNOWN, *_special_tokens(config)],
        limit_alphabet=min(1000, config.vocab_size // 4),  # each character counts twice, with and without ##
        show_progress=sys.stderr.isatty(),
    )
    backend.train_from_iterator(documents("train"), trainer)
    return backend


def _words(config: TokenizerConfig, documents: DocumentsFactory) -> Backend:
    if config.segmentation:
        return _segmented_words(config, documents)
    backend = _word_level(models.WordLevel(unk_token=UNKNOWN), config)
    special_tokens = [UNKNOWN, *_special_tokens(config)]
    trainer = trainers.WordLevelTrainer(
        vocab_size=config.vocab_size, special_tokens=special_tokens, show_progress=sys.stderr.isatty()
    )
    backend.train_from_iterator(documents("train"), trainer)
    return backend


def _segmented_words(config: TokenizerConfig, documents: DocumentsFactory) -> Backend:
    """Words as a unigram model, which finds the likeliest words of text without spaces (Kudo 2018)."""
    segment = segmenter(config.segmentation)
    backend = _word_level(models.Unigram(), config, split_characters=False)

    def words() -> Iterator[str]:
        for document in documents("train"):
            for part, _ in backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(document)):
                yield from split_spaceless(part, segment)

    special_tokens = [UNKNOWN, *_special_tokens(config)]
    vocabulary = [(token, 0.0) for token in special_tokens]
    known = [pair for pair in count_words(words(), config.vocab_size) if pair[0] not in special_tokens]
    backend.model = models.Unigram(vocabulary + known[: config.vocab_size - len(vocabulary)], unk_id=0)
    backend.add_special_tokens(special_tokens)
    return backend


KINDS: dict[str, Callable[[TokenizerConfig, DocumentsFactory], Backend]] = {
    "bytes": _bytes,
    "characters": _characters,
    "bpe": _bpe,
    "unigram": _unigram,
    "wordpiece": _wordpiece,
    "words": _words,
}


def _byte_level(model: models.Model, use_regex: bool = True) -> Backend:
    backend = Backend(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    backend.decoder = decoders.ByteLevel()
    return backend


def _word_level(model: models.Model, config: TokenizerConfig, split_characters: bool = True) -> Backend:
    backend = Backend(model)
    split = config.split_punctuation
    backend.normalizer = normalizers.BertNormalizer(
        lowercase=config.lowercase, strip_accents=False, handle_chinese_chars=split and split_characters
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer() if split else pre_tokenizers.WhitespaceSplit()
    return backend


def _byte_alphabet() -> list[str]:
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _special_tokens(config: TokenizerConfig) -> list[str]:
    return [END_OF_TEXT] if config.end_of_text else []
