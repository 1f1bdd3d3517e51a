"""Tokenizers: every kind is a `tokenizers.Tokenizer`, saved as the library's own tokenizer.json.

Bytes, characters, BPE and unigram are lossless: decoding restores the text. BPE (Sennrich et al. 2016) and unigram
(Kudo 2018) work on bytes (Radford et al. 2019), so they have no unknown text. WordPiece (Devlin et al. 2019) and whole
words are lossy and map unknown words to [UNK].
"""

import functools
import hashlib
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from lm.data.config import Split, TokenizerConfig
from lm.data.files import note
from lm.data.segmentation import count_words, segmenter, split_spaceless
from lm.errors import UserError
from lm.files import write_atomically

END_OF_TEXT = "<|endoftext|>"
UNKNOWN = "[UNK]"
# What other tokenizers call the token that ends a document, the likeliest first.
_END_OF_TEXT_NAMES = (END_OF_TEXT, "</s>", "<eos>", "<|end_of_text|>", "<|im_end|>", "[SEP]")

_MOST_IDS = 2**24
_LONGEST_WORD = 500  # of WordPiece, in characters
_LONGEST_PIECE = 1000  # in the training of BPE
_LONG_RUN = re.compile(rf"\S{{{_LONGEST_PIECE}}}|\s{{{_LONGEST_PIECE}}}")
_LONG_WORD = re.compile(rf"\w{{{_LONGEST_PIECE}}}")

DocumentsFactory = Callable[[Split], Iterable[str]]


