"""Configs in three forms: frozen dataclasses (validated), ConfigDicts (overridable by flags) and JSON.

The dataclasses are the truth. A config file returns one of them as a ConfigDict, flags change single values, and the
experiment converts the result back, which validates it.
"""

import dataclasses
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from ml_collections import ConfigDict, config_dict

from lm.errors import UserError

Config = TypeVar("Config")


def to_config_dict(config: Any) -> ConfigDict:
    """A dataclass, nested ones included, as a locked, type-checked ConfigDict."""
    values = {}
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            value = to_config_dict(value)
        elif value is None:
            value = config_dict.placeholder(_type_without_none(hints[field.name]))
        values[field.name] = value
    return ConfigDict(values).lock()


def from_config_dict(cls: type[Config], values: Any, prefix: str = "config") -> Config:
    """The dataclass with these values; missing ones take their defaults.

    Args:
      cls: which dataclass.
      values: a ConfigDict, or the dict that JSON gives.
      prefix: how to name the values in messages.

    Raises:
      UserError: for an unknown key, a value of the wrong type, or one that the dataclass rejects.
    """
    hints = typing.get_type_hints(cls)
    arguments = {}
    for name, value in values.items():
        if name not in hints:
            raise UserError(f"{prefix}.{name} is not a known config key; known keys: {', '.join(hints)}")
        arguments[name] = _convert(hints[name], value, f"{prefix}.{name}")
    return cls(**arguments)


def _convert(hint: Any, value: Any, name: str) -> Any:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if not isinstance(value, dict | ConfigDict):
            raise UserError(f"{name} must be a group of values, got {value!r}")
        return from_config_dict(hint, value, name)
    if value is None and type(None) in typing.get_args(hint):
        return None
    kind = _type_without_none(hint)
    if kind is tuple and isinstance(value, list | tuple):
        return tuple(value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise UserError(f"{name} must be of type {kind.__name__}, got {value!r}")
    return value


def _type_without_none(hint: Any) -> type:
    if isinstance(hint, types.UnionType):
        hint = next(kind for kind in typing.get_args(hint) if kind is not type(None))
    return typing.get_origin(hint) or hint


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
