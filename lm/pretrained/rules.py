"""Rules between our parameters and published tensors: they rename, transpose, regroup, and can be undone bit for bit.

A family of models is a list of rules for a shape. The same list reads a published model, writes one, and says which
shapes the tensors must have.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from lm.modules.config import ModelConfig

Arrays = list[Any]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How published tensors become ours, and back. Both functions only move numbers, so each undoes the other exactly.

    Attributes:
      ours: from the arrays of `Rule.theirs` to those of `Rule.ours`.
      theirs: the inverse.
    """

    ours: Callable[[Arrays], Arrays]
    theirs: Callable[[Arrays], Arrays]


@dataclasses.dataclass(frozen=True)
class Rule:
    """Some of our parameters and the published tensors that hold the same numbers.

    Attributes:
      ours: paths of parameters, such as "decoder/layer_0/attention/output/kernel".
      theirs: names of tensors.
      layout: how one becomes the other.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    layout: Layout

    def their_shapes(self, shapes: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """The shapes of `theirs`, from those of `ours`."""
        arrays = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
        return [array.shape for array in jax.eval_shape(self.layout.theirs, arrays)]


def _same(arrays: Arrays) -> Arrays:
    return arrays


def _transpose(arrays: Arrays) -> Arrays:
    return [array.T for array in arrays]


SAME = Layout(_same, _same)
TRANSPOSED = Layout(_transpose, _transpose)


def same(ours: str, theirs: str) -> Rule:
    """An array that only has another name."""
    return Rule((ours,), (theirs,), SAME)


def linear(ours: str, theirs: str, bias: bool, layout: Layout = TRANSPOSED) -> Iterator[Rule]:
    """A linear map: our kernel is [in, out], PyTorch's weight [out, in] (Conv1D of GPT-2, layout SAME: [in, out])."""
    yield Rule((f"{ours}/kernel",), (f"{theirs}.weight",), layout)
    if bias:
        yield same(f"{ours}/bias", f"{theirs}.bias")


def norm(ours: str, theirs: str, config: ModelConfig) -> Iterator[Rule]:
    """A normalization: scale and, for LayerNorm in a model with biases, bias."""
    yield same(f"{ours}/scale", f"{theirs}.weight")
    if config.bias and config.normalization == "layer_norm":
        yield same(f"{ours}/bias", f"{theirs}.bias")


def query_key_value(
    ours: str, theirs: Sequence[str], config: ModelConfig, bias: bool, conv1d: bool = False
) -> Iterator[Rule]:
    """The map to queries, keys and values.

    Our columns are grouped by key-value head: its query heads, its key, its value.

    Args:
      ours: path of the map.
      theirs: names of three maps, or of one whose outputs are all queries, then all keys, then all values.
      config: number and width of heads.
      bias: whether the map has a bias.
      conv1d: whether weights are [in, out], as in GPT-2.
    """
    heads = (config.heads // config.num_kv_heads, 1, 1)
    yield from _grouped(ours, theirs, config, heads, bias, conv1d)


def key_value(ours: str, theirs: Sequence[str], config: ModelConfig, bias: bool) -> Iterator[Rule]:
    """The map to keys and values of cross-attention, with our columns grouped by key-value head."""
    yield from _grouped(ours, theirs, config, (1, 1), bias, conv1d=False)


def _grouped(
    ours: str, theirs: Sequence[str], config: ModelConfig, heads: tuple[int, ...], bias: bool, conv1d: bool
) -> Iterator[Rule]:
    kv_heads, head_width = config.num_kv_heads, config.size_per_head
    fused = len(theirs) == 1

    def layout(rows_first: bool) -> Layout:
        def join(parts: Arrays) -> Arrays:
            # [out, in], or [out] for a bias
            parts = [part if rows_first else part.T for part in parts]
            if fused:
                ends = np.cumsum([kv_heads * count * head_width for count in heads])[:-1]
                parts = np.split(parts[0], ends)
            rest = parts[0].shape[1:]
            grouped = [
                part.reshape(kv_heads, count, head_width, *rest) for part, count in zip(parts, heads, strict=True)
            ]
            return [np.concatenate(grouped, axis=1).reshape(-1, *rest).T]

        def split(arrays: Arrays) -> Arrays:
            whole = arrays[0].T
            rest = whole.shape[1:]
            grouped = whole.reshape(kv_heads, sum(heads), head_width, *rest)
            ends = np.cumsum(heads)
            parts = [grouped[:, end - count : end].reshape(-1, *rest) for end, count in zip(ends, heads, strict=True)]
            if fused:
                parts = [_concatenated(parts)]
            return [part if rows_first else part.T for part in parts]

        return Layout(join, split)

    yield Rule((f"{ours}/kernel",), tuple(f"{name}.weight" for name in theirs), layout(not conv1d))
    if bias:
        yield Rule((f"{ours}/bias",), tuple(f"{name}.bias" for name in theirs), layout(True))


def gate_and_up(gate: str, up: str, theirs: str, bias: bool) -> Iterator[Rule]:
    """The two maps into a gated feed-forward layer, fused in one tensor: first what the activation is applied to."""

    def join(arrays: Arrays) -> Arrays:
        half = arrays[0].shape[0] // 2
        return [arrays[0][:half].T, arrays[0][half:].T]

    def split(arrays: Arrays) -> Arrays:
        return [_concatenated([array.T for array in arrays])]

    layout = Layout(join, split)
    yield Rule((f"{gate}/kernel", f"{up}/kernel"), (f"{theirs}.weight",), layout)
    if bias:
        yield Rule((f"{gate}/bias", f"{up}/bias"), (f"{theirs}.bias",), layout)


def _concatenated(arrays: Arrays) -> Any:
    """One array on the host or, where only shapes are asked for, one that JAX traces."""
    module = jax.numpy if isinstance(arrays[0], jax.Array) else np
    return module.concatenate(arrays)
