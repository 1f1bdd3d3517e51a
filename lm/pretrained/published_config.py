"""The config.json of a published model: values checked as they are read, so that nothing is guessed or ignored."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from lm.errors import UserError

_MISSING: Any = object()


@dataclasses.dataclass(frozen=True)
class PublishedConfig:
    """Values by name, as transformers 4 or 5 writes them.

    Attributes:
      values: from JSON.
      place: the file, for messages.
    """

    values: Mapping[str, Any]
    place: str

    def integer(self, name: str, default: int | None = _MISSING, least: int = 0) -> Any:
        """A whole number of at least `least`; the default where it is missing or null.

        Raises:
          UserError: for anything else, or if it is missing and has no default.
        """
        value = self._value(name, default)
        if value is default and name not in self.values:
            return value
        if value is None and default is None:
            return None
        if type(value) is not int or value < least:
            raise self._wrong(name, value, f"a whole number of at least {least}")
        return value

    def number(self, name: str, default: float | None = _MISSING) -> Any:
        """A finite number; the default where it is missing or null.

        Raises:
          UserError: as `integer`.
        """
        value = self._value(name, default)
        if value is None and default is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self._wrong(name, value, "a number")
        return float(value)

    def flag(self, name: str, default: bool = _MISSING) -> bool:
        """True or false.

        Raises:
          UserError: as `integer`.
        """
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise self._wrong(name, value, "true or false")
        return value

    def choice(self, name: str, allowed: Sequence[str] | Mapping[str, str], default: str = _MISSING) -> str:
        """One of some texts; given a mapping, what it maps the text to.

        Raises:
          UserError: as `integer`.
        """
        value = self._value(name, default)
        if not isinstance(value, str) or value not in allowed:
            raise self._wrong(name, value, f"one of {', '.join(allowed)}")
        return allowed[value] if isinstance(allowed, Mapping) else value

    def group(self, name: str) -> "PublishedConfig":
        """The object of that name; an empty one where it is missing or null.

        Raises:
          UserError: for anything else.
        """
        value = self._value(name, {})
        if not isinstance(value, Mapping):
            raise self._wrong(name, value, "an object")
        return PublishedConfig(value, f"{self.place}, {name}")

    def expect(self, name: str, value: Any, default: Any = _MISSING) -> None:
        """Checks a setting of which only one value is supported.

        Raises:
          UserError: for another value.
        """
        found = self._value(name, value if default is _MISSING else default)
        if found != value:
            raise UserError(f"{self.place}: {name}={found!r} is not supported, only {value!r}")

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def _value(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        if value is not None:
            return value
        if default is _MISSING:
            raise UserError(f"{self.place} has no {name}: it must be there for a model of this family")
        return default

    def _wrong(self, name: str, value: Any, expected: str) -> UserError:
        shown = repr(value)
        return UserError(f"{self.place}: {name} must be {expected}, got {shown[:60]}{'...' if len(shown) > 60 else ''}")
