"""Configs in three forms: frozen dataclasses (validated), ConfigDicts (what config files return) and JSON.

The dataclasses are the truth: whatever form a config comes in, it is converted to one, which checks types and ranges.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from ml_collections import ConfigDict, config_dict

from lm.errors import UserError

Config = TypeVar("Config")

# Larger integers fit no array.
_LARGEST = 2**63 - 1


def to_config_dict(config: Any) -> ConfigDict:
    """A dataclass, nested ones included, as a locked, type-checked ConfigDict."""
    values = {}
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            value = to_config_dict(value)
        elif value is None:
            value = config_dict.placeholder(type_without_none(hints[field.name]))
        values[field.name] = value
    made = ConfigDict(values).lock()
    object.__setattr__(made, "kind", type(config).__name__)  # ConfigDict's own assignment would make it a value
    return made


def kind_of(config: Any) -> str:
    """The name of the dataclass that a config is, or was made from; empty for others."""
    if isinstance(config, type):
        return ""
    if dataclasses.is_dataclass(config):
        return type(config).__name__
    return getattr(config, "__dict__", {}).get("kind", "")


def as_nested_dict(config: Any) -> dict[str, Any]:
    """A dataclass, ConfigDict or dict as new dicts, nested in each other."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return dataclasses.asdict(config)
    return {
        name: as_nested_dict(value) if isinstance(value, dict | ConfigDict) else value for name, value in config.items()
    }


def from_config_dict(cls: type[Config], values: Any, prefix: str = "config") -> Config:
    """The dataclass with these values; missing ones take their defaults.

    Args:
      cls: which dataclass.
      values: a ConfigDict, or the dict that JSON gives.
      prefix: how to name the values in messages.

    Raises:
      UserError: for an unknown or missing key, a value of the wrong type, or one that the dataclass rejects.
    """
    hints = typing.get_type_hints(cls)
    arguments = {}
    for name, value in values.items():
        if name not in hints:
            raise UserError(f"{prefix}.{name} is not a known config key; known keys: {', '.join(hints)}")
        arguments[name] = _convert(hints[name], value, f"{prefix}.{name}")
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]  # a TypeVar cannot be bound to dataclasses
        if field.name not in arguments and field.default is field.default_factory is dataclasses.MISSING:
            raise UserError(f"{prefix}.{field.name} is missing: set it")
    return cls(**arguments)


def _convert(hint: Any, value: Any, name: str) -> Any:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if not isinstance(value, dict | ConfigDict):
            raise UserError(f"{name} must be a group of values, got {value!r}")
        return from_config_dict(hint, value, name)
    if value is None and type(None) in typing.get_args(hint):
        return None
    kind = type_without_none(hint)
    if kind is tuple:
        return _convert_elements(hint, value, name)
    if kind is float and type(value) is int and abs(value) <= _LARGEST:
        return float(value)
    if kind is int and type(value) is float and value.is_integer() and abs(value) <= _LARGEST:
        return int(value)
    if type(value) is not kind:
        raise UserError(f"{name} must be of type {kind.__name__}, got {value!r}")
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise UserError(f"{name} must fit in 64 bits, got a number of {value.bit_length()} bits")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name} must be a finite number, got {value}")
    return value


def _convert_elements(hint: Any, values: Any, name: str) -> tuple:
    kind = element_type(hint)
    if isinstance(values, str) or not isinstance(values, list | tuple):
        raise UserError(f"{name} must be a tuple of {kind.__name__}, got {values!r}: for one element, add a comma")
    return tuple(_convert_element(kind, value, f"{name}[{place}]") for place, value in enumerate(values))


def _convert_element(kind: type, value: Any, name: str) -> Any:
    """Like `_convert`, and text and numbers become each other: class names may be numbers."""
    if kind is str and isinstance(value, bool | int | float):
        return str(value)
    if kind in (int, float) and isinstance(value, str):
        return number(kind, value, name)
    return _convert(kind, value, name)


def number(kind: type, text: str, name: str) -> int | float:
    """A finite number from text; for integers also as 1e3 or 1_000.

    Raises:
      UserError: if the text is no such number.
    """
    wanted = "an integer" if kind is int else "a number"
    try:
        value = float(text)
        if kind is int and math.isfinite(value) and value.is_integer():
            return int(text) if text.strip().lstrip("+-").replace("_", "").isdigit() else int(value)
    except ValueError:
        raise UserError(f"{name} must be {wanted}, got {text!r}") from None
    if not math.isfinite(value):
        raise UserError(f"{name} must be a finite number, got {text}")
    if kind is int:
        raise UserError(f"{name} must be {wanted}, got {text!r}")
    return value


def element_type(hint: Any) -> type:
    """The T of `tuple[T, ...]`, or of `tuple[T, ...] | None`."""
    return typing.get_args(_without_none(hint))[0]


def type_without_none(hint: Any) -> type:
    """The T of `T | None`; other types as they are, without their parameters."""
    hint = _without_none(hint)
    return typing.get_origin(hint) or hint


def _without_none(hint: Any) -> Any:
    if isinstance(hint, types.UnionType):
        return next(kind for kind in typing.get_args(hint) if kind is not type(None))
    return hint


def check_seed(name: str, value: int) -> None:
    """Checks that random generators tell a seed from others; JAX takes it modulo 2^32.

    Raises:
      UserError: if not.
    """
    if not 0 <= value < 2**32:
        raise UserError(f"{name} must be from 0 to {2**32 - 1}, got {value}")


def refuse_idle(config: Any, prefix: str, idle: Mapping[str, str]) -> None:
    """Checks that settings without effect have their defaults.

    Args:
      config: a dataclass.
      prefix: of its settings' names, such as "config.model".
      idle: names of the settings without effect, each with the name of the setting that disables it.

    Raises:
      UserError: if one of them is not at its default.
    """
    for field in dataclasses.fields(config):
        cause = idle.get(field.name)
        if cause is not None and getattr(config, field.name) != field.default:
            raise UserError(
                f"{prefix}.{field.name} has no effect with {prefix}.{cause}={getattr(config, cause)}: leave it out "
                f"(default: {field.default!r})"
            )


def idle_beside(name: str, settings: Mapping[str, Collection[str]]) -> dict[str, str]:
    """The settings in a table that `name` does not use, for `refuse_idle`; none for a name that is not in the table."""
    own = settings.get(name)
    if own is None:
        return {}
    return {setting: "name" for of_one in settings.values() for setting in of_one if setting not in own}


def flatten(config: Any) -> dict[str, Any]:
    """The values of a (nested) dataclass or dict by dotted name; tuples become lists, to compare equal to JSON."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        config = dataclasses.asdict(config)
    flat = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat.update({f"{name}.{key}": inner for key, inner in flatten(value).items()})
        else:
            flat[name] = list(value) if isinstance(value, tuple) else value
    return flat


def differences(one: Any, other: Any) -> dict[str, tuple[Any, Any]]:
    """The dotted names where two configs differ, with both values; None for a missing one."""
    flat_one, flat_other = flatten(one), flatten(other)
    names = list(flat_one) + [name for name in flat_other if name not in flat_one]
    pairs = {name: (flat_one.get(name), flat_other.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
