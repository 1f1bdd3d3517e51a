"""The files of SentencePiece models (Kudo & Richardson 2018), which are protocol buffers.

Only the few fields that matter are read, by their numbers in sentencepiece_model.proto, so no other library is needed.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lm.data.published_backends import Pieces
from lm.errors import UserError

# Fields of the model, of a piece, of the trainer's settings and of the normalizer's.
_PIECE, _TRAINER, _NORMALIZER = 1, 2, 3
_TOKEN, _SCORE, _TYPE = 1, 2, 3
_MODEL_TYPE = 3
_CHARSMAP, _SPACE_PREFIX, _SQUEEZE_SPACES = 2, 3, 4

_UNIGRAM, _BPE = 1, 2


class _Field(NamedTuple):
    number: int
    value: int | bytes


def read_sentencepiece(path: Path) -> Pieces:
    """Reads a SentencePiece model.

    Raises:
      UserError: if the file cannot be read, is damaged, or is neither a unigram model nor BPE.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        return _pieces(content)
    except (ValueError, struct.error, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a SentencePiece model: {error}") from error


def _pieces(content: bytes) -> Pieces:
    rows, kind, normalizer = [], _UNIGRAM, dict[int, int | bytes]()
    for number, value in _fields(content):
        if number == _PIECE:
            rows.append(_piece(_message(value)))
        elif number == _TRAINER:
            kind = _integer(dict(_fields(_message(value))).get(_MODEL_TYPE, _UNIGRAM))
        elif number == _NORMALIZER:
            normalizer = dict(_fields(_message(value)))
    if not rows or kind not in (_UNIGRAM, _BPE):
        raise ValueError("it has no pieces" if not rows else "its pieces are words or characters")
    tokens, scores, types = zip(*rows, strict=True)
    return Pieces(
        tokens,
        scores,
        types,
        is_bpe=kind == _BPE,
        charsmap=_message(normalizer.get(_CHARSMAP, b"")),
        space_prefix=bool(normalizer.get(_SPACE_PREFIX, 1)),
        squeeze_spaces=bool(normalizer.get(_SQUEEZE_SPACES, 1)),
    )


def _piece(content: bytes) -> tuple[str, float, int]:
    fields = dict(_fields(content))
    score = struct.unpack("<f", _message(fields.get(_SCORE, bytes(4))))[0]
    if score != score:
        raise ValueError("a score is not a number")
    return _message(fields.get(_TOKEN, b"")).decode(), score, _integer(fields.get(_TYPE, 1))


def _fields(content: bytes) -> Iterator[_Field]:
    """The fields of a message: numbers, and bytes for everything else."""
    place = 0
    while place < len(content):
        key, place = _varint(content, place)
        wire_type = key & 7
        if wire_type == 0:
            value, place = _varint(content, place)
            yield _Field(key >> 3, value)
            continue
        if wire_type == 2:
            size, place = _varint(content, place)
        elif wire_type in (1, 5):
            size = 8 if wire_type == 1 else 4
        else:
            raise ValueError(f"it has a field of the unknown type {wire_type}")
        if size > len(content) - place:
            raise ValueError("it ends in the middle of a field")
        yield _Field(key >> 3, content[place : place + size])
        place += size


def _varint(content: bytes, place: int) -> tuple[int, int]:
    """A number in groups of seven bits, the lowest first, and the place after it."""
    value = 0
    for shift in range(0, 64, 7):
        if place >= len(content):
            raise ValueError("it ends in the middle of a number")
        byte = content[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError("a number is too long")


def _message(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number stands where a text belongs")
    return value


def _integer(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise ValueError("a text stands where a number belongs")
    return value
