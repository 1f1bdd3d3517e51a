"""Which keys a query may see, in the form that an implementation of attention needs: segments and windows, or a mask.

Axes: B batch, T query positions, S key positions, N query heads.
"""

import dataclasses

import flax.struct
import jax.numpy as jnp
from jax import Array


def segment_mask(query_segments_BT: Array, key_segments_BS: Array) -> Array:
    """The mask, [B, T, S], by which tokens see only their own segment.

    Segment 0 is padding: it sees only padding, so that its softmax has terms to sum, and no other token sees it.
    """
    return query_segments_BT[:, :, None] == key_segments_BS[:, None, :]


@flax.struct.dataclass
class Segments:
    """A query sees only the keys of its own segment.

    Attributes:
      queries_BT: the segment of each query; 0 is padding.
      keys_BS: the segment of each key.
    """

    queries_BT: Array
    keys_BS: Array


@flax.struct.dataclass
class Visibility:
    """Which keys each query may see, and with what bias. Everything that is given must allow it.

    A stack of layers chooses an implementation of attention and gives it `as_masks` where it takes no segments or
    windows: once, not in every layer.

    Attributes:
      mask_BTS: True where query t may see key s; None: everywhere.
      causal: whether query t also sees only keys up to t.
      bias_BNTS: added to the scores, in float32; its batch axis may be 1. None: no bias.
      near_BTS: True where key s lies in the window of query t, which layers with a window see; its batch axis may be 1.
        None: see `window`.
      segments: which a query does not look beyond. None: there is one segment.
      window: how far from its own place a query sees in layers with a window, in place of `near_BTS`. None: there is no
        window.
      implementation: of attention, as in `attend`.
    """

    mask_BTS: Array | None = None
    causal: bool = flax.struct.field(pytree_node=False, default=False)
    bias_BNTS: Array | None = None
    near_BTS: Array | None = None
    segments: Segments | None = None
    window: int | None = flax.struct.field(pytree_node=False, default=None)
    implementation: str = flax.struct.field(pytree_node=False, default="explicit")

    @classmethod
    def within(
        cls, query_segments_BT: Array | None, key_segments_BS: Array | None, causal: bool = False
    ) -> "Visibility":
        """Of tokens that see their own segment; None: there is one segment."""
        if query_segments_BT is None or key_segments_BS is None:
            return cls(causal=causal)
        return cls(causal=causal, segments=Segments(query_segments_BT, key_segments_BS))

    def as_masks(self, queries: int, keys: int, keep_window: bool = False) -> "Visibility":
        """The same with masks in place of segments and windows.

        Args:
          queries: T.
          keys: S.
          keep_window: whether a window stays one if it looks back only and has no mask or bias beside it, which cuDNN
            before 9.10.2 could not do.
        """
        mask_BTS, near_BTS, window = self.mask_BTS, self.near_BTS, self.window
        if self.segments is not None:
            mask_BTS = _both(mask_BTS, segment_mask(self.segments.queries_BT, self.segments.keys_BS))
        keep_window &= self.causal and mask_BTS is None and self.bias_BNTS is None
        if window is not None and not keep_window:
            distances_TS = jnp.abs(jnp.arange(queries)[:, None] - jnp.arange(keys)[None, :])
            near_BTS, window = (distances_TS <= window)[None], None
        return dataclasses.replace(self, mask_BTS=mask_BTS, near_BTS=near_BTS, segments=None, window=window)

    def of_layer(self, local: bool | Array) -> "Visibility":
        """What a layer sees: what is near, if it is `local`. An array, where layers are scanned, needs a mask."""
        if local is False:
            return dataclasses.replace(self, near_BTS=None, window=None)
        if self.near_BTS is None:
            return self
        near_BTS = self.near_BTS if local is True else self.near_BTS | ~local
        return dataclasses.replace(self, mask_BTS=_both(self.mask_BTS, near_BTS), near_BTS=None)


def _both(mask_BTS: Array | None, other_BTS: Array) -> Array:
    return other_BTS if mask_BTS is None else mask_BTS & other_BTS
