"""Logits as arrays or as two factors with the logits as product, processed in chunks of items.

Axes: N items, C classes, D hidden width.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lm.types import AnyArray

# Numbers in a chunk of logits: few enough for the processor's cache, enough to amortize the loop.
CHUNK_NUMBERS = 2**15
# Items in a chunk of factors, at least: a product with the output matrix reads all of it, however few the items are.
_FEWEST_OF_FACTORS = 32


class FactoredLogits(NamedTuple):
    """Exact logits over a large vocabulary in N * D + C * D numbers, where N * C would not fit in memory.

    Attributes:
      hidden_ND: last hidden states.
      output_CD: the output matrix.
    """

    hidden_ND: AnyArray
    output_CD: AnyArray

    @property
    def shape(self) -> tuple[int, int]:
        """(N, C)."""
        return self.hidden_ND.shape[0], self.output_CD.shape[0]


Logits = AnyArray | FactoredLogits


def rows(logits: Logits, start: Array | int, size: int) -> Array:
    """Items `start` to `start + size` as float32 logits, [size, C]."""
    if isinstance(logits, FactoredLogits):
        hidden = jax.lax.dynamic_slice_in_dim(jnp.asarray(logits.hidden_ND), start, size)
        # Not a product with the transpose: outside of jit that would copy the whole matrix.
        product = jnp.einsum("nd,cd->nc", hidden, jnp.asarray(logits.output_CD), precision="highest")
        return product.astype(jnp.float32)
    return jax.lax.dynamic_slice_in_dim(jnp.asarray(logits), start, size).astype(jnp.float32)


def whole(logits: Logits) -> Array:
    """All logits, [N, C], in float32."""
    return rows(logits, 0, logits.shape[0])


def take(logits: Logits, index_N: AnyArray | slice) -> Logits:
    """The selected items, in the same form."""
    if isinstance(logits, FactoredLogits):
        return FactoredLogits(logits.hidden_ND[index_N], logits.output_CD)
    return logits[index_N]


def _chunks(logits: Logits) -> tuple[int, int]:
    """Number of chunks and of items in each."""
    items, classes = logits.shape
    fewest = _FEWEST_OF_FACTORS if isinstance(logits, FactoredLogits) else 1
    size = min(items, max(fewest, CHUNK_NUMBERS // classes))
    return -(-items // size), size


def map_chunks(function: Callable[..., Any], logits: Logits, *per_item: AnyArray) -> Any:
    """Per-item results of `function(logits_chunk, *per_item_chunks)`, arrays with the chunk's items as first axis.

    Only one chunk of logits is formed at a time: memory is O(chunk * C).
    """
    number, size = _chunks(logits)
    items = logits.shape[0]
    arguments = (logits, *(jnp.asarray(values) for values in per_item))
    if number == 1:
        return function(*(rows(a, 0, items) if i == 0 else a for i, a in enumerate(arguments)))
    shapes = jax.eval_shape(lambda *a: function(*_slices(a, 0, size)), *arguments)
    empty = jax.tree.map(lambda x: jnp.zeros((items, *x.shape[1:]), x.dtype), shapes)

    def body(chunk: Array, results: Any) -> Any:
        # The last chunk starts early enough to be full, and rewrites some results.
        start = jnp.minimum(chunk * size, items - size)
        found = function(*_slices(arguments, start, size))
        return jax.tree.map(lambda all_, new: jax.lax.dynamic_update_slice_in_dim(all_, new, start, 0), results, found)

    return jax.lax.fori_loop(0, number, body, empty)


def sum_chunks(function: Callable[..., Any], logits: Logits, *per_item: AnyArray, every: int = 1) -> Any:
    """Sum over chunks of `function(logits_chunk, counts_chunk, *per_item_chunks)`, in O(chunk * C) memory.

    `counts_chunk` is 1 for items to count and 0 for items that another chunk counts. With `every`, only every
    `every`-th chunk is used: a sample.
    """
    number, size = _chunks(logits)
    items = logits.shape[0]
    arguments = (logits, *(jnp.asarray(values) for values in per_item))

    def one(chunk: Array | int) -> Any:
        start = jnp.minimum(chunk * size, items - size)
        logits_chunk, *others = _slices(arguments, start, size)
        counts = (start + jnp.arange(size) >= chunk * size).astype(jnp.float32)
        return function(logits_chunk, counts, *others)

    if number == 1:
        return one(0)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, 0))
    taken = -(-number // every)
    return jax.lax.fori_loop(0, taken, lambda i, total: jax.tree.map(jnp.add, total, one(i * every)), zeros)


def number_of_chunks(logits: Logits) -> int:
    """Number of chunks in `sum_chunks`."""
    return _chunks(logits)[0]


def _slices(arguments: tuple, start: Array | int, size: int) -> tuple:
    logits, *per_item = arguments
    return rows(logits, start, size), *(jax.lax.dynamic_slice_in_dim(values, start, size) for values in per_item)
