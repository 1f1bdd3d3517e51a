"""Tokenizers from the metadata of GGUF files, the keys that begin with tokenizer.ggml.

The file holds the vocabulary and the names of the special tokens; how text is split before merging it gives by name
only, so a name that is not known here is an error, never a guess.
"""

from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer as Backend

from lm.data.frames import Frame, with_bos_and_eos
from lm.data.published_backends import (
    CONTROL_PIECE,
    ORDINARY_PIECE,
    SPLITTINGS,
    UNKNOWN_PIECE,
    USER_PIECE,
    Pieces,
    byte_level,
    mark,
    of_pieces,
    set_frame,
    wordpiece,
)
from lm.data.special_tokens import SpecialTokens
from lm.data.tokenizers import Tokenizer
from lm.errors import UserError

_PREFIX = "tokenizer.ggml."
_ROLES = {
    "bos": ("bos_token_id",),
    "eos": ("eos_token_id",),
    "pad": ("padding_token_id",),
    "unk": ("unknown_token_id",),
    "mask": ("mask_token_id",),
    "cls": ("cls_token_id",),
    "sep": ("seperator_token_id", "separator_token_id"),  # the first is how the format spells it
}
_MORE_ENDS = ("eot_token_id", "eom_token_id")
_WORD_START = "▁"


def tokenizer_of_gguf(metadata: Mapping[str, Any], name: str) -> Tokenizer:
    """The tokenizer of a GGUF file.

    Args:
      metadata: values by key, arrays as lists.
      name: of the file, for messages.

    Raises:
      UserError: if the metadata lacks something, contradicts itself, or names what is not known here.
    """
    values = _Metadata(metadata, name)
    kind = values.text("model")
    if kind not in _KINDS:
        raise UserError(f"{name} has a tokenizer of the kind {kind!r:.50}; known are {', '.join(_KINDS)}")
    tokens = values.tokens()
    try:
        backend = _KINDS[kind](values, tokens)
    except UserError:
        raise
    except Exception as error:  # the library raises a bare Exception
        raise UserError(f"{name}: its tokenizer is damaged: {' '.join(str(error).split()):.300}") from error
    published = _special_tokens(values, tokens)
    frame = _frame(values, kind, {role: tokens.index(token) for role, token in published.roles.items()})
    if frame != Frame():
        set_frame(backend, frame)
    return Tokenizer(backend, published=published)


