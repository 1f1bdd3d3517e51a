"""Texts with marks in them, such as [MASK], that stand for special tokens.

`Tokenizer.encode` makes no text a special token, since a document must not end another. Here the marks are the user's.
"""

import re
from collections.abc import Sequence

from lm.data.tokenizers import Tokenizer


def encode_marked(tokenizer: Tokenizer, text: str, marks: Sequence[str]) -> list[int]:
    """Token ids of a text, where each mark is the special token of its name.

    White space before a mark is left out: it belongs to the token that the mark hides (as RoBERTa's tokenizer has it).

    Args:
      tokenizer: knows all marks.
      text: with any number of marks.
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
