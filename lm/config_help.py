"""What `--help` says of a config: every key with its type, default and description, from the dataclasses."""

import dataclasses
import inspect
import re
import textwrap
import typing
from collections.abc import Iterator
from typing import Any

from lm.configuration import element_type, type_without_none

WIDTH = 80  # columns
_TYPES = {int: "integer", float: "number", str: "text", bool: "true or false"}


def describe(cls: type, config: Any = None) -> str:
    """The keys of a config's dataclass, those of nested ones in groups of their own.

    Args:
      cls: the dataclass.
      config: one of this class, whose values are shown where they are not the defaults; None: the defaults alone.
    """
    return "\n".join(_lines(cls, "config", _first_line(cls), config))


def _lines(cls: type, prefix: str, about: str, config: Any) -> Iterator[str]:
    hints, texts = typing.get_type_hints(cls), attributes(cls)
    groups = []
    yield from textwrap.wrap(f"{prefix}: {about}", WIDTH)
    for field in dataclasses.fields(cls):
        name, hint, text = f"{prefix}.{field.name}", hints[field.name], texts.get(field.name, "")
        if dataclasses.is_dataclass(hint):
            groups.append((hint, name, text, None if config is None else getattr(config, field.name)))
            continue
        yield f"  --{name}: {type_name(hint)}{_default(field, config)}"
        yield from textwrap.wrap(text, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    for hint, name, text, values in groups:
        yield ""
        yield from _lines(typing.cast(type, hint), name, text or _first_line(typing.cast(type, hint)), values)


def attributes(cls: type) -> dict[str, str]:
    """The descriptions under `Attributes:` in a docstring, each as one line."""
    _, _, section = (inspect.getdoc(cls) or "").partition("Attributes:\n")
    found: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        if match := re.match(r"  (\w+): (.*)", line):
            name = match[1]
            found[name] = match[2]
        elif name and line.startswith("    "):
            found[name] += f" {line.strip()}"
        elif line.strip():
            break
    return found


def type_name(hint: Any) -> str:
    """A type in words, such as "integer or None" or "list of text"."""
    kind = type_without_none(hint)
    name = f"list of {_TYPES[element_type(hint)]}" if kind is tuple else _TYPES[kind]
    return f"{name} or None" if type(None) in typing.get_args(hint) else name


def _default(field: dataclasses.Field, config: Any) -> str:
    """The default, and what a config has instead."""
    known = [] if field.default is dataclasses.MISSING else [f"default: {_shown(field.default)}"]
    if config is not None and (value := getattr(config, field.name)) != field.default:
        known.append(f"here: {_shown(value)}")
    return f" ({'; '.join(known)})" if known else ""


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value)) if value and "" not in value else repr(value)
    return repr(value) if isinstance(value, str) and (value == "" or "\n" in value) else str(value)


def _first_line(cls: type) -> str:
    return (inspect.getdoc(cls) or "").partition("\n")[0]
