"""Published tensors to parameters on their devices, one at a time, and back.

Axes: L layers of a scanned stack.
"""

import dataclasses
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


def shape_as_stored(family: Family, config: ModelConfig, tensors: Tensors) -> ModelConfig:
    """The shape, corrected by what config.json does not say of some models, and only the tensors tell.

    As in transformers 5, an output matrix that differs from the token embedding counts whatever config.json says of
    tied ones. A bias of the logits may be missing where it would be zero.

    Args:
      family: of the model.
      config: its shape by config.json.
      tensors: the file.
    """
    names = _Names(family, tensors)
    if config.tie_embeddings:
        untied = dataclasses.replace(config, tie_embeddings=False)
        found = {rule.ours[0]: rule.theirs[0] for rule in family.rules(untied)}
        output, embedding = found.get("output", ""), found["token_embedding/embedding"]
        if output in names and embedding in names and not _are_equal(names, output, embedding):
            config = untied
    if config.output_bias:
        of_bias = [name for rule in family.rules(config) for name in rule.theirs if "output_bias" in rule.ours]
        config = dataclasses.replace(config, output_bias=all(name in names for name in of_bias))
    return config


def dropped_weights(family: Family, tensors: Tensors) -> tuple[str, ...]:
    """Which weights of the file belong to a head that has no counterpart here, so that the model is without it."""
    return tuple(name for name in tensors.shapes if any(re.search(pattern, name) for pattern in family.dropped))


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
    # The class of an encoder's body alone has names without the prefix; all other classes have a head.
    is_bare = config.architecture == "encoder" and not task and family.model(parts) == family.models[()]
    copies = family.copies if family.copies_if_untied and not config.tie_embeddings else {}
    for rule in family.all_rules(config, parts, task):
        arrays = [_of_layer(leaves, path) for path in rule.ours]
        for name, array in zip(rule.theirs, rule.layout.theirs(arrays), strict=True):
            stored = np.ascontiguousarray(array if dtype is None else array.astype(dtype))
            yield name.removeprefix(family.prefix) if is_bare else name, stored
            yield from ((copy, stored) for copy, original in copies.items() if original == name)


class _Names:
    """The tensors of a file by the names in the rules, with or without the family's prefix, or by their old names."""

    def __init__(self, family: Family, tensors: Tensors):
        self.family, self.tensors = family, tensors

    def __contains__(self, name: str) -> bool:
        return self.stored(name) in self.tensors.shapes

    def stored(self, name: str) -> str:
        """The name in the file; if it has none, another one that is not in it."""
        names = [
            name,
            *(name.removesuffix(end) + old for end, old in self.family.old_names.items() if name.endswith(end)),
        ]
        bare = [each.removeprefix(self.family.prefix) for each in names]
        return next((each for each in names + bare if each in self.tensors.shapes), bare[0])

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
    for copy, original in family.copies.items():
        if copy in names and original in names and copy not in wanted:
            _check_equal(names, copy, original)
    # Parts that are not wanted may be there, if they are whole.
    present = parts_present(family, config, names.tensors)
    of_parts = [name for part in present for rule in family.parts[part](config) for name in rule.theirs]
    used = {names.stored(name) for name in (*wanted, *family.copies, *of_parts)}
    unused = [
        name
        for name in names.tensors.shapes
        if name not in used and not any(re.search(pattern, name) for pattern in family.unused + family.dropped)
    ]
    if unused:
        raise UserError(
            f"{place} has weights that a {family.name} model here does not use, so it would not be the same model: "
            f"{shortened_list(sorted(unused))}"
        )


def _without_body(params: Params) -> dict[str, Any]:
    """The leaves by their paths in a model alone: what a head is put on is called `body`."""
    return {path.removeprefix(_BODY): leaf for path, leaf in by_path(params).items()}


def _check_equal(names: _Names, copy: str, original: str) -> None:
    if not _are_equal(names, copy, original):
        raise UserError(
            f"{names.tensors.path}: {names.stored(copy)} differs from {names.stored(original)}, and a "
            f"{names.family.name} model here has one array for both"
        )


def _are_equal(names: _Names, first: str, second: str) -> bool:
    """Whether two tensors are the same bits."""
    if names.shape(first) != names.shape(second):
        return False
    one, other = names.read(first), names.read(second)
    return one.dtype == other.dtype and np.array_equal(one.view(np.uint8), other.view(np.uint8))


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
    # A layer may lack what the others have and the stack holds for all: it is not used.
    hosts = [np.zeros(leaf.shape, leaf.dtype) for leaf in leaves]
    for rule in rules:
        number = _layer_number(rule.ours[0])
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
    return np.asarray(leaves[_leaf(leaves, path)][_layer_number(path)])


def _layer_number(path: str) -> int:
    layer = _LAYER.search(path)
    assert layer is not None, f"{path} is neither a parameter nor in a stack"
    return int(layer[1])
