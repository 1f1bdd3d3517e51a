"""The config.json of a published model: values checked as they are read, so that nothing is guessed or ignored."""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
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

    def integer(self, name: str, default: int | None = _MISSING, least: int = 0, nullable: bool = False) -> Any:
        """A whole number from `least` to a billion; the default where it is missing or null.

        Args:
          name: of the value.
          default: where there is none.
          least: that it may be.
          nullable: whether null means None instead of the default.

        Raises:
          UserError: for anything else, or if it is missing and has no default.
        """
        value = self._value(name, default, nullable)
        if value is None:
            return None
        if type(value) is not int or not least <= value <= 10**9:
            raise self._wrong(name, value, f"a whole number from {least} to a billion")
        return value

    def number(self, name: str, default: float | None = _MISSING, nullable: bool = False) -> Any:
        """A finite number; the default where it is missing or null. Arguments as of `integer`.

        Raises:
          UserError: as `integer`.
        """
        value = self._value(name, default, nullable)
        if value is None:
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

    def choices(self, name: str, allowed: Sequence[str], default: Sequence[str], length: int) -> tuple[str, ...]:
        """A list of so many texts, each one of those allowed.

        Raises:
          UserError: as `integer`.
        """
        value = self._value(name, default)
        if not isinstance(value, list | tuple) or any(each not in allowed for each in value):
            raise self._wrong(name, value, f"a list of {', '.join(allowed)}")
        if len(value) != length:
            raise UserError(f"{self.place}: {name} has {len(value)} entries for {length} layers")
        return tuple(value)

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

    def only(self, names: Collection[str]) -> None:
        """Checks that there are no settings but these.

        Raises:
          UserError: if there is another, which is not null.
        """
        for name, value in self.values.items():
            if name not in names and value is not None:
                raise UserError(f"{self.place}: {name} is not supported, only {', '.join(names)}")

    def divides(self, divisor: str, small: int, name: str, large: int) -> None:
        """Checks that one size divides another.

        Raises:
          UserError: if it does not.
        """
        if large % small:
            raise UserError(f"{self.place}: {divisor}={small} does not divide {name}={large}")

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def _value(self, name: str, default: Any, nullable: bool = False) -> Any:
        value = self.values.get(name)
        if value is not None or (nullable and name in self.values):
            return value
        if default is _MISSING:
            raise UserError(f"{self.place} has no {name}: it must be there for a model of this family")
        return default

    def _wrong(self, name: str, value: Any, expected: str) -> UserError:
        shown = repr(value)
        return UserError(f"{self.place}: {name} must be {expected}, got {shown[:60]}{'...' if len(shown) > 60 else ''}")
