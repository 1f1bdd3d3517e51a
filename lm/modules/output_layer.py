"""The layer from hidden states to logits: its arrays, which devices can share, and what follows the product.

Axes: n tokens, V vocabulary or a device's part of it, D model width.
"""

import dataclasses

import flax.struct
import jax.numpy as jnp
from jax import Array


@flax.struct.dataclass
class OutputLayer:
    """Logits of each token of the vocabulary: `cap(scale * states @ matrix.T + bias)`, in float32.

    A 16-bit logit near 10 is off by up to 0.03, which shifts a probability by up to 0.8 points. So the factors may be
    16-bit numbers, but the products are always summed in float32, and whatever is applied to them is too.

    Attributes:
      matrix_VD: as it is stored.
      bias_V: as it is stored; None: there is none.
      dtype: of the product's factors.
      scale: a factor of the products.
      softcap: logits become `softcap * tanh(logit / softcap)` (Gemma 2). None: they stay.
    """

    matrix_VD: Array
    bias_V: Array | None = None
    dtype: jnp.dtype = flax.struct.field(pytree_node=False, default=jnp.dtype("float32"))
    scale: float = flax.struct.field(pytree_node=False, default=1.0)
    softcap: float | None = flax.struct.field(pytree_node=False, default=None)

    def __call__(self, states: Array) -> Array:
        """The logits, [..., V], in float32, of states [..., D]."""
        # As one matrix, for the reason given in `Linear`.
        flat_nD = states.reshape(-1, states.shape[-1])
        logits_nV = finished(self.products(flat_nD), self.bias_V, self.scale, self.softcap)
        return logits_nV.reshape(*states.shape[:-1], logits_nV.shape[-1])

    def narrow(self) -> "OutputLayer":
        """The same with the matrix in the dtype in which it is multiplied: what is sent between devices."""
        return dataclasses.replace(self, matrix_VD=self.matrix_VD.astype(self.dtype))

    def products(self, states_nD: Array) -> Array:
        """The products alone, [n, V], in float32."""
        matrix_VD = self.matrix_VD.astype(self.dtype)
        return jnp.einsum("nd,vd->nv", states_nD, matrix_VD, preferred_element_type=jnp.float32)


def finished(products_nV: Array, bias_V: Array | None, scale: float, softcap: float | None) -> Array:
    """Products to logits, [n, V]: a factor, a bias and a cap, in this order."""
    logits_nV = products_nV if scale == 1 else products_nV * scale
    if bias_V is not None:
        logits_nV += bias_V.astype(jnp.float32)[None]
    return logits_nV if softcap is None else softcap * jnp.tanh(logits_nV / softcap)
