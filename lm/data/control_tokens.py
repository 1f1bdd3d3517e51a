"""Text in which some special tokens are meant and others are only spelled.

A chat template writes <|im_end|> where a message ends; the same characters in the message are text. To keep the two
apart in one text, which must be encoded as a whole because neighbouring pieces may merge, the tokens that are meant are
written in private characters of Unicode, and the text is encoded by a copy of the tokenizer that knows its special
tokens by these characters alone.
"""

import functools
import json
import re
from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer as Backend

from lm.errors import UserError

_LAST_PRIVATE = 0x10FFFD


class ControlTokens:
    """The private spellings of special tokens, and the tokenizer that knows these.

    Args:
      state: the content of tokenizer.json.
      ids: of the special tokens, by their names.

    Raises:
      UserError: if there are more special tokens than private characters.
    """

    def __init__(self, state: Mapping[str, Any], ids: Mapping[str, int]):
        first = _LAST_PRIVATE - len(ids)
        if first < 0x100000:
            raise UserError(f"the tokenizer has {len(ids):,} special tokens, more than a chat can tell apart")
        self.spare = chr(first)  # a private character that stands for no token
        self.spellings = {name: chr(first + number) for number, name in enumerate(ids, 1)}
        self._ids = ids
        self._state = state
        self._private = re.compile(f"[{chr(first)}-{chr(_LAST_PRIVATE)}]")

    def checked(self, text: str) -> str:
        """The text.

        Raises:
          UserError: if it has private characters that stand for special tokens here.
        """
        if found := self._private.search(text):
            raise UserError(f"the text has the private character U+{ord(found[0]):X}, which has no meaning: remove it")
        return text

    def without_names(self, text: str) -> str:
        """The text with a line break in place of each name of a special token."""
        return self._names.sub("\n", text) if self.spellings else text

    def encode(self, text: str) -> list[int]:
        """Token ids of a text in which private characters stand for special tokens, and nothing else does."""
        try:
            return self._backend.encode(text, add_special_tokens=False).ids
        except Exception as error:  # the library raises a bare Exception
            raise UserError(f"the tokenizer cannot encode this text ({error}): use another tokenizer") from error

    @functools.cached_property
    def _names(self) -> re.Pattern[str]:
        longest_first = sorted(self.spellings, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)))

    @functools.cached_property
    def _backend(self) -> Backend:
        """The tokenizer with special tokens renamed, wherever they occur in tokenizer.json."""
        new = self.spellings
        state = dict(self._state) | {"truncation": None, "padding": None, "post_processor": None}
        state["added_tokens"] = [
            each | {"content": new.get(each["content"], each["content"])} for each in state.get("added_tokens") or ()
        ]
        state["model"] = model = dict(state["model"])
        vocabulary = model["vocab"]
        if isinstance(vocabulary, dict):
            model["vocab"] = {new.get(token, token): id_ for token, id_ in vocabulary.items()}
        else:
            model["vocab"] = [[new.get(token, token), score] for token, score in vocabulary]
        if model.get("merges"):
            model["merges"] = [merge for merge in model["merges"] if new.keys().isdisjoint(_involved(merge))]
        if model.get("unk_token") in new:
            model["unk_token"] = new[model["unk_token"]]
        return Backend.from_str(json.dumps(state))


def _involved(merge: str | list[str]) -> tuple[str, ...]:
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left, right, left + right