class _Metadata:
    """Checked values of a GGUF file's metadata."""

    def __init__(self, values: Mapping[str, Any], name: str):
        self._values = values
        self.name = name

    def text(self, key: str, default: str | None = None) -> str:
        value = self._values.get(_PREFIX + key, default)
        if not isinstance(value, str):
            raise self._wrong(key, "a text")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self._values.get(_PREFIX + key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def list_of(self, key: str, kind: type | tuple[type, ...], length: int | None = None) -> list[Any]:
        value = self._values.get(_PREFIX + key)
        if not isinstance(value, list | tuple) or not all(isinstance(each, kind) for each in value):
            raise self._wrong(key, "a list")
        if length is not None and len(value) != length:
            raise self._wrong(key, f"a list of {length:,} values, one for each token")
        return list(value)

    def tokens(self) -> list[str]:
        tokens = self.list_of("tokens", str)
        if len(set(tokens)) < len(tokens):
            raise self._wrong("tokens", "a list of different tokens")
        return tokens

    def types(self, count: int) -> list[int]:
        has_types = _PREFIX + "token_type" in self._values
        return self.list_of("token_type", int, count) if has_types else [ORDINARY_PIECE] * count

    def id_of(self, keys: tuple[str, ...], count: int) -> int | None:
        for key in keys:
            if (value := self._values.get(_PREFIX + key)) is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < count:
                raise self._wrong(key, f"an id below {count:,}")
            return value
        return None

    def bytes_of(self, key: str) -> bytes:
        value = self._values.get(_PREFIX + key, b"")
        try:
            return bytes(value)
        except (TypeError, ValueError) as error:
            raise self._wrong(key, "a list of bytes") from error

    def chat_template(self) -> str | None:
        return self._values.get("tokenizer.chat_template")

    def _wrong(self, key: str, what: str) -> UserError:
        return UserError(f"{self.name}: {_PREFIX}{key} must be {what}: the file is damaged or incomplete")


def _byte_level(values: _Metadata, tokens: list[str]) -> Backend:
    pre = values.text("pre", "default")
    if pre not in SPLITTINGS:
        known = ", ".join(sorted(SPLITTINGS))
        raise UserError(
            f"{values.name} splits text in the way {pre!r:.50} (tokenizer.ggml.pre), which is not known here; known "
            f"are {known}: use the model's Hugging Face files"
        )
    merges = [merge.partition(" ") for merge in values.list_of("merges", str)]
    pairs = [(left, right) for left, _, right in merges]
    vocabulary = {token: id_ for id_, token in enumerate(tokens)}
    backend = byte_level(vocabulary, pairs, SPLITTINGS[pre], values.flag("add_space_prefix", False))
    types = values.types(len(tokens))
    special = (CONTROL_PIECE, UNKNOWN_PIECE)
    mark(backend, (token for token, type_ in zip(tokens, types, strict=True) if type_ in special), special=True)
    mark(backend, (token for token, type_ in zip(tokens, types, strict=True) if type_ == USER_PIECE), special=False)
    return backend


def _llama(values: _Metadata, tokens: list[str]) -> Backend:
    return of_pieces(_pieces(values, tokens, is_bpe=True), values.name)


def _t5(values: _Metadata, tokens: list[str]) -> Backend:
    return of_pieces(_pieces(values, tokens, is_bpe=False), values.name)


def _pieces(values: _Metadata, tokens: list[str], is_bpe: bool) -> Pieces:
    return Pieces(
        tokens,
        values.list_of("scores", (int, float), len(tokens)),
        values.types(len(tokens)),
        is_bpe,
        charsmap=values.bytes_of("precompiled_charsmap"),
        space_prefix=values.flag("add_space_prefix", True),
        squeeze_spaces=values.flag("remove_extra_whitespaces", not is_bpe),
    )


def _bert(values: _Metadata, tokens: list[str]) -> Backend:
    # The format marks beginnings of words where BERT's files mark continuations, and keeps no letter case setting:
    # whatever reads it lowercases.
    spelled = _wordpiece_spelling(tokens)
    vocabulary = {token: id_ for id_, token in enumerate(spelled)}
    unknown = values.id_of(_ROLES["unk"], len(tokens))
    backend = wordpiece(vocabulary, "[UNK]" if unknown is None else spelled[unknown])
    types = values.types(len(tokens))
    mark(backend, (token for token, type_ in zip(spelled, types, strict=True) if type_ == CONTROL_PIECE), special=True)
    return backend


def _wordpiece_spelling(tokens: list[str]) -> list[str]:
    def spell(token: str) -> str:
        if token.startswith("[") and token.endswith("]"):
            return token
        return token[1:] if token.startswith(_WORD_START) else f"##{token}"

    return [spell(token) for token in tokens]


_KINDS = {"gpt2": _byte_level, "llama": _llama, "t5": _t5, "bert": _bert}


def _special_tokens(values: _Metadata, tokens: list[str]) -> SpecialTokens:
    ids = {role: values.id_of(keys, len(tokens)) for role, keys in _ROLES.items()}
    ends = [values.id_of((key,), len(tokens)) for key in _MORE_ENDS]
    found: dict[str, Any] = {f"{role}_token": tokens[id_] for role, id_ in ids.items() if id_ is not None}
    if values.text("model") == "bert":
        # llama.cpp calls [CLS] and [SEP] the tokens around a text.
        found = {"cls_token": found.pop("bos_token", "[CLS]"), "sep_token": found.pop("eos_token", "[SEP]")} | found
        found.setdefault("unk_token", "[UNK]")
    start = values.id_of(("decoder_start_token_id",), len(tokens))
    if start is None and values.text("model") == "t5":
        start = ids["pad"]
    found["start_of_output_token"] = None if start is None else tokens[start]
    found["end_tokens"] = [tokens[id_] for id_ in ends if id_ is not None]
    found["chat_template"] = values.chat_template()
    return SpecialTokens.from_json(found, values.name)


def _frame(values: _Metadata, kind: str, roles: Mapping[str, int]) -> Frame:
    if kind == "bert":
        first, separator = roles["cls"], roles["sep"]
        return Frame((first,), (separator,), (separator,))
    by_default = kind == "llama" or (kind == "gpt2" and SPLITTINGS[values.text("pre", "default")].add_bos)
    bos = roles.get("bos") if values.flag("add_bos_token", by_default) else None
    eos = roles.get("eos") if values.flag("add_eos_token", kind == "t5") else None
    return with_bos_and_eos(Frame(second_type=int(kind != "t5")), bos, eos)
