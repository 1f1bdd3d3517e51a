"""Config values as text: what --config.KEY=VALUE and the parameters of a sweep say.

The type hints of the config's dataclass say how to read a value; nothing is evaluated.
"""

import ast
import dataclasses
import difflib
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lm.configuration import element_type, number, type_without_none
from lm.errors import UserError

_BOOLEANS = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}
# What other tools call it; initials such as "lr" and beginnings such as "warmup" are found without a list.
_SYNONYMS = {
    "beta1": ("b1",),
    "beta2": ("b2",),
    "block_size": ("sequence_length", "max_length"),
    "context_length": ("max_length", "sequence_length"),
    "d_ff": ("feed_forward_width",),
    "d_model": ("width",),
    "dataset": ("source", "train"),
    "depth": ("layers",),
    "dim": ("width",),
    "eps": ("epsilon",),
    "file": ("source", "train"),
    "grad_clip": ("clip_norm",),
    "gradient_accumulation_steps": ("micro_batches",),
    "hidden_size": ("width",),
    "intermediate_size": ("feed_forward_width",),
    "iterations": ("steps",),
    "labels": ("classes",),
    "max_grad_norm": ("clip_norm",),
    "max_steps": ("steps",),
    "n_embd": ("width",),
    "n_head": ("heads",),
    "n_layer": ("layers",),
    "num_train_epochs": ("epochs",),
    "optimizer": ("name",),
    "path": ("source", "train"),
    "rate": ("learning_rate",),
    "seq_len": ("sequence_length", "max_length"),
    "type": ("name", "kind"),
}


def with_overrides(cls: type, values: dict[str, Any], overrides: Mapping[str, str]) -> dict[str, Any]:
    """Sets values of a nested dict, in place, and returns it.

    Args:
      cls: the dataclass that the values are for.
      values: of the config.
      overrides: text by dotted name.

    Raises:
      UserError: for an unknown key, or text that is not of its type.
    """
    hints = dict(leaves(cls))
    for key, text in overrides.items():
        value = parse_value(hint_of(key, hints), text, f"config.{key}")
        *path, last = key.split(".")
        group = values
        for name in path:
            group = group.setdefault(name, {})
            if not isinstance(group, dict):
                raise UserError(f"config.{key}: {name} must be a group of values, got {group!r}")
        group[last] = value
    return values


def leaves(cls: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted name and the type hint of every value of a dataclass and those within it."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from leaves(hint, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, hint


def hint_of(key: str, hints: Mapping[str, Any]) -> Any:
    """The type hint of a key.

    Raises:
      UserError: if there is no such key; the message suggests similar ones.
    """
    if key not in hints:
        raise UserError(_explain_unknown(key, hints))
    return hints[key]


def parse_value(hint: Any, text: str, name: str) -> Any:
    """The value of this type that text stands for.

    Raises:
      UserError: if there is none; `name` is what the message calls the value.
    """
    kind, optional = type_without_none(hint), type(None) in typing.get_args(hint)
    if text.lower() in ("none", "") and optional:
        return None
    if text == "None":
        leave = f": for no text, leave it empty ({name}=)" if kind is str else ""
        raise UserError(f"{name} cannot be None{leave}")
    if kind is tuple:
        of = element_type(hint)
        return tuple(parse_value(of, one, name) if of is not str else one for one in _elements(text, name))
    if kind is bool:
        if text.lower() not in _BOOLEANS:
            raise UserError(f"{name} must be true or false, got {text!r}")
        return _BOOLEANS[text.lower()]
    return number(kind, text, name) if kind in (int, float) else text


def _elements(text: str, name: str) -> list[str]:
    """The elements of "('a', 'b')", "['a', 'b']", "'a', 'b'" or "a,b", as typed."""
    text = text.strip()
    if (literal := _literal_elements(text)) is not None:
        return literal
    parts = text.split(",")
    if len(parts) > 1 and not parts[-1]:
        parts.pop()
    brackets = text[:1] + text[-1:] in ("()", "[]", "{}")
    if brackets or (len(parts) > 1 and any(not part or {" ", "'", '"'} & set(part) for part in parts)):
        raise UserError(f"{name}={text} is ambiguous: quote each element, \"('one','two')\", or write one,two")
    return parts


def _literal_elements(text: str) -> list[str] | None:
    """The elements of a Python literal: what strings contain, and everything else as written; None for other text."""
    if not text:
        return []
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    nodes = tree.elts if isinstance(tree, ast.Tuple | ast.List) else [tree]
    found = []
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
        elif isinstance(node.operand if isinstance(node, ast.UnaryOp) else node, ast.Constant):
            found.append(ast.get_source_segment(text, node) or "")
        else:
            return None
    return found


def _explain_unknown(key: str, hints: Mapping[str, Any]) -> str:
    inside = [name for name in hints if name.startswith(f"{key}.")]
    if inside:
        return f"config.{key} is a group of values: set one of them, such as config.{inside[0]}"
    close = similar_keys(key, list(hints))
    if close:
        hint = f"did you mean {' or '.join(f'config.{name}' for name in close)}?"
    else:
        group = key.rpartition(".")[0]
        known = [name for name in hints if name.rpartition(".")[0] == group] or sorted({n.split(".")[0] for n in hints})
        hint = f"known here: {', '.join(known)}"
    return f"config.{key} is not a known config key; {hint}"


def similar_keys(key: str, known: Sequence[str], most: int = 3) -> list[str]:
    """The known dotted names that someone who wrote `key` may have meant, likeliest first."""
    group, _, tail = key.rpartition(".")
    meant = [name for name in known if _is_short_for(tail, name.rpartition(".")[2])]
    in_group = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == group}
    close = [in_group[last] for last in difflib.get_close_matches(tail, in_group, n=most)]
    found = [*(name for name in meant if name in in_group.values()), *close]
    found = found or [*meant, *difflib.get_close_matches(key, known, n=most)]
    return list(dict.fromkeys(found))[:most]


def _is_short_for(written: str, name: str) -> bool:
    initials = "".join(word[0] for word in name.split("_"))
    return written in (name, initials) or name in _SYNONYMS.get(written, ()) or name.startswith(f"{written}_")
