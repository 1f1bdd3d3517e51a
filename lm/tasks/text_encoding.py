"""Texts and pairs of texts as sequences of tokens, with the special tokens that each architecture expects.

    encoder   [CLS] a [SEP]              [CLS] a [SEP] b [SEP]         (Devlin et al. 2019)
    decoder   <|endoftext|> a            <|endoftext|> a <|endoftext|> b   so that the last token has seen everything
    lstm, gru a                          a [SEP] b

Where a tokenizer has no [CLS] or [SEP], as GPT-2's, its end-of-text token takes their place. A published tokenizer puts
its own special tokens around texts instead, such as <s> a </s></s> b </s>, or none, as GPT-2's.

Axes: T positions. One example's arrays have no batch axis.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from lm.data.frames import Frame
from lm.data.tokenizers import Tokenizer
from lm.errors import UserError
from lm.modules.config import ModelConfig
from lm.tasks.supervised import Encoded, Example

FIRST, SEPARATOR = "[CLS]", "[SEP]"

# Arrays of an encoded text, each [T] int32: ids; 1 for every token, so that padding becomes 0; 0 for the first text
# and 1 for the second.
AXES = {"tokens": "T", "segments": "T", "types": "T"}
_INSTEAD = "raise it, or set config.task.truncate=True to truncate them"


def special_tokens(architecture: str) -> tuple[str, ...]:
    """The special tokens of a tokenizer for this architecture, in addition to its end-of-text token."""
    return {"encoder": (FIRST, SEPARATOR), "lstm": (SEPARATOR,), "gru": (SEPARATOR,)}.get(architecture, ())


@dataclasses.dataclass(frozen=True)
class Layout(Frame):
    """Where special tokens are placed among texts.

    Attributes:
      empty: ids that stand for an empty text where nothing comes around it.
    """

    empty: tuple[int, ...] = ()

    @classmethod
    def of(cls, tokenizer: Tokenizer, architecture: str) -> "Layout":
        """The layout for an architecture.

        Raises:
          UserError: if the tokenizer has no suitable special token.
        """
        own = tokenizer.frame
        if own is not None and (own.before or own.after or architecture != "encoder"):
            return cls(**vars(own), empty=tuple(tokenizer.with_start([])))
        separator = _special_id(tokenizer, SEPARATOR)
        if architecture == "encoder":
            return cls((_special_id(tokenizer, FIRST),), (separator,), (separator,))
        if architecture == "decoder":
            end_of_text = separator if tokenizer.end_of_text is None else tokenizer.end_of_text
            return cls((end_of_text,), (end_of_text,), ())
        return cls((), (separator,), (), empty=(separator,))

    def room(self, model: ModelConfig, pair: bool) -> int:
        """How many text tokens fit into a sequence of the model.

        Raises:
          UserError: if not even one token of each text fits.
        """
        special = len(self.before) + len(self.between) * pair + len(self.after)
        if model.size_of_sequence < special + 1 + pair:
            raise UserError(
                f"{model.length_setting}={model.size_of_sequence} leaves no room for text next to {special} special "
                f"tokens: raise it to {special + 1 + pair} or more"
            )
        return model.size_of_sequence - special

    def join(self, first: Sequence[int], second: Sequence[int] | None = None) -> Example:
        """The arrays of a text, or of a pair, named as in `AXES`."""
        if second is None:
            # A text may become empty, for example when all its words are stop words; a sequence may not.
            ids = self.around([*first]) or [*self.empty]
            types = np.zeros(len(ids), np.int32)
        else:
            head = [*self.before, *first, *self.between]
            ids = [*head, *second, *self.after] or [*self.empty]
            types = self.second_type * (np.arange(len(ids)) >= len(head) - self.between_second).astype(np.int32)
        return {"tokens": np.array(ids, np.int32), "segments": np.ones(len(ids), np.int32), "types": types}


def encode_texts(
    tokenizer: Tokenizer,
    model: ModelConfig,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    truncate: bool,
    places: Sequence[str],
    instead: str = _INSTEAD,
) -> Encoded:
    """Encodes texts, or pairs of texts.

    Args:
      tokenizer: with `special_tokens(architecture)`, or an end-of-text token.
      model: its architecture, and the longest sequence, special tokens included.
      texts: the only or first texts.
      pairs: the second texts, or None.
      truncate: whether to truncate texts that are too long at their end; in a pair, the longer text first.
      places: where each text comes from, for messages.
      instead: what to do about texts that are too long, for messages.

    Returns:
      An example for each text, with arrays as in `AXES`.

    Raises:
      UserError: if a text is too long and `truncate` is off, or if the tokenizer lacks special tokens.
    """
    layout = Layout.of(tokenizer, model.architecture)
    room = layout.room(model, pairs is not None)
    first_ids = tokenizer.encode_batch(texts)
    second_ids = [None] * len(first_ids) if pairs is None else tokenizer.encode_batch(pairs)
    lengths = [len(a) + len(b or ()) for a, b in zip(first_ids, second_ids, strict=True)]
    cut = check_lengths(lengths, room, model, truncate, places, instead)
    examples = []
    for a, b in zip(first_ids, second_ids, strict=True):
        kept = room if b is None else longest_first(len(a), len(b), room)
        examples.append(layout.join(a[:kept], None if b is None else b[: room - kept]))
    return Encoded(examples, cut)


def longest_first(first: int, second: int, room: int) -> int:
    """How many tokens of the first text remain if the longer of two texts is shortened until both fit."""
    return min(first, max(room - second, room - room // 2))


def check_lengths(
    lengths: Sequence[int],
    room: int,
    model: ModelConfig,
    truncate: bool,
    places: Sequence[str],
    instead: str = _INSTEAD,
) -> int:
    """Counts the texts that are too long, which only `truncate` allows.

    Raises:
      UserError: if there are any and `truncate` is off; it names the first, and the length that fits all.
    """
    too_long = [index for index, length in enumerate(lengths) if length > room]
    if too_long and not truncate:
        special = model.size_of_sequence - room
        first, needed = too_long[0], max(lengths) + special
        raise UserError(
            f"{places[first]}: the text has {lengths[first] + special} tokens with the special ones, more than "
            f"{model.length_setting}={model.size_of_sequence} ({len(too_long)} of {len(lengths)} texts are too long, "
            f"the longest has {needed}): {instead}"
        )
    return len(too_long)


def _special_id(tokenizer: Tokenizer, name: str) -> int:
    found = tokenizer.special_id(name)
    if found is None:
        found = tokenizer.end_of_text
    if found is None:
        raise UserError(
            f"the tokenizer has neither {name} nor an end-of-text token: set config.tokenizer.end_of_text=True, or "
            f"give it the special token {name}"
        )
    return found
