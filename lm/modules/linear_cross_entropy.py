"""The loss of predicted tokens straight from hidden states, without ever storing logits.

The forward pass of a loss also takes its gradient, chunk by chunk (Hsu et al. 2024, Liger kernels, section 3.2), so
that no logits are kept for the backward pass or computed twice. On a mesh every device does this for its own rows and
its own part of the vocabulary (Shoeybi et al. 2019, section 3). What crosses the network is a few numbers a token and,
once a call, the matrix and its gradient, whatever the number of chunks; left to itself, the compiler sends the logits.

Axes: B batch, T predicted tokens of a row, n tokens of a chunk, V vocabulary or a device's part of it, D model width.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from lm.evaluation.token_statistics import Normalized, TokenStatistics, Vocabulary, normalized, token_statistics
from lm.modules.output_layer import OutputLayer, finished

_ROWS = P(("data", "fsdp"))


@dataclasses.dataclass(frozen=True)
class TokenLoss:
    """What is minimized.

    Attributes:
      label_smoothing: the probability mass of each target that is spread uniformly over the vocabulary (Szegedy et al.
        2016).
      z_loss: weight of the squared log-normalizer (Chowdhery et al. 2022, section 5).
      chunk: a device holds the logits of so many tokens at a time; 0: of all its tokens.
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    chunk: int = 0


def linear_cross_entropy(
    layer: OutputLayer, states_BTD: Array, targets_BT: Array, weights_BT: Array, loss: TokenLoss, mesh: Mesh | None
) -> tuple[Array, dict[str, Array]]:
    """The objective summed over the tokens of a batch, and the sums to report.

    Args:
      layer: from states to logits.
      states_BTD: states to predict from.
      targets_BT: ids below V; any other makes the loss NaN.
      weights_BT: how much each token counts. They get no gradient.
      loss: what is minimized.
      mesh: of the devices, with axes `data`, `fsdp` and `tensor`; None: one device.

    Returns:
      The weighted sum of the objective, which has a gradient, and weighted sums by name, which have none: `weight` (the
      number of tokens, by which the others are divided), `loss` (negative log-likelihood) and `objective`.
    """
    total, nll_BT = _summed(layer, states_BTD, targets_BT, weights_BT, loss, mesh)
    sums = {"weight": weights_BT.sum(), "loss": (weights_BT * nll_BT).sum(), "objective": total}
    return total, jax.tree.map(jax.lax.stop_gradient, sums)


def linear_token_statistics(
    layer: OutputLayer, states_BTD: Array, targets_BT: Array, chunk: int, mesh: Mesh | None
) -> TokenStatistics:
    """`token_statistics(layer(states_BTD), targets_BT)`, [B, T], in chunks on each device, without gradients.

    Arguments as for `linear_cross_entropy` and `TokenLoss`.
    """
    placement = _Placement.of(layer, len(states_BTD), mesh)

    def one_chunk(layer: OutputLayer, states_nD: Array, targets_n: Array) -> TokenStatistics:
        return token_statistics(layer(states_nD), targets_n, placement.vocabulary)

    def on_device(layer: OutputLayer, states_BTD: Array, targets_BT: Array) -> TokenStatistics:
        _, statistics = _in_chunks(lambda _, part: (None, one_chunk(layer, *part)), None, chunk, states_BTD, targets_BT)
        return statistics

    everywhere = placement.spread(on_device, (placement.of_layer(layer), _ROWS, _ROWS), _ROWS)
    return everywhere(layer.narrow(), states_BTD, targets_BT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _summed(
    layer: OutputLayer, states_BTD: Array, targets_BT: Array, weights_BT: Array, loss: TokenLoss, mesh: Mesh | None
) -> tuple[Array, Array]:
    """The sum of the objective, and each token's negative log-likelihood."""
    placement = _Placement.of(layer, len(states_BTD), mesh)

    def on_device(layer: OutputLayer, *rows: Array) -> tuple[Array, Array]:
        def one_chunk(_: None, part: tuple[Array, Array, Array]) -> tuple[None, tuple[Array, Array]]:
            return None, _Chunk(loss, placement.vocabulary, layer, *part).losses()

        return _in_chunks(one_chunk, None, loss.chunk, *rows)[1]

    everywhere = placement.spread(on_device, (placement.of_layer(layer), _ROWS, _ROWS, _ROWS), (_ROWS, _ROWS))
    nll_BT, objective_BT = everywhere(layer.narrow(), states_BTD, targets_BT, weights_BT)
    return (weights_BT * objective_BT).sum(), nll_BT


def _forward(
    layer: OutputLayer, states_BTD: Array, targets_BT: Array, weights_BT: Array, loss: TokenLoss, mesh: Mesh | None
) -> tuple[tuple[Array, Array], tuple[Any, Array]]:
    placement = _Placement.of(layer, len(states_BTD), mesh)

    def on_device(layer: OutputLayer, *rows: Array) -> tuple[OutputLayer, tuple[Array, Array, Array]]:
        def one_chunk(of_layer: OutputLayer, part: tuple[Array, Array, Array]) -> tuple[OutputLayer, tuple]:
            chunk = _Chunk(loss, placement.vocabulary, layer, *part)
            of_chunk, of_states_nD = chunk.gradients()
            return jax.tree.map(jnp.add, of_layer, of_chunk), (*chunk.losses(), of_states_nD)

        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), layer)
        of_layer, results = _in_chunks(one_chunk, zeros, loss.chunk, *rows)
        return placement.sum_over_rows(of_layer), results

    in_specs = (placement.of_layer(layer), _ROWS, _ROWS, _ROWS)
    everywhere = placement.spread(on_device, in_specs, (placement.of_gradient(layer), (_ROWS, _ROWS, _ROWS)))
    of_layer, results = everywhere(layer.narrow(), states_BTD, targets_BT, weights_BT)
    nll_BT, objective_BT, of_states_BTD = results
    of_layer = jax.tree.map(lambda gradient, x: gradient.astype(x.dtype), of_layer, layer)
    return ((weights_BT * objective_BT).sum(), nll_BT), (of_layer, of_states_BTD)


