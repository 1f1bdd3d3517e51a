"""How a mesh of devices shares a model: a short table of rules, from parameter paths to the axes that split them.

Mesh axes: `data` copies the parameters; `fsdp` splits them over the same devices as the batch; `tensor` splits them
inside each layer.
"""

import re
from typing import Any, TypeVar

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lm.models.parameter_paths import path_name

Tree = TypeVar("Tree")

# The first pattern found in a parameter's path decides. A spec covers the last axes, so that a leading axis of scanned
# layers stays whole. Parameters without a rule are replicated.
RULES: tuple[tuple[str, P], ...] = (
    (r"(token_embedding/embedding|output)$", P("tensor", "fsdp")),
    (r"(query_key_value|query|key_value|up|gate)/kernel$", P("fsdp", "tensor")),
    (r"(attention/output|down)/kernel$", P("tensor", "fsdp")),
    (r"(query_key_value|query|key_value|up|gate|prediction_head)/bias$", P("tensor")),
    (r"output_bias$", P("tensor")),
    (r"(prediction_head/dense|pooler|embedding_projection)/kernel$", P("fsdp", None)),
)


def parameter_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    """The sharding of one parameter, or of optimizer state that has a parameter's path and shape.

    An axis whose size its mesh axis does not divide stays whole, so that any model runs on any mesh.
    """

    def splits(axis: str | None, size: int) -> bool:
        return axis is not None and mesh.shape[axis] > 1 and size % mesh.shape[axis] == 0

    for pattern, spec in RULES:
        if re.search(pattern, path) and len(shape) >= len(spec):
            axes = (None,) * (len(shape) - len(spec)) + tuple(spec)
            split = [axis if splits(axis, size) else None for axis, size in zip(axes, shape, strict=True)]
            # P("fsdp") and P("fsdp", None) mean the same but compile twice.
            while split and split[-1] is None:
                split.pop()
            return P(*split)
    return P()


def placed_shapes(shapes: Tree, mesh: Mesh | None) -> Tree:
    """A tree of shapes with the sharding of each array; without a mesh this host's first device holds them all."""
    one_device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shardings = jax.tree.map(lambda _: one_device, shapes) if mesh is None else tree_shardings(shapes, mesh)
    return jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, shardings)


def tree_shardings(tree: Tree, mesh: Mesh) -> Tree:
    """A `NamedSharding` for each array of a tree (or of a tree of shapes) of parameters or of a training state."""

    def sharding(path: tuple, leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, parameter_spec(path_name(path), leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(sharding, tree)
