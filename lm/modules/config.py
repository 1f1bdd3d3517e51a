"""The shape of a transformer, shared by every layer and every model."""

import dataclasses

import jax.numpy as jnp

from lm.errors import UserError

POSITIONS = ("learned", "sinusoidal", "rotary")
NORMALIZATIONS = ("layer_norm", "rms_norm")
ACTIVATIONS = ("gelu", "gelu_tanh", "swiglu")
ATTENTIONS = ("explicit", "xla", "cudnn")
REMATERIALIZATIONS = ("none", "dots", "full")
DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """A transformer's shape and arithmetic, validated when made.

    Attributes:
      vocab_size: rows of the token embedding, V. None: the tokenizer's size. A larger number than the tokenizer's pads
        the table, which some hardware multiplies faster.
      layers: L.
      width: D, the size of the residual stream.
      heads: N, query heads.
      kv_heads: K, key-value heads; divides `heads`. None: as many as `heads` (no grouping).
      head_width: H. None: `width / heads`.
      feed_forward_width: F. None: 4 times `width`.
      max_length: the longest sequence, in tokens.
      positions: how a token knows its place: "learned" or "sinusoidal" embeddings, or "rotary" queries and keys.
      rotary_base: the base of the rotary frequencies.
      normalization: "layer_norm" or "rms_norm", before each sub-layer and after the last.
      normalization_epsilon: added to the variance.
      activation: "gelu" (exact), "gelu_tanh" (its tanh form, as in GPT-2) or "swiglu" (gated, three matrices).
      bias: whether linear maps and LayerNorm have biases.
      tie_embeddings: whether the output matrix is the token embedding.
      dropout: the rate after the embedding and after each sub-layer, in [0, 1).
      initializer_range: standard deviation of the initial weights; maps back into the residual stream get it divided by
        sqrt(2 L) (Radford et al. 2019).
      dtype: in which to compute. Logits are float32 whatever it is.
      parameter_dtype: in which to keep the parameters.
      attention: "xla" (everywhere) or "cudnn" (NVIDIA, 16-bit dtypes) of `jax.nn.dot_product_attention`, or "explicit",
        the same with its backward pass written out, which is fastest on CPU.
      scan_layers: compile one layer and loop over it: compiles L times faster, and on CPU runs a little slower.
      rematerialize: what the backward pass computes again instead of keeping: "none", "dots" (all but the results of
        matrix products) or "full" (everything inside a layer).
    """

    vocab_size: int | None = None
    layers: int = 4
    width: int = 128
    heads: int = 4
    kv_heads: int | None = None
    head_width: int | None = None
    feed_forward_width: int | None = None
    max_length: int = 128
    positions: str = "learned"
    rotary_base: float = 10_000.0
    normalization: str = "layer_norm"
    normalization_epsilon: float = 1e-5
    activation: str = "gelu_tanh"
    bias: bool = False
    tie_embeddings: bool = True
    dropout: float = 0.0
    initializer_range: float = 0.02
    dtype: str = "float32"
    parameter_dtype: str = "float32"
    attention: str = "explicit"
    scan_layers: bool = False
    rematerialize: str = "none"

    def __post_init__(self):
        self._check_sizes()
        self._check_choices()
        if self.width % self.heads and self.head_width is None:
            raise UserError(
                f"config.model.heads={self.heads} does not divide config.model.width={self.width}: change one of them, "
                "or set config.model.head_width"
            )
        if self.heads % self.num_kv_heads:
            raise UserError(
                f"config.model.kv_heads={self.kv_heads} does not divide config.model.heads={self.heads}: each "
                "key-value head must serve the same number of query heads"
            )
        if self.positions == "rotary" and self.size_per_head % 2:
            raise UserError(f"rotary positions need an even config.model.head_width, got {self.size_per_head}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"config.model.dropout must be in [0, 1), got {self.dropout}")
        if self.attention == "cudnn" and self.dtype == "float32":
            raise UserError("config.model.attention=cudnn needs config.model.dtype=bfloat16 or float16")

    def _check_sizes(self):
        sizes = ("vocab_size", "layers", "width", "heads", "kv_heads", "head_width", "feed_forward_width", "max_length")
        for name in sizes:
            value = getattr(self, name)
            least = 2 if name == "max_length" else 1
            if value is not None and value < least:
                raise UserError(f"config.model.{name} must be at least {least}, got {value}")

    def _check_choices(self):
        choices = {
            "positions": POSITIONS,
            "normalization": NORMALIZATIONS,
            "activation": ACTIVATIONS,
            "attention": ATTENTIONS,
            "rematerialize": REMATERIALIZATIONS,
            "dtype": DTYPES,
            "parameter_dtype": DTYPES,
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise UserError(f"config.model.{name} must be one of {', '.join(known)}; got {getattr(self, name)!r}")

    @property
    def num_kv_heads(self) -> int:
        """K, with the default resolved."""
        return self.kv_heads or self.heads

    @property
    def size_per_head(self) -> int:
        """H, with the default resolved."""
        return self.head_width or self.width // self.heads

    @property
    def size_of_feed_forward(self) -> int:
        """F, with the default resolved."""
        return self.feed_forward_width or 4 * self.width

    @property
    def compute_dtype(self) -> jnp.dtype:
        """`dtype` as JAX knows it."""
        return jnp.dtype(self.dtype)

    @property
    def storage_dtype(self) -> jnp.dtype:
        """`parameter_dtype` as JAX knows it."""
        return jnp.dtype(self.parameter_dtype)
