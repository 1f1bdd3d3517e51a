"""Tokenizers: every kind is a `tokenizers.Tokenizer`, saved as the library's own tokenizer.json.

Bytes, characters, BPE and unigram are lossless: decoding restores the text. BPE (Sennrich et al. 2016) and unigram
(Kudo 2018) work on bytes (Radford et al. 2019), so they have no unknown text. WordPiece (Devlin et al. 2019) and whole
words are lossy and map unknown words to [UNK].
"""

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from lm.data.config import TokenizerConfig
from lm.data.control_tokens import ControlTokens
from lm.data.frames import Frame, frame_of, with_bos_and_eos
from lm.data.special_tokens import ALIASES, END_OF_TEXT, SpecialTokens
from lm.data.trained_backends import KINDS, DocumentsFactory
from lm.errors import UserError
from lm.files import read_json, read_text, write_atomically, write_json

# What other tokenizers call the token that ends a document, the likeliest first.
_END_OF_TEXT_NAMES = (END_OF_TEXT, "</s>", "<eos>", "<|end_of_text|>", "<|im_end|>", "[SEP]")

_MOST_IDS = 2**24
_FILE, _SPECIAL_FILE = "tokenizer.json", "tokenizer_config.json"


class Tokenizer:
    """Text to token ids and back.

    Text never becomes a special token, even if it spells one, so text cannot end a document.

    Args:
      backend: a tokenizer of the tokenizers library. Its truncation and padding are switched off.
      end_of_text: whether to use its end-of-text token, if it has one.
      content: the tokenizer.json it was read from, if any. It is saved unchanged, because the library's parser rounds
        unigram scores.
      published: what a published tokenizer says of its special tokens; None for one of our own.

    Raises:
      UserError: if `published` names a token that the tokenizer does not have.
    """

    def __init__(
        self,
        backend: Backend,
        end_of_text: bool = True,
        content: str | None = None,
        published: SpecialTokens | None = None,
    ):
        self._content = backend.to_str() if content is None else content
        self.published = published
        if published is not None:
            self._content = _with_marked(backend, self._content, published)
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True  # tokenizer.json does not store this setting
        self._backend = backend
        self._state = json.loads(self._content)
        self._special = _special_ids(backend)
        self._unknown = _unknown_id(self._state["model"], backend)
        # Where text is split at white space only, a word may look like a special token.
        self._never = set(self._special.values()) - {self._unknown}
        self._end_of_text = self._find_end_of_text() if end_of_text else None

    @property
    def content(self) -> str:
        """The text of its tokenizer.json."""
        return self._content

    @property
    def vocab_size(self) -> int:
        """Number of token ids, special tokens included."""
        # The ids of an external file may have gaps, and a model needs a row for the largest.
        return max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    @functools.cached_property
    def is_byte_level(self) -> bool:
        """Whether its tokens are spelled in GPT-2's alphabet of bytes."""
        splitting = self._state.get("pre_tokenizer") or {}
        return any(part["type"] == "ByteLevel" for part in splitting.get("pretokenizers", [splitting]) if part)

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

    @property
    def special_names(self) -> tuple[str, ...]:
        """All special tokens."""
        return tuple(self._special)

    @property
    def ends(self) -> tuple[int, ...]:
        """Ids at which generation ends, `end_of_text` first."""
        tokens = () if self.published is None else self.published.end_tokens
        ends = [self._end_of_text, *(self._special[token] for token in tokens)]
        return tuple(dict.fromkeys(id_ for id_ in ends if id_ is not None))

    @property
    def start_of_output(self) -> int | None:
        """Id that an encoder-decoder's output starts after, or None."""
        token = None if self.published is None else self.published.start_of_output_token
        return self._end_of_text if token is None else self._special[token]

    def role_id(self, role: str) -> int | None:
        """Id of the token that a published tokenizer gives one of `ROLES`, such as "pad", or None."""
        token = None if self.published is None else self.published.roles.get(role)
        return None if token is None else self._special[token]

    @functools.cached_property
    def frame(self) -> Frame | None:
        """The special tokens that a published tokenizer puts around texts; None for one of our own."""
        if self.published is None:
            return None
        return with_bos_and_eos(
            frame_of(self._backend),
            self.role_id("bos") if self.published.add_bos else None,
            self.role_id("eos") if self.published.add_eos else None,
        )

    def with_start(self, ids: Sequence[int]) -> list[int]:
        """A text as a decoder reads it: after the end-of-text token, or after what a published tokenizer puts there.

        Empty only for an empty text and a tokenizer without any token that could stand for it.
        """
        if self.frame is None:
            return [*self._end_of_text_ids, *ids]
        bos = self.role_id("bos")
        return [*self.frame.before, *ids] or (self._end_of_text_ids if bos is None else [bos])

    def with_frame(self, ids: Sequence[int]) -> list[int]:
        """A text as an encoder reads it for a decoder: before the end-of-text token, or in a published frame."""
        return [*ids, *self._end_of_text_ids] if self.frame is None else self.frame.around([*ids])

    @functools.cached_property
    def control_tokens(self) -> ControlTokens:
        """How to encode text in which some special tokens are meant."""
        return ControlTokens(self._state, self._special)

    @functools.cached_property
    def vocabulary(self) -> dict[str, int]:
        """Ids by token, special tokens included; byte-level tokens are spelled in GPT-2's alphabet."""
        return self._backend.get_vocab(with_added_tokens=True)

    def special_id(self, name: str) -> int | None:
        """Id of a special token, or None. A plain token of that name does not count, because text could spell it.

        In a published tokenizer the tokens with these roles answer to our names [CLS], [SEP] and [MASK] too.
        """
        roles = ALIASES.get(name, ()) if name not in self._special else ()
        ids = [id_ for role in roles if (id_ := self.role_id(role)) is not None]
        return ids[0] if ids else self._special.get(name)

    def with_special_tokens(self, names: Iterable[str]) -> "Tokenizer":
        """This tokenizer with these special tokens; missing ones get the ids after the last.

        Raises:
          UserError: if the library would assign an id that another token already has.
        """
        missing = [name for name in names if self.special_id(name) is None]
        if not missing:
            return self
        backend = Backend.from_str(self._content)
        backend.add_special_tokens(missing)
        ids = backend.get_vocab(with_added_tokens=True)
        if len(set(ids.values())) < len(ids):
            raise UserError(
                f"the tokenizer's ids have gaps, so {', '.join(missing)} cannot be added: use another tokenizer"
            )
        content = _with_added_tokens(self._content, backend)
        return Tokenizer(backend, self._end_of_text is not None, content, self.published)

    def with_published(self, published: SpecialTokens) -> "Tokenizer":
        """This tokenizer, which is not used after this, with what its publisher says of its special tokens.

        Raises:
          UserError: if that names a token that the tokenizer does not have.
        """
        return Tokenizer(self._backend, content=self._content, published=published)

    @functools.cached_property
    def digest(self) -> str:
        """Hash of the tokenizer's content."""
        content = f"{self._end_of_text} {self._content}"
        if self.published is not None:
            content = f"{json.dumps(self.published.to_json(), sort_keys=True)} {content}"
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
        spaced = [" " * (self.is_byte_level and i > 0) + word for i, word in enumerate(words)]
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
        """Writes tokenizer.json and, for a published tokenizer, tokenizer_config.json beside it, each atomically.

        Args:
          path: of tokenizer.json, or of the folder for it.
        """
        path = _file(path)
        # tokenizer.json comes last: where it is, the tokenizer is complete.
        if self.published is None:
            path.with_name(_SPECIAL_FILE).unlink(missing_ok=True)
        else:
            write_json(path.with_name(_SPECIAL_FILE), self.published.to_json())
        write_atomically(path, self._content)

    @classmethod
    def load(cls, path: str | os.PathLike, end_of_text: bool = True) -> "Tokenizer":
        """Reads a tokenizer.json and, if it is there, the tokenizer_config.json beside it.

        Args:
          path: of tokenizer.json, or of the folder with it.
          end_of_text: whether to use its end-of-text token, if it has one.

        Raises:
          UserError: if a file is missing or is not a tokenizer.
        """
        path = _file(path)
        beside = path.with_name(_SPECIAL_FILE)
        published = SpecialTokens.from_json(read_json(beside), str(beside)) if beside.exists() else None
        return cls.from_content(read_text(path), str(path), end_of_text, published)

    @classmethod
    def from_content(
        cls, content: str, name: str, end_of_text: bool = True, published: SpecialTokens | None = None
    ) -> "Tokenizer":
        """Makes a tokenizer of the text of a tokenizer.json.

        Args:
          content: the text.
          name: of the file, for messages.
          end_of_text: whether to use its end-of-text token, if it has one.
          published: as for `Tokenizer`.

        Raises:
          UserError: if it is not a tokenizer.
        """
        try:
            _check_ids(json.loads(content))
            backend = Backend.from_str(content)
            backend.encode("Aψ 1")  # which finds that an unknown token is missing
            return cls(backend, end_of_text, content, published)
        except UserError:
            raise
        except Exception as error:  # the library raises a bare Exception
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"{name} is not a tokenizer.json of the tokenizers library: {reason:.300}") from error

    def _find_end_of_text(self) -> int | None:
        ids = [self.role_id(role) for role in ("eos", "sep")]
        ids += [self._special.get(name) for name in _END_OF_TEXT_NAMES]
        return next((id_ for id_ in ids if id_ is not None), None)

    @property
    def _end_of_text_ids(self) -> list[int]:
        return [] if self._end_of_text is None else [self._end_of_text]

    @functools.cached_property
    def _is_characters(self) -> bool:
        return self._state.get("pre_tokenizer") is None and self._state["model"].get("merges") == []

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
    backend = KINDS[config.kind](config, documents)
    if config.end_of_text:
        backend.add_special_tokens([END_OF_TEXT])
    return Tokenizer(backend, config.end_of_text)


def _special_ids(backend: Backend) -> dict[str, int]:
    # Only tokens marked as special: text could spell the others.
    return {token.content: i for i, token in backend.get_added_tokens_decoder().items() if token.special}


def _with_marked(backend: Backend, content: str, published: SpecialTokens) -> str:
    """Marks the tokens that `published` names as special, so that text cannot spell them; returns the new content."""
    special = _special_ids(backend)
    unmarked = []
    for key, token in published.named().items():
        if backend.token_to_id(token) is None:
            raise UserError(f"{key} of the tokenizer is {token!r:.100}, which is not among its tokens: correct it")
        if token not in special and token not in unmarked:
            unmarked.append(token)
    if not unmarked:
        return content
    backend.add_special_tokens(unmarked)
    return _with_added_tokens(content, backend)


def _with_added_tokens(content: str, backend: Backend) -> str:
    # Written into the original content, because the library's parser rounds unigram scores.
    state: dict[str, Any] = json.loads(content)
    state["added_tokens"] = json.loads(backend.to_str())["added_tokens"]
    return json.dumps(state, ensure_ascii=False)


def _file(path: str | os.PathLike) -> Path:
    return Path(path) / _FILE if Path(path).is_dir() else Path(path)


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
