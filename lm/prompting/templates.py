"""Templates: text with places for the columns of a row.

What a row holds is put in as it is: braces in it are text.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence

from lm.errors import UserError

ANSWER, OPTIONS = "answer", "options"
LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")

_PARTS = re.compile(r"\{\{|\}\}|\{(\w+)\}|[{}]")


@dataclasses.dataclass(frozen=True)
class Template:
    """A parsed template.

    Attributes:
      text: as it is written.

    Raises:
      UserError: for a brace that is alone, and a template without a place for a row.
    """

    text: str

    def __post_init__(self):
        if not self.columns:
            raise UserError(
                f"config.prompt.item={self.text!r} has no place for a row: name a column in braces, as in "
                "'Review: {text}\\nSentiment:'"
            )
        if [name for _, name in self._parts].count(ANSWER) > 1:
            raise UserError("config.prompt.item has {answer} twice: leave one out")

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a row must have."""
        names = [name for _, name in self._parts if name and name not in (ANSWER, OPTIONS)]
        return tuple(dict.fromkeys(names))

    @property
    def lists_options(self) -> bool:
        """Whether it has a place for the list of answers."""
        return any(name == OPTIONS for _, name in self._parts)

    def fill(self, row: Mapping[str, str], options: Sequence[str] = ()) -> tuple[str, str]:
        """The text before the answer, and the text after it.

        Args:
          row: with all columns.
          options: the answers to list.
        """
        values = {**row, OPTIONS: "\n".join(map("{}. {}".format, LETTERS, options))}
        texts = ["", ""]
        seen = 0
        for literal, name in self._parts:
            if name == ANSWER:
                seen = 1
            else:
                texts[seen] += values[name] if name else literal
        return texts[0], texts[1]

    @functools.cached_property
    def _parts(self) -> list[tuple[str, str]]:
        """Pairs of which one is empty: a literal text, or the name of what stands in its place."""
        parts, end = [], 0
        for match in _PARTS.finditer(self.text):
            parts.append((self.text[end : match.start()], ""))
            end = match.end()
            if match[0] in ("{", "}"):
                raise UserError(
                    f"config.prompt.item={self.text!r} has a single {match[0]} at character {match.start() + 1}: write "
                    f"{2 * match[0]} for a brace, or the name of a column in braces"
                )
            parts.append(("", match[1]) if match[1] else (match[0][0], ""))
        return [part for part in [*parts, (self.text[end:], "")] if part != ("", "")]