class Tokenizer:
    """Text to token ids and back.

    Text never becomes a special token, even if it spells one, so text cannot end a document.

    Args:
      backend: a tokenizer of the tokenizers library. Its truncation and padding are switched off.
      end_of_text: whether to use its end-of-text token, if it has one.
      content: the tokenizer.json it was read from, if any. It is saved unchanged, because the library's parser rounds
        unigram scores.
    """

    def __init__(self, backend: Backend, end_of_text: bool = True, content: str | None = None):
        self._content = backend.to_str() if content is None else content
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True  # tokenizer.json does not store this setting
        self._backend = backend
        self._state = json.loads(self._content)
        self._special = _special_ids(backend)
        self._unknown = _unknown_id(self._state["model"], backend)
        # Where text is split at white space only, a word may look like a special token.
        self._never = set(self._special.values()) - {self._unknown}
        self._end_of_text = _find_end_of_text(self._special) if end_of_text else None

    @property
    def vocab_size(self) -> int:
        """Number of token ids, special tokens included."""
        # The ids of an external file may have gaps, and a model needs a row for the largest.
        return max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def end_of_text(self) -> int | None:
        """Id of the token that stands between documents, or None."""
        return self._end_of_text

    @property
    def required_end_of_text(self) -> int:
        """`end_of_text`, for what cannot do without.

        Raises:
          UserError: if there is none.
        """
        if self._end_of_text is None:
            raise UserError("this needs a tokenizer with an end-of-text token: set config.tokenizer.end_of_text=True")
        return self._end_of_text

    @functools.cached_property
    def vocabulary(self) -> dict[str, int]:
        """Ids by token, special tokens included; byte-level tokens are spelled in GPT-2's alphabet."""
        return self._backend.get_vocab(with_added_tokens=True)

    def special_id(self, name: str) -> int | None:
        """Id of a special token, or None. A plain token of that name does not count, because text could spell it."""
        return self._special.get(name)

    def with_special_tokens(self, names: Iterable[str]) -> "Tokenizer":
        """This tokenizer with these special tokens; missing ones get the ids after the last.

        Raises:
          UserError: if the library would assign an id that another token already has.
        """
        missing = [name for name in names if name not in self._special]
        if not missing:
            return self
        backend = Backend.from_str(self._content)
        backend.add_special_tokens(missing)
        ids = backend.get_vocab(with_added_tokens=True)
        if len(set(ids.values())) < len(ids):
            raise UserError(
                f"the tokenizer's ids have gaps, so {', '.join(missing)} cannot be added: use another tokenizer"
            )
        # Written into the original content, because the library's parser rounds unigram scores.
        state = self._state | {"added_tokens": json.loads(backend.to_str())["added_tokens"]}
        return Tokenizer(backend, self._end_of_text is not None, json.dumps(state, ensure_ascii=False))

    @functools.cached_property
    def digest(self) -> str:
        """Hash of the tokenizer's content."""
        content = f"{self._end_of_text} {self._content}"
        return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with no special tokens added."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, encoded on all cores.

        Raises:
          UserError: if a character tokenizer finds a character that is not in its vocabulary, or another has no token
            for unknown text.
        """
        try:
            encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        except Exception as error:  # the library raises a bare Exception
            raise UserError(f"the tokenizer cannot encode this text ({error}): use another tokenizer") from error
        return [self._checked(text, encoding.ids) for text, encoding in zip(texts, encodings, strict=True)]

    def unknown_share(self, texts: Sequence[str]) -> float:
        """The share of the texts' tokens that are the unknown token; 0 for tokenizers without one."""
        ids = [id_ for encoded in self.encode_batch(texts) for id_ in encoded]
        return ids.count(self._unknown) / len(ids) if ids and self._unknown is not None else 0.0

    def mostly_unknown(self, texts: Sequence[str]) -> str:
        """Such as "63% of the tokens are unknown", where it is more than half; else "". It looks at 1,000 texts."""
        unknown = self.unknown_share(texts[:1000])
        return f"{unknown:.0%} of the tokens are unknown" if unknown > 0.5 else ""

    def encode_words(self, words: Sequence[str]) -> tuple[list[int], list[int]]:
        """Token ids of a text that is given as words, each of which yields at least one token.

        A word without tokens becomes the unknown token. For byte-level tokenizers all words but the first begin with a
        space, as they do in text.

        Returns:
          The ids, and the index of the word that each belongs to.

        Raises:
          UserError: if a word yields nothing and the tokenizer has no unknown token.
        """
        spaced = [" " * (self._is_byte_level and i > 0) + word for i, word in enumerate(words)]
        ids, word_numbers = [], []
        for number, word_ids in enumerate(self.encode_batch(spaced)):
            if not word_ids:
                if self._unknown is None:
                    raise UserError(f"the word {words[number]!r} has no tokens: remove it from the text")
                word_ids = [self._unknown]
            ids += word_ids
            word_numbers += [number] * len(word_ids)
        return ids, word_numbers

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of a text and where each token is in the text.

        Returns:
          The ids, and for each the start and end (exclusive) of its characters, without surrounding white space. Tokens
          that are bytes of one character all span the whole character.
        """
        encoding = self._backend.encode(text, add_special_tokens=False)
        return self._checked(text, encoding.ids), [_without_blanks(text, *place) for place in encoding.offsets]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids. Invalid UTF-8, such as half a character, becomes U+FFFD."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)

    def save(self, path: str | os.PathLike):
        """Writes tokenizer.json atomically."""
        write_atomically(Path(path), self._content)

    @classmethod
    def load(cls, path: str | os.PathLike, end_of_text: bool = True) -> "Tokenizer":
        """Reads a tokenizer.json.

        Raises:
          UserError: if the file is missing or is not a tokenizer.
        """
        try:
            content = Path(path).read_bytes().decode()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read the tokenizer {path}: {error}") from error
        try:
            _check_ids(json.loads(content))
            backend = Backend.from_str(content)
            backend.encode("Aψ 1")  # which finds that an unknown token is missing
            return cls(backend, end_of_text, content)
        except Exception as error:  # the library raises a bare Exception
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"{path} is not a tokenizer.json of the tokenizers library: {reason}") from error

    @functools.cached_property
    def _is_characters(self) -> bool:
        return self._state.get("pre_tokenizer") is None and self._state["model"].get("merges") == []

    @functools.cached_property
    def _is_byte_level(self) -> bool:
        splitting = self._state.get("pre_tokenizer") or {}
        return any(part["type"] == "ByteLevel" for part in splitting.get("pretokenizers", [splitting]) if part)

    def _checked(self, text: str, ids: list[int]) -> list[int]:
        if self._is_characters:
            self._check_characters(text, ids)
        if self._unknown is None or self._never.isdisjoint(ids):
            return ids
        return [self._unknown if i in self._never else i for i in ids]

    def _check_characters(self, text: str, ids: list[int]):
        # The library drops unknown characters silently; counting is a cheap way to notice.
        if len(ids) != len(text):
            known = self._backend.get_vocab(with_added_tokens=False)
            unknown = next(character for character in text if character not in known)
            raise UserError(
                f"the character {unknown!r} (U+{ord(unknown):04X}) is not in the character tokenizer's vocabulary: "
                "use config.tokenizer.kind=bytes, or train on text that contains it"
            )


def train_tokenizer(config: TokenizerConfig, documents: DocumentsFactory | Iterable[str]) -> Tokenizer:
    """Trains or reads the tokenizer that a config describes.

    Training BPE twice on the same documents gives the same merges. WordPiece and unigram training in the tokenizers
    library depends on the order of its hash tables (huggingface/tokenizers issue 1794), so their vocabularies may
    differ slightly between trainings: keep the tokenizer.json, as every work directory does.

    Args:
      config: which tokenizer.
      documents: yields the documents of "train" or "validation" each time it is called, or the training documents
        themselves. Subwords are learned from training only; `characters` takes its vocabulary from both, so that
        nothing is unknown.

    Raises:
      UserError: if kind is `file` and the file cannot be read.
    """
    if not callable(documents):
        texts = documents
        documents = lambda split: texts if split == "train" else ()  # noqa: E731
    if config.kind == "file" and config.path is not None:  # the config has checked this
        return Tokenizer.load(config.path, config.end_of_text)
    backend = _KINDS[config.kind](config, documents)
    if config.end_of_text:
        backend.add_special_tokens([END_OF_TEXT])
    return Tokenizer(backend, config.end_of_text)


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


_KINDS: dict[str, Callable[[TokenizerConfig, DocumentsFactory], Backend]] = {
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


def _special_ids(backend: Backend) -> dict[str, int]:
    # Only tokens marked as special: text could spell the others.
    return {token.content: i for i, token in backend.get_added_tokens_decoder().items() if token.special}


def _find_end_of_text(special: dict[str, int]) -> int | None:
    return next((special[name] for name in _END_OF_TEXT_NAMES if name in special), None)


def _check_ids(state: dict) -> None:
    """Checks that a tokenizer.json numbers its tokens with different numbers of a plausible size."""
    vocabulary = state["model"]["vocab"]
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else [len(vocabulary) - 1]
    added = [token["id"] for token in state.get("added_tokens") or ()]
    if not ids or not all(type(i) is int and 0 <= i < _MOST_IDS for i in ids + added):
        raise ValueError(f"its ids must be integers in [0, {_MOST_IDS:,})")
    if len(set(ids)) < len(ids):
        raise ValueError("two of its tokens have one id")


def _unknown_id(model: dict, backend: Backend) -> int | None:
    """Id of the unknown token of a model in tokenizer.json: most kinds give its name, unigram its number."""
    if model.get("unk_token") is not None:
        return backend.token_to_id(model["unk_token"])
    return model.get("unk_id")


def _without_blanks(text: str, start: int, end: int) -> tuple[int, int]:
    piece = text[start:end]
    start = end - len(piece.lstrip()) if piece.strip() else start
    return start, start + len(piece.strip())
