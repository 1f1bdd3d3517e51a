"""Tokenizers: every kind is a `tokenizers.Tokenizer`, saved as the library's own tokenizer.json.

Bytes, characters, BPE and unigram are lossless: decoding gives back the text. BPE (Sennrich et al. 2016) and unigram
(Kudo 2018) work on bytes (Radford et al. 2019), so no text is unknown to them. WordPiece (Devlin et al. 2019) is not
lossless and maps words it cannot spell to [UNK].
"""

import functools
import hashlib
import json
import os
import sys
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from lm.data.config import TokenizerConfig
from lm.errors import UserError

END_OF_TEXT = "<|endoftext|>"
# Names under which other tokenizers keep the token that ends a document, the likeliest first.
_END_OF_TEXT_NAMES = (END_OF_TEXT, "</s>", "<eos>", "<|end_of_text|>", "<|im_end|>", "[SEP]")

DocumentsFactory = Callable[[str], Iterable[str]]


class Tokenizer:
    """Text to token ids and back.

    Text never becomes a special token, not even text that spells one: a document cannot end another.

    Args:
      backend: a tokenizer of the tokenizers library. Its truncation and padding are switched off.
      end_of_text: whether to use its end-of-text token, if it has one.
      content: the tokenizer.json it was read from, if any: it is saved as it was, since the library's parser rounds the
        scores of unigram and would write others.
    """

    def __init__(self, backend: Backend, end_of_text: bool = True, content: str | None = None):
        self._content = backend.to_str() if content is None else content
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True  # tokenizer.json does not hold this setting
        self._backend = backend
        self._end_of_text = _find_end_of_text(backend) if end_of_text else None

    @property
    def vocab_size(self) -> int:
        """Number of token ids, special tokens included."""
        # Ids of a foreign file may have gaps, and a model needs a row for the largest.
        return max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def end_of_text(self) -> int | None:
        """Id of the token that stands between documents, or None."""
        return self._end_of_text

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
          UserError: if a character tokenizer meets a character that is not in its vocabulary.
        """
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        ids = [encoding.ids for encoding in encodings]
        if self._is_characters:
            for text, text_ids in zip(texts, ids, strict=True):
                self._check_characters(text, text_ids)
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids. Bytes that are not UTF-8, as half a character, become U+FFFD."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)

    def save(self, path: str | os.PathLike):
        """Writes tokenizer.json: whole, or not at all."""
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            temporary.write_bytes(self._content.encode())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

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
            return cls(Backend.from_str(content), end_of_text, content)
        except Exception as error:  # the library raises a bare Exception
            raise UserError(f"{path} is not a tokenizer.json of the tokenizers library: {error}") from error

    @functools.cached_property
    def _is_characters(self) -> bool:
        state = json.loads(self._content)
        return state.get("pre_tokenizer") is None and state["model"].get("merges") == []

    def _check_characters(self, text: str, ids: list[int]):
        # The library drops unknown characters silently; counting is the cheap way to notice.
        if len(ids) != len(text):
            known = self._backend.get_vocab(with_added_tokens=False)
            unknown = next(character for character in text if character not in known)
            raise UserError(
                f"the character {unknown!r} (U+{ord(unknown):04X}) is not in the character tokenizer's vocabulary: "
                "use config.tokenizer.kind=bytes, or train on text that has it"
            )


def train_tokenizer(config: TokenizerConfig, documents: DocumentsFactory) -> Tokenizer:
    """Makes the tokenizer that a config asks for.

    Training BPE twice on the same documents gives the same merges. WordPiece and unigram training in the tokenizers
    library depends on the order of its hash tables (huggingface/tokenizers issue 1794), so their vocabularies may
    differ a little from one training to the next: keep the tokenizer.json, as every work directory does.

    Args:
      config: what to make.
      documents: gives the documents of "train" or "validation", anew at each call. Subwords are learned from training
        only; `characters` takes its vocabulary from both, so that nothing is unknown.

    Raises:
      UserError: if kind is `file` and the file cannot be read.
    """
    if config.kind == "file":
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
    for split in ("train", "validation"):
        for document in documents(split):
            characters.update(document)
    vocabulary = {character: i for i, character in enumerate(sorted(characters))}
    # BPE without merges takes each character for itself, five times faster than splitting into words of one.
    backend = Backend(models.BPE(vocab=vocabulary, merges=[]))
    backend.decoder = decoders.Fuse()
    return backend


def _bpe(config: TokenizerConfig, documents: DocumentsFactory) -> Backend:
    backend = _byte_level(models.BPE())
    settings = {"initial_alphabet": _byte_alphabet(), "special_tokens": _special_tokens(config)}
    trainer = trainers.BpeTrainer(vocab_size=config.vocab_size, show_progress=sys.stderr.isatty(), **settings)
    backend.train_from_iterator(documents("train"), trainer)
    return backend


def _unigram(config: TokenizerConfig, documents: DocumentsFactory) -> Backend:
    backend = _byte_level(models.Unigram())
    settings = {"initial_alphabet": _byte_alphabet(), "special_tokens": _special_tokens(config)}
    trainer = trainers.UnigramTrainer(vocab_size=config.vocab_size, show_progress=sys.stderr.isatty(), **settings)
    backend.train_from_iterator(documents("train"), trainer)
    return backend


def _wordpiece(config: TokenizerConfig, documents: DocumentsFactory) -> Backend:
    backend = Backend(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=False)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=config.vocab_size,
        special_tokens=["[UNK]", *_special_tokens(config)],
        limit_alphabet=min(1000, config.vocab_size // 4),  # each character counts twice, with and without ##
        show_progress=sys.stderr.isatty(),
    )
    backend.train_from_iterator(documents("train"), trainer)
    return backend


_KINDS: dict[str, Callable[[TokenizerConfig, DocumentsFactory], Backend]] = {
    "bytes": _bytes,
    "characters": _characters,
    "bpe": _bpe,
    "unigram": _unigram,
    "wordpiece": _wordpiece,
}


def _byte_level(model: models.Model, use_regex: bool = True) -> Backend:
    backend = Backend(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    backend.decoder = decoders.ByteLevel()
    return backend


def _byte_alphabet() -> list[str]:
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _special_tokens(config: TokenizerConfig) -> list[str]:
    return [END_OF_TEXT] if config.end_of_text else []


def _find_end_of_text(backend: Backend) -> int | None:
    # Only a token that is marked special will do: any other, text could spell.
    special = {token.content: i for i, token in backend.get_added_tokens_decoder().items() if token.special}
    return next((special[name] for name in _END_OF_TEXT_NAMES if name in special), None)