def _backward(
    loss: TokenLoss, mesh: Mesh | None, saved: tuple[Any, Array], gradients: tuple[Array, Array]
) -> tuple[Any, Array, None, None]:
    of_total, _ = gradients
    of_layer, of_states_BTD = jax.tree.map(lambda gradient: (of_total * gradient).astype(gradient.dtype), saved)
    return of_layer, of_states_BTD, None, None


_summed.defvjp(_forward, _backward)


@dataclasses.dataclass(frozen=True)
class _Chunk:
    """Some tokens on a device, [n] each, and what is minimized."""

    loss: TokenLoss
    vocabulary: Vocabulary
    layer: OutputLayer
    states_nD: Array
    targets_n: Array
    weights_n: Array

    def losses(self) -> tuple[Array, Array]:
        """Each token's negative log-likelihood and objective."""
        nll_n, log_normalizer_n = self._normalized.nll, self._normalized.log_normalizer
        objective_n, smoothing = nll_n, self.loss.label_smoothing
        if smoothing:
            logits_nV, _ = self._logits
            mean_n = self.vocabulary.sum(logits_nV.sum(axis=-1)) / self.vocabulary.size(logits_nV)
            objective_n = (1 - smoothing) * nll_n + smoothing * (log_normalizer_n - mean_n)
        if self.loss.z_loss:
            objective_n = objective_n + self.loss.z_loss * jnp.square(log_normalizer_n)
        return nll_n, objective_n

    def gradients(self) -> tuple[OutputLayer, Array]:
        """Of the weighted sum of the objective: with respect to the layer, in float32, and to the states, [n, D]."""
        unnormalized_nV, normalizer_n, log_normalizer_n, _ = self._normalized
        smoothing = self.loss.label_smoothing
        scale_n = self.weights_n * (1 + 2 * self.loss.z_loss * log_normalizer_n) / normalizer_n
        # A comparison, not a scatter: it fuses into the same pass.
        places_n = self.targets_n - self.vocabulary.start(unnormalized_nV)
        is_target_nV = jax.nn.one_hot(places_n, unnormalized_nV.shape[-1], dtype=bool)
        of_logits_nV = scale_n[:, None] * unnormalized_nV
        of_logits_nV -= jnp.where(is_target_nV, (1 - smoothing) * self.weights_n[:, None], 0)
        if smoothing:
            of_logits_nV -= smoothing / self.vocabulary.size(unnormalized_nV) * self.weights_n[:, None]
        _, to_products = self._logits
        of_products_nV, of_bias_V = to_products(of_logits_nV)
        # In the layer's dtype: the product of a wide and a narrow factor would run as slowly as that of wide ones.
        of_products_nV = of_products_nV.astype(self.layer.dtype)
        wide = {"preferred_element_type": jnp.float32}
        of_matrix_VD = jnp.einsum("nv,nd->vd", of_products_nV, self.states_nD, **wide)
        of_states_nD = jnp.einsum("nv,vd->nd", of_products_nV, self.layer.matrix_VD, **wide)
        of_layer = dataclasses.replace(self.layer, matrix_VD=of_matrix_VD, bias_V=of_bias_V)
        return of_layer, self.vocabulary.sum(of_states_nD).astype(self.states_nD.dtype)

    @functools.cached_property
    def _logits(self) -> tuple[Array, Callable[[Array], tuple[Array, Array | None]]]:
        """The logits, and from a gradient with respect to them to those with respect to the products and the bias."""
        finish = functools.partial(finished, scale=self.layer.scale, softcap=self.layer.softcap)
        return jax.vjp(finish, self.layer.products(self.states_nD), self.layer.bias_V)

    @functools.cached_property
    def _normalized(self) -> Normalized:
        return normalized(self._logits[0], self.targets_n, self.vocabulary)


