"""Published tensors to parameters on their devices, one at a time, and back.

Axes: L layers of a scanned stack.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from lm.errors import UserError
from lm.models.parameter_paths import by_path, path_name, shortened_list
from lm.modules.config import ModelConfig
from lm.pretrained.family import Family
from lm.pretrained.rules import Rule
from lm.pretrained.tensors import Tensors
from lm.types import Params

_BODY = "body/"
_SCANNED, _LAYER = "/layers/", re.compile(r"/layer_(\d+)/")


def parts_present(family: Family, config: ModelConfig, tensors: Tensors) -> tuple[str, ...]:
    """Which of the parts that a model of the family may lack are in the file, whole."""
    names = _Names(family, tensors)
    return tuple(
        part
        for part, rules in family.parts.items()
        if all(name in names for rule in rules(config) for name in rule.theirs)
    )


def read_parameters(
    family: Family,
    config: ModelConfig,
    parts: tuple[str, ...],
    tensors: Tensors,
    like: Params,
    task: str = "",
    advance: Callable[[], object] = lambda: None,
) -> Params:
    """The parameters of a published model.

    The largest are read first, so that in the end little is in memory besides the parameters.

    Args:
      family: of the model.
      config: its shape.
      parts: which of `Family.parts` to read.
      tensors: the file.
      like: names, shapes, dtypes and shardings of the parameters.
      task: that the model has a head for, a key of `Family.heads`; "": none.
      advance: is called after each parameter.

    Raises:
      UserError: if a tensor is missing, has another shape, or is not used.
    """
    rules = family.all_rules(config, parts, task)
    names = _Names(family, tensors)
    leaves = _without_body(like)
    _check(rules, names, config, leaves)
    found: dict[str, jax.Array] = {}
    for paths, of_layers in sorted(_by_leaf(rules, leaves).items(), key=lambda group: -_size(leaves, group[0])):
        hosts = _read(of_layers, names, [leaves[path] for path in paths], _SCANNED in paths[0])
        for path, host in zip(paths, hosts, strict=True):
            found[path] = _placed(host, leaves[path])
            advance()
    return jax.tree_util.tree_map_with_path(lambda path, _: found[path_name(path).removeprefix(_BODY)], like)


def published_tensors(
    family: Family,
    config: ModelConfig,
    parts: tuple[str, ...],
    params: Params,
    dtype: Any = None,
    task: str = "",
) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of a published model, one at a time: names and contiguous arrays.

    Args:
      family: that the model belongs to.
      config: its shape.
      parts: which of `Family.parts` it has.
      params: its parameters.
      dtype: of the tensors; None: that of the parameters.
      task: that the model has a head for, a key of `Family.heads`; "": none.
    """
    leaves = _without_body(params)
    is_bare = config.architecture == "encoder" and "prediction_head" not in parts and not task
    for rule in family.all_rules(config, parts, task):
        arrays = [_of_layer(leaves, path) for path in rule.ours]
        for name, array in zip(rule.theirs, rule.layout.theirs(arrays), strict=True):
            name = name.removeprefix(family.prefix) if is_bare else name
            yield name, np.ascontiguousarray(array if dtype is None else array.astype(dtype))


class _Names:
    """The tensors of a file by the names in the rules, with or without the family's prefix."""

    def __init__(self, family: Family, tensors: Tensors):
        self.family, self.tensors = family, tensors

    def __contains__(self, name: str) -> bool:
        return self.stored(name) in self.tensors.shapes

    def stored(self, name: str) -> str:
        """The name in the file."""
        return name if name in self.tensors.shapes else name.removeprefix(self.family.prefix)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape in the file."""
        return tuple(self.tensors.shapes[self.stored(name)])

    def read(self, name: str) -> np.ndarray:
        """The array."""
        return self.tensors.read(self.stored(name))


def _check(rules: list[Rule], names: _Names, config: ModelConfig, leaves: Mapping[str, Any]) -> None:
    """Checks, before anything is read, that every tensor is there, has its shape, and is used."""
    place, family = names.tensors.path, names.family
    wanted = [name for rule in rules for name in rule.theirs]
    if missing := [name for name in wanted if name not in names]:
        raise UserError(f"{place} lacks {shortened_list(missing)}: a {family.name} model of this config.json has it")
    misfits = [
        f"{name} is {names.shape(name)}, and config.json says {expected}"
        for rule in rules
        for name, expected in zip(rule.theirs, rule.their_shapes(_shapes(rule, leaves)), strict=True)
        if names.shape(name) != expected
    ]
    if misfits:
        raise UserError(f"{place}: {shortened_list(misfits)}: weights and config.json are of different models")
    # Parts that are not wanted may be there.
    of_parts = [name for rules in family.parts.values() for rule in rules(config) for name in rule.theirs]
    used = {names.stored(name) for name in (*wanted, *of_parts)}
    unused = [
        name
        for name in names.tensors.shapes
        if name not in used and not any(re.search(pattern, name) for pattern in family.unused)
    ]
    if unused:
        raise UserError(
            f"{place} has weights that a {family.name} model here does not use, so it would not be the same model: "
            f"{shortened_list(sorted(unused))}"
        )


def _without_body(params: Params) -> dict[str, Any]:
    """The leaves by their paths in a model alone: what a head is put on is called `body`."""
    return {path.removeprefix(_BODY): leaf for path, leaf in by_path(params).items()}


def _by_leaf(rules: list[Rule], leaves: Mapping[str, Any]) -> dict[tuple[str, ...], list[Rule]]:
    """The rules by the leaves that they fill: one rule, or with scanned layers one for each layer, in order."""
    found: dict[tuple[str, ...], list[Rule]] = defaultdict(list)
    for rule in rules:
        found[tuple(_leaf(leaves, path) for path in rule.ours)].append(rule)
    return found


def _leaf(leaves: Mapping[str, Any], path: str) -> str:
    """The leaf that holds a parameter of an unrolled stack: its own, or the stacked one."""
    return path if path in leaves else _LAYER.sub(_SCANNED, path)


def _shapes(rule: Rule, leaves: Mapping[str, Any]) -> list[tuple[int, ...]]:
    return [leaves[path].shape if path in leaves else leaves[_leaf(leaves, path)].shape[1:] for path in rule.ours]


def _size(leaves: Mapping[str, Any], paths: tuple[str, ...]) -> int:
    return sum(leaves[path].size for path in paths)


def _read(rules: list[Rule], names: _Names, leaves: list[Any], is_stacked: bool) -> list[np.ndarray]:
    """The host arrays of some leaves, which hold one layer, or are stacked of all."""
    if not is_stacked:
        arrays = rules[0].layout.ours([names.read(name) for name in rules[0].theirs])
        return [np.ascontiguousarray(array, leaf.dtype) for array, leaf in zip(arrays, leaves, strict=True)]
    hosts = [np.empty(leaf.shape, leaf.dtype) for leaf in leaves]
    for number, rule in enumerate(rules):
        for host, array in zip(hosts, rule.layout.ours([names.read(name) for name in rule.theirs]), strict=True):
            host[number] = array
    return hosts


def _placed(host: np.ndarray, leaf: Any) -> jax.Array:
    if leaf.sharding is None:
        return jax.device_put(host)
    return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: host[index])


def _of_layer(leaves: Mapping[str, Any], path: str) -> np.ndarray:
    if path in leaves:
        return np.asarray(leaves[path])
    layer = _LAYER.search(path)
    assert layer is not None, f"{path} is neither a parameter nor in a stack"
    return np.asarray(leaves[_leaf(leaves, path)][int(layer[1])])
