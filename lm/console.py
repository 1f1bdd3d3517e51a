"""What experiments print: text as it is, never interpreted.

Names, labels, tokens and paths come from users' data. In none of them is `[bold]` markup, `:smile:` an emoji, or an
escape sequence a colour.
"""

import contextlib
import textwrap
import time
import unicodedata
from collections.abc import Iterator
from typing import Any, Protocol

import rich.console
from rich.status import Status
from rich.text import Text

_SECONDS_BETWEEN_LINES = 30.0


class Advance(Protocol):
    """Counts progress."""

    def __call__(self, steps: int = 1, detail: str = "") -> None:
        """Counts `steps` more as done; `detail` says what is next."""


class Console(rich.console.Console):
    """A console on which strings, in tables too, appear as they are.

    A terminal and a notebook get lines that are wrapped between words; anything else, and text printed with
    `soft_wrap=True`, whole ones.
    """

    def __init__(self, **settings: Any):
        """Takes the settings of `rich.console.Console`."""
        super().__init__(markup=False, emoji=False, highlight=False, **settings)

    def print(self, *objects: Any, **settings: Any) -> None:
        """Prints strings and tables."""
        if all(isinstance(one, str) for one in objects):
            if (self.is_terminal or self.is_jupyter) and "soft_wrap" not in settings:
                objects = tuple(_wrapped(one, self.width) for one in objects)
            settings.setdefault("soft_wrap", True)
        super().print(*objects, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        """Rich calls this for every string, the cells and titles of tables included."""
        return super().render_str(printable(text), **settings)

    def status(self, status: Any, **settings: Any) -> Status:
        """A line that stays until its context ends. Pass `Text` to its `update`."""
        return super().status(Text(printable(status)) if isinstance(status, str) else status, **settings)

    def on_broken_pipe(self) -> None:
        """Leaves it to the command line to end quietly."""
        raise BrokenPipeError

    @contextlib.contextmanager
    def progress(self, doing: str, total: int | None = None) -> Iterator[Advance]:
        """Shows "`doing` k of n" and the time left while the context lasts, and yields the function that counts.

        A terminal shows a bar that disappears at the end; anywhere else, long phases write a plain line every half
        minute. Contexts may be nested.

        Args:
          doing: what takes long, as in "calibrating".
          total: n; None: not known, so the time spent is shown instead.
        """
        with (
            _bar(self, doing, total) if self.is_terminal else contextlib.nullcontext(_Lines(self, doing, total)) as one
        ):
            yield one


# Prints nothing.
QUIET = Console(quiet=True)


@contextlib.contextmanager
def _bar(console: Console, doing: str, total: int | None) -> Iterator[Advance]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    doing_column = TextColumn("{task.description}", markup=False)
    detail_column = TextColumn("{task.fields[detail]}", markup=False)
    known = (BarColumn(20), MofNCompleteColumn(" of "), detail_column, TimeRemainingColumn(compact=True))
    columns = (detail_column, TimeElapsedColumn()) if total is None else known
    with Progress(doing_column, *columns, console=console, transient=True) as bar:
        task = bar.add_task(printable(doing), total=total, detail="")

        def advance(steps: int = 1, detail: str = "") -> None:
            bar.update(task, advance=steps, detail=printable(detail, keep=""))

        yield advance


class _Lines:
    """Progress where there is no terminal."""

    def __init__(self, console: Console, doing: str, total: int | None):
        self._console, self._doing, self._total = console, doing, total
        self._done, self._start = 0, time.monotonic()
        self._last = self._start

    def __call__(self, steps: int = 1, detail: str = "") -> None:
        self._done += steps
        now = time.monotonic()
        if now - self._last < _SECONDS_BETWEEN_LINES:
            return
        self._last = now
        line = f"{self._doing}: {self._done:,}"
        if self._total:
            left = (now - self._start) * (self._total - self._done) / max(self._done, 1)
            line += f" of {self._total:,}, about {left:,.0f} s left"
        self._console.print(f"{line}  {detail}".rstrip())


def _wrapped(text: str, width: int) -> str:
    """The text with lines broken between words; a path that is too long for a line can still be copied."""
    return "\n".join(line if len(line) <= width else _wrapped_line(line, width) for line in text.split("\n"))


def _wrapped_line(line: str, width: int) -> str:
    indent = line[: len(line) - len(line.lstrip())]
    return textwrap.fill(
        line.lstrip(),
        width,
        initial_indent=indent,
        subsequent_indent=f"{indent}  ",
        expand_tabs=False,
        replace_whitespace=False,
        break_long_words=False,
        break_on_hyphens=False,
    )


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
    return character not in keep and (category in ("Cc", "Cs", "Zl", "Zp") or character in _UNWANTED)


_REORDERING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_UNWANTED = _REORDERING + "\ufffe\uffff"  # the last two are in no XML, and so in no SVG


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
