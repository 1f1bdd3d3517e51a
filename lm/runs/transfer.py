"""Parameters from another run: which are loaded, which are new, which are left over."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.console import Console
from lm.errors import UserError
from lm.models.parameter_paths import by_path, path_name, shortened_list
from lm.types import Params


@dataclasses.dataclass(frozen=True)
class Transfer:
    """The outcome of a transfer of parameters.

    Attributes:
      params: initial parameters: loaded where possible, else fresh.
      loaded: paths of loaded parameters.
      new: paths of parameters that the source doesn't have.
      left: paths of the source's parameters that are not used.
    """

    params: Params
    loaded: tuple[str, ...]
    new: tuple[str, ...]
    left: tuple[str, ...]

    def print(self, console: Console, source: str) -> None:
        """Prints the lists, grouping the layers of a stack."""
        console.print(f"parameters from {source}:")
        for name, paths in {"loaded": self.loaded, "new": self.new, "unused": self.left}.items():
            console.print(f"  {name} {len(paths)}: {', '.join(grouped(paths)) or 'none'}")


def transfer(fresh: Params, source: Params, name: str) -> Transfer:
    """Takes the parameters of a source whose paths match, distinguishing a model's body from its head.

    A path matches with or without a leading `body/`: a pretrained model is the body of a fine-tuned one. A head of
    another shape is new, since other classes need another head.

    Args:
      fresh: random parameters of the model to train.
      source: parameters of the source run.
      name: of the source, for messages.

    Raises:
      UserError: if parameters of the body have other shapes, or none match.
    """
    _check_layout(fresh, source, name)
    theirs = {_without_body(path): (path, leaf) for path, leaf in by_path(source).items()}
    loaded, new, misfits, used = [], [], [], set()
    chosen = {}
    for path, leaf in by_path(fresh).items():
        their_path, their_leaf = theirs.get(_without_body(path), (None, None))
        if their_leaf is not None and their_leaf.shape == leaf.shape:
            chosen[path] = np.asarray(their_leaf, leaf.dtype)
            loaded.append(path)
            used.add(their_path)
            continue
        if their_leaf is not None and not path.startswith("head/"):
            misfits.append(f"{path} is {leaf.shape} here and {their_leaf.shape} there")
        chosen[path] = leaf
        new.append(path)
    if misfits:
        raise UserError(f"config.init_from={name} doesn't fit this model: {shortened_list(misfits)}")
    if not loaded:
        raise UserError(f"config.init_from={name} has no parameter of this model: is it of another architecture?")
    left = tuple(path for path in by_path(source) if path not in used)
    params = jax.tree_util.tree_map_with_path(lambda path, _: chosen[path_name(path)], fresh)
    return Transfer(params, tuple(loaded), tuple(new), left)


def _check_layout(fresh: Params, source: Params, name: str) -> None:
    """Checks that both keep the parameters of layers alike, since paths tell them apart.

    Raises:
      UserError: if one of them has them stacked.
    """
    stacked, alone = (
        [any(part in path for path in by_path(params)) for params in (fresh, source)]
        for part in ("/layers/", "/layer_0/")
    )
    if stacked != stacked[::-1] and alone != alone[::-1]:
        raise UserError(
            f"config.init_from={name} has the parameters of its layers {'stacked' if stacked[1] else 'one by one'}: "
            f"set config.model.scan_layers={stacked[1]}"
        )


def grouped(paths: tuple[str, ...]) -> list[str]:
    """Paths with layer numbers merged into ranges, so that a stack of twelve layers is one entry."""
    numbers: dict[str, list[int]] = {}
    for path in paths:
        match = re.search(r"layer_(\d+)", path)
        key = re.sub(r"layer_\d+", "layer_*", path, count=1)
        numbers.setdefault(key, []).extend([int(match[1])] if match else [])
    ranges = {
        key: f"layer_{min(each)}-{max(each)}" if len(each) > 1 else f"layer_{each[0]}" if each else ""
        for key, each in numbers.items()
    }
    return [key.replace("layer_*", ranges[key]) for key in numbers]


def with_embedding(params: Params, table_VD: np.ndarray) -> Params:
    """The parameters with this token embedding.

    Raises:
      UserError: if the model has another width.
    """

    def replaced(path: tuple, leaf: Any) -> Any:
        if not path_name(path).endswith("token_embedding/embedding"):
            return leaf
        if leaf.shape != table_VD.shape:
            raise UserError(
                f"config.word_vectors has vectors of {table_VD.shape[1]} numbers and config.model.width is "
                f"{leaf.shape[1]}: set it to {table_VD.shape[1]}"
            )
        return jnp.asarray(table_VD, leaf.dtype)

    return jax.tree_util.tree_map_with_path(replaced, params)


def _without_body(path: str) -> str:
    return path.removeprefix("body/")
