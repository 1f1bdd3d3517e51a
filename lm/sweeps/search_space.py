"""A search space: which config values to vary, and over which ranges.

Parameters are written as text:

    optimizer.learning_rate=1e-4..1e-2 log    any value between, uniform in the logarithm
    model.dropout=0.0..0.3                    any value between; integers if the config value is an integer
    model.layers=2,4,6                        one of these values

Values are parsed by the type of the config's own value, exactly as the command line parses --config.KEY=VALUE, and
never evaluated.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

from lm.configuration import from_config_dict
from lm.errors import UserError
from lm.overrides import hint_of, leaves, parse_value

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Value = bool | int | float | str
Values = dict[str, Value]
Config = TypeVar("Config", bound="DataclassInstance")

_NUMBER = r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})(\s+log)?")


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One config value to vary.

    Attributes:
      key: its dotted name.
      choices: the values of a list, in the given order; empty for a range.
      low: lower end of a range, inclusive.
      high: upper end of a range, inclusive.
      log: whether the range is uniform in the logarithm.
    """

    key: str
    choices: tuple[Value, ...] = ()
    low: int | float = 0
    high: int | float = 0
    log: bool = False

    @property
    def size(self) -> float:
        """Number of values; infinite for a range of real numbers."""
        if self.choices:
            return len(self.choices)
        return self.high - self.low + 1 if isinstance(self.low, int) else math.inf


def read_space(texts: Sequence[str], kind: type) -> tuple[Parameter, ...]:
    """Parses parameters.

    Args:
      texts: in the format described at the top of this file.
      kind: the dataclass of the config whose values they vary.

    Raises:
      UserError: for a malformed parameter, a key that the config does not have, or a value of the wrong type.
    """
    hints = dict(leaves(kind))
    space = tuple(_read(text, hints) for text in texts)
    keys = [parameter.key for parameter in space]
    for key in keys:
        if keys.count(key) > 1:
            raise UserError(f"config.parameters names {key} twice: remove one")
    return space


def _read(text: str, hints: Mapping[str, Any]) -> Parameter:
    key, equals, rest = (part.strip() for part in text.partition("="))
    if not (equals and rest and re.fullmatch(r"\w+(\.\w+)*", key)):
        raise UserError(f"config.parameters: {text!r} must be KEY=LOW..HIGH, KEY=LOW..HIGH log or KEY=A,B,C")
    if found := _RANGE.fullmatch(rest):
        return _read_range(text, key, found, hints)
    if re.match(rf"{_NUMBER}\.\.", rest) or rest.endswith(" log"):
        raise UserError(f"config.parameters: {text!r}: a range is LOW..HIGH or LOW..HIGH log, with numbers like 1e-4")
    choices = tuple(_read_value(text, key, choice.strip(), hints) for choice in rest.split(","))
    if len(set(choices)) < len(choices):
        raise UserError(f"config.parameters: {text!r} has a value twice: remove one")
    return Parameter(key, choices)


def _read_range(text: str, key: str, found: re.Match, hints: Mapping[str, Any]) -> Parameter:
    low, high = (_read_value(text, key, end, hints) for end in found.group(1, 2))
    if not (_is_number(low) and _is_number(high)):
        raise UserError(f"config.parameters: {text!r}: {key} is not a number: list its values as KEY=A,B,C")
    if low >= high:
        raise UserError(f"config.parameters: {text!r}: {found[1]} must be less than {found[2]}")
    if found[3] and low <= 0:
        raise UserError(f"config.parameters: {text!r}: a logarithmic range must be above 0")
    return Parameter(key, low=low, high=high, log=bool(found[3]))


def _is_number(value: Value) -> TypeGuard[int | float]:
    return type(value) in (int, float)  # not bool


def _read_value(text: str, key: str, value: str, hints: Mapping[str, Any]) -> Value:
    try:
        parsed = parse_value(hint_of(key, hints), value, f"config.{key}")
    except UserError as error:
        raise UserError(f"config.parameters: {text!r}: {error}") from error
    if not isinstance(parsed, Value):
        raise UserError(f"config.parameters: {text!r}: only numbers, booleans and strings can be varied")
    return parsed


def space_size(space: Sequence[Parameter]) -> float:
    """Number of points."""
    return math.prod(parameter.size for parameter in space)


def grid(space: Sequence[Parameter]) -> list[Values]:
    """Every point, with the last parameter varying fastest.

    Raises:
      UserError: if a parameter is a range.
    """
    for parameter in space:
        if not parameter.choices:
            raise UserError(f"config.method=grid needs a list of values, {parameter.key}=A,B,C, instead of a range")
    keys = [parameter.key for parameter in space]
    return [dict(zip(keys, point, strict=True)) for point in itertools.product(*(one.choices for one in space))]


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """A config dataclass with values replaced by dotted names, all at once.

    Raises:
      UserError: if the config rejects them.
    """
    changed = dataclasses.asdict(config)
    for key, value in values.items():
        group = changed
        *path, name = key.split(".")
        for part in path:
            group = group[part]
        group[name] = value
    return from_config_dict(type(config), changed)


def format_value(value: Value) -> str:
    """A value as the command line parses it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def format_values(values: Mapping[str, Value], digits: int | None = None) -> str:
    """KEY=VALUE of each; with `digits`, floats are rounded to that many significant digits."""
    short = {k: f"{v:.{digits}g}" if digits and type(v) is float else format_value(v) for k, v in values.items()}
    return " ".join(f"{key}={value}" for key, value in short.items())
