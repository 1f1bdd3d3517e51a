"""A search space: which config values to vary, and over what.

A parameter is written as a person would type it:

    optimizer.learning_rate=1e-4..1e-2 log    every value between, as likely in each decade
    model.dropout=0.0..0.3                    every value between, integers only where the config has an integer
    model.layers=2,4,6                        one of these

Values are read by the type that the config's own value has, exactly as the command line reads --config.KEY=VALUE, and
never evaluated.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from ml_collections import ConfigDict

from lm.command_line import define_config_file, parse
from lm.configuration import from_config_dict
from lm.errors import UserError

Value = bool | int | float | str
Values = dict[str, Value]
Config = TypeVar("Config")

_NUMBER = r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})(\s+log)?")


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One config value to vary.

    Attributes:
      key: its dotted name.
      choices: what it may be, in the order given; empty for a range.
      low: the least of a range.
      high: the greatest of a range, itself included.
      log: whether the logarithm is uniform.
    """

    key: str
    choices: tuple[Value, ...] = ()
    low: int | float = 0
    high: int | float = 0
    log: bool = False

    @property
    def size(self) -> float:
        """How many values there are; infinite for a range of real numbers."""
        if self.choices:
            return len(self.choices)
        return self.high - self.low + 1 if isinstance(self.low, int) else math.inf


def load_base(file: str, overrides: Mapping[str, str] | None = None) -> ConfigDict:
    """A config file as the command line loads it, FILE.py[:arguments], with values changed.

    Raises:
      UserError: as the command line says it, for a missing file, an unknown key or a value of another type.
    """
    changes = [f"--config.{key}={value}" for key, value in (overrides or {}).items()]
    return parse(define_config_file, ["sweep", f"--config={file}", *changes], "")["config"].value


def read_space(texts: Sequence[str], file: str) -> tuple[Parameter, ...]:
    """Reads parameters.

    Args:
      texts: as in this file's head.
      file: the config file whose values they change.

    Raises:
      UserError: for a text that is no parameter, a key that the config doesn't have, or a value of another type.
    """
    space = tuple(_read(text, file) for text in texts)
    keys = [parameter.key for parameter in space]
    for key in keys:
        if keys.count(key) > 1:
            raise UserError(f"config.parameters names {key} twice: leave one out")
    return space


def _read(text: str, file: str) -> Parameter:
    key, equals, rest = (part.strip() for part in text.partition("="))
    if not (equals and rest and re.fullmatch(r"\w+(\.\w+)*", key)):
        raise UserError(f"config.parameters: {text!r} must be KEY=LOW..HIGH, KEY=LOW..HIGH log or KEY=A,B,C")
    if found := _RANGE.fullmatch(rest):
        return _read_range(text, key, found, file)
    if re.match(rf"{_NUMBER}\.\.", rest) or rest.endswith(" log"):
        raise UserError(f"config.parameters: {text!r}: a range is LOW..HIGH or LOW..HIGH log, with numbers like 1e-4")
    choices = tuple(_read_value(text, key, choice.strip(), file) for choice in rest.split(","))
    if len(set(choices)) < len(choices):
        raise UserError(f"config.parameters: {text!r} has a value twice: leave one out")
    return Parameter(key, choices)


def _read_range(text: str, key: str, found: re.Match, file: str) -> Parameter:
    low, high = (_read_value(text, key, end, file) for end in found.group(1, 2))
    if type(low) not in (int, float):
        raise UserError(f"config.parameters: {text!r}: {key} is no number: list its values as KEY=A,B,C")
    if low >= high:
        raise UserError(f"config.parameters: {text!r}: {found[1]} must be less than {found[2]}")
    if found[3] and low <= 0:
        raise UserError(f"config.parameters: {text!r}: a range with log must be above 0")
    return Parameter(key, low=low, high=high, log=bool(found[3]))


def _read_value(text: str, key: str, value: str, file: str) -> Value:
    try:
        config = load_base(file, {key: value})
    except UserError as error:
        raise UserError(f"config.parameters: {text!r}: {error}") from error
    for name in key.split("."):
        config = config[name]
    if not isinstance(config, Value):
        raise UserError(f"config.parameters: {text!r}: only numbers, true or false, and texts can be varied")
    if isinstance(config, float) and not math.isfinite(config):
        raise UserError(f"config.parameters: {text!r}: {value} is not a finite number")
    return config


def space_size(space: Sequence[Parameter]) -> float:
    """How many points there are."""
    return math.prod(parameter.size for parameter in space)


def grid(space: Sequence[Parameter]) -> list[Values]:
    """Every point, the last parameter moving fastest.

    Raises:
      UserError: if a parameter is a range.
    """
    for parameter in space:
        if not parameter.choices:
            raise UserError(f"config.method=grid needs a list of values, {parameter.key}=A,B,C, instead of a range")
    keys = [parameter.key for parameter in space]
    return [dict(zip(keys, point, strict=True)) for point in itertools.product(*(one.choices for one in space))]


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """A config dataclass with values changed by their dotted names, all at once.

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
    """As the command line reads it back."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def format_values(values: Mapping[str, Value], digits: int | None = None) -> str:
    """KEY=VALUE of each, numbers cut to so many significant digits for the eye."""
    short = {k: f"{v:.{digits}g}" if digits and type(v) is float else format_value(v) for k, v in values.items()}
    return " ".join(f"{key}={value}" for key, value in short.items())
