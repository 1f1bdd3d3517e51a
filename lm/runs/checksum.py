"""A checksum of arrays, computed where they are: every bit and its position, whatever the number of devices."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from lm.runs.state import TrainState


def checksum(tree: Any) -> int:
    """A checksum of all bits of a tree and their positions, the same on any number of devices.

    Integer sums do not depend on their order. The storage that Orbax uses notices damage to its indices but not to the
    arrays themselves.
    """
    total = 0
    for leaf in map(jnp.asarray, jax.tree.leaves(tree)):
        # On one device XLA would first materialize all terms of the sum; on many, each holds only its part. One sum
        # ends before the next begins: on virtual CPU devices, reductions at once wait for each other's threads forever.
        of_leaf = _mixed_sum(leaf, row_by_row=len(leaf.sharding.device_set) == 1)
        total = (total * 31 + int(of_leaf)) % 2**32
    return total


@functools.partial(jax.jit, static_argnames="row_by_row")
def _mixed_sum(leaf: jax.Array, row_by_row: bool) -> jax.Array:
    """The sum of all numbers of an array, each mixed with its position."""
    if leaf.ndim < 2 or not row_by_row:
        return _mixed(_bits(leaf), _places(leaf.shape)).sum(dtype=jnp.uint32)
    inner = _places(leaf.shape[1:])

    def add_row(row: jax.Array, total: jax.Array) -> jax.Array:
        places = inner + row.astype(jnp.uint32) * jnp.uint32(inner.size % 2**32)
        return total + _mixed(_bits(leaf[row]), places).sum(dtype=jnp.uint32)

    return jax.lax.fori_loop(0, leaf.shape[0], add_row, jnp.zeros((), jnp.uint32))


def _places(shape: tuple[int, ...]) -> jax.Array:
    """The position of each number in an array, counted row by row."""
    places, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        places += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride % 2**32)
        stride *= shape[axis]
    return places


def _mixed(bits: jax.Array, places: jax.Array) -> jax.Array:
    """The finalizer of MurmurHash3 (Appleby 2011): each input bit flips about half of the output bits."""
    mixed = bits ^ (places * jnp.uint32(0x9E3779B1))
    mixed = (mixed ^ (mixed >> 16)) * jnp.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> 13)) * jnp.uint32(0xC2B2AE35)
    return mixed ^ (mixed >> 16)


@jax.jit
def former_checksum(state: TrainState) -> jax.Array:
    """The checksum of earlier versions, which ignores the order within an array."""
    total = jnp.zeros((), jnp.uint32)
    for leaf in jax.tree.leaves(state):
        total = total * jnp.uint32(31) + _bits(leaf).sum(dtype=jnp.uint32)
    return total


def _bits(leaf: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")).astype(jnp.uint32)
