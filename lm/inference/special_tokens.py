"""Texts that contain special tokens by name, such as [MASK].

`Tokenizer.encode` never produces special tokens, since text must not end a document. Here the user writes them on
purpose.
"""

import re
from collections.abc import Sequence

from lm.data.tokenizers import Tokenizer


def encode_marked(tokenizer: Tokenizer, text: str, marks: Sequence[str]) -> list[int]:
    """Token ids of a text in which names of special tokens stand for these.

    White space before such a name is removed: it belongs to the hidden token (as in RoBERTa's tokenizer).

    Args:
      tokenizer: has all these special tokens.
      text: with any number of them.
      marks: names of special tokens.
    """
    if not marks:
        return tokenizer.encode(text)
    pieces = re.split("|".join(rf"(?:\s*({re.escape(mark)}))" for mark in marks), text)
    ids: list[int] = []
    for piece in filter(None, pieces):
        special = tokenizer.special_id(piece) if piece in marks else None
        ids += tokenizer.encode(piece) if special is None else [special]
    return ids
