"""What experiments print: text as it is, never interpreted.

Names, labels, tokens and paths come from users' data. In none of them is `[bold]` markup, `:smile:` an emoji, or an
escape sequence a colour.
"""

import unicodedata
from typing import Any

import rich.console
from rich.status import Status
from rich.text import Text


class Console(rich.console.Console):
    """A console on which strings, in tables too, appear as they are. Lines are not wrapped."""

    def __init__(self, **settings: Any):
        """Takes the settings of `rich.console.Console`."""
        super().__init__(markup=False, emoji=False, highlight=False, **settings)

    def print(self, *objects: Any, **settings: Any) -> None:
        """Prints strings and tables."""
        settings.setdefault("soft_wrap", all(isinstance(one, str) for one in objects))
        super().print(*objects, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        """Rich calls this for every string, the cells and titles of tables included."""
        return super().render_str(printable(text), **settings)

    def status(self, status: Any, **settings: Any) -> Status:
        """A line that stays until its context ends. Pass `Text` to its `update`."""
        return super().status(Text(printable(status)) if isinstance(status, str) else status, **settings)


def printable(text: str, keep: str = "\n\t") -> str:
    """The text with control characters and lone surrogates as escapes, such as \\x1b.

    Args:
      text: anything.
      keep: control characters to leave as they are.
    """
    if text.isprintable():
        return text
    return "".join(_escaped(character) if _is_control(character, keep) else character for character in text)


def _is_control(character: str, keep: str) -> bool:
    # Directional overrides and the like (Cf) are letters' business in some scripts: only the isolated ones that can
    # reorder a line are escaped.
    category = unicodedata.category(character)
    return character not in keep and (
        category in ("Cc", "Cs", "Zl", "Zp") or character in _REORDERING or character in _NOT_IN_XML
    )


_NOT_IN_XML = "\ufffe\uffff"
_REORDERING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
