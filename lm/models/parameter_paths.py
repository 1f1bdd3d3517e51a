"""Parameter names: paths in the tree, such as "body/encoder/layer_0/attention/output/kernel"."""

from typing import Any

import jax


def path_name(path: tuple) -> str:
    """The name of a path as JAX gives it."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def by_path(params: Any) -> dict[str, Any]:
    """The leaves of a tree by their names."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def shortened_list(misfits: list[str], most: int = 3) -> str:
    """At most `most` of the entries in one line, with a count of the rest."""
    more = f"; and {len(misfits) - most} more" if len(misfits) > most else ""
    return "; ".join(misfits[:most]) + more