def _in_chunks(function: Callable[[Any, Any], tuple[Any, Any]], carry: Any, chunk: int, *rows: Array) -> tuple:
    """A scan over chunks of tokens: the last carry, and the results by token, with the axes of rows [B, T, ...]."""
    shape = rows[0].shape[:2]
    tokens = shape[0] * shape[1]
    flat = tuple(array.reshape(tokens, *array.shape[2:]) for array in rows)
    if not chunk or chunk >= tokens:
        carry, results = function(carry, flat)
    else:
        padded = tuple(jnp.pad(array, ((0, -tokens % chunk),) + ((0, 0),) * (array.ndim - 1)) for array in flat)
        parts = tuple(array.reshape(-1, chunk, *array.shape[1:]) for array in padded)
        carry, results = jax.lax.scan(function, carry, parts)
        results = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:tokens], results)
    return carry, jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), results)


@dataclasses.dataclass(frozen=True)
class _Placement:
    """Where the parts of a call are: rows over `data` and `fsdp`, the vocabulary over `tensor`.

    Attributes:
      mesh: of the devices; None: this code runs on the whole arrays.
      splits_vocabulary: whether each device along `tensor` has its own part.
      scatters: whether the sum of the matrix's gradient is left split along D over `fsdp`, as parameters are.
    """

    mesh: Mesh | None = None
    splits_vocabulary: bool = False
    scatters: bool = False

    @classmethod
    def of(cls, layer: OutputLayer, rows: int, mesh: Mesh | None) -> "_Placement":
        """For a layer and a number of rows. Rows that the devices cannot share evenly stay with the compiler."""
        if mesh is None or mesh.size == 1 or rows % (mesh.shape["data"] * mesh.shape["fsdp"]):
            return cls()
        vocab_size, width = layer.matrix_VD.shape
        splits = mesh.shape["tensor"] > 1 and vocab_size % mesh.shape["tensor"] == 0
        return cls(mesh, splits, width % mesh.shape["fsdp"] == 0)

    @property
    def vocabulary(self) -> Vocabulary:
        """What a device sees of the vocabulary."""
        return Vocabulary("tensor" if self.splits_vocabulary else None)

    def spread(self, on_device: Callable, in_specs: tuple, out_specs: Any) -> Callable:
        """The function of whole arrays that calls `on_device` on each device's part."""
        if self.mesh is None:
            return on_device
        return jax.shard_map(on_device, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)

    def of_layer(self, layer: OutputLayer) -> Any:
        """The specs of a layer: whole along D, since every token needs all of it."""
        return self._specs(layer, None)

    def of_gradient(self, layer: OutputLayer) -> Any:
        """The specs of a layer's gradient."""
        return self._specs(layer, "fsdp" if self.scatters else None)

    def _specs(self, layer: OutputLayer, along_D: str | None) -> Any:
        along_V = self.vocabulary.axis_name
        return jax.tree.map(lambda x: P(along_V, along_D) if x.ndim == 2 else P(along_V), layer)

    def sum_over_rows(self, of_layer: OutputLayer) -> OutputLayer:
        """The sum of a layer's gradients over the devices that share the rows."""
        if self.mesh is None:
            return of_layer
        of_matrix_VD, of_bias_V = of_layer.matrix_VD, of_layer.bias_V
        if of_bias_V is not None:
            of_bias_V = jax.lax.psum(of_bias_V, ("data", "fsdp"))
        if self.scatters:
            of_matrix_VD = jax.lax.psum_scatter(of_matrix_VD, "fsdp", scatter_dimension=1, tiled=True)
            of_matrix_VD = jax.lax.psum(of_matrix_VD, "data")
        else:
            of_matrix_VD = jax.lax.psum(of_matrix_VD, ("data", "fsdp"))
        return dataclasses.replace(of_layer, matrix_VD=of_matrix_VD, bias_V=of_bias_V)
