"""The shape of a model, shared by every layer and every model."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from lm.configuration import refuse_idle
from lm.errors import UserError

TRANSFORMERS = ("decoder", "encoder", "encoder_decoder")
RECURRENT = ("lstm", "gru")
ARCHITECTURES = TRANSFORMERS + RECURRENT
POSITIONS = ("learned", "sinusoidal", "rotary", "relative")
PLACEMENTS = ("before", "after")
NORMALIZATIONS = ("layer_norm", "rms_norm")
ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "swiglu", "gated_gelu")
ATTENTIONS = ("explicit", "xla", "cudnn")
GRADIENTS = ("explicit", "derived")
REMATERIALIZATIONS = ("none", "dots", "full")
DTYPES = ("float32", "bfloat16", "float16")


def _setting(default: Any, *, execution: bool = False, **only_with: tuple[str, ...]) -> Any:
    """A field of `ModelConfig`.

    Args:
      default: value.
      execution: whether it only controls how to compute. It must not change the parameters' names or sizes, nor the
        result, except for rounding and dropout.
      **only_with: other settings, each with the values for which this one has an effect. Messages name the last
        condition that fails.
    """
    return dataclasses.field(default=default, metadata={"execution": execution, "only_with": only_with})


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A model's shape and how to execute it, validated on construction.

    Settings that have no effect given the others, such as `heads` of an "lstm", must keep their defaults. `EXECUTION`
    lists those that do not shape the model; they may differ from the run that the parameters come from.

    Attributes:
      architecture: "decoder" (GPT, Llama), "encoder" (BERT), "encoder_decoder" (the Transformer of 2017, T5), or a
        recurrent baseline, "lstm" or "gru" (bidirectional).
      vocab_size: rows of the token embedding, V. None: the tokenizer's size. A larger number pads the table, which is
        faster on some hardware.
      layers: L; for an "encoder_decoder", of the encoder.
      decoder_layers: of the decoder of an "encoder_decoder". None: `layers`.
      width: D, the size of the residual stream; of "lstm" and "gru", of the word vectors.
      recurrent_width: of each direction of "lstm" and "gru". None: `width`.
      heads: N, query heads.
      kv_heads: K, key-value heads; divides `heads`. None: as many as `heads` (no grouping).
      head_width: H. None: `width / heads`.
      feed_forward_width: F. None: 4 times `width`.
      max_length: the longest sequence, in tokens.
      segment_types: number of segment types that an "encoder" distinguishes by an embedding (BERT: 2); 0: none.
      positions: how positions are encoded: "learned" or "sinusoidal" embeddings, "rotary" queries and keys, or
        "relative" attention biases per head and distance bucket (T5).
      rotary_base: the base of the rotary frequencies.
      relative_buckets: number of buckets for "relative" positions.
      relative_max_distance: distances from here on share the last bucket of "relative" positions.
      normalization: "layer_norm" or "rms_norm".
      normalization_place: "before" each sub-layer and after the last (GPT-2, T5), or "after" each sum of a sub-layer
        and its input (the Transformer of 2017, BERT).
      normalize_embeddings: whether the sum of the embeddings is normalized too (BERT).
      normalization_epsilon: added to the variance.
      activation: "gelu" (exact), "gelu_tanh" (its tanh form, as in GPT-2), "relu", or gated with a third matrix:
        "swiglu" (Llama), "gated_gelu" (T5 1.1).
      bias: whether linear maps and LayerNorm have biases.
      tie_embeddings: whether the output matrix is the token embedding.
      dropout: the rate after the embedding and after each sub-layer, in [0, 1).
      initializer_range: standard deviation of the initial weights, divided by sqrt(2 L) for maps back into the residual
        stream (Radford et al. 2019).
      dtype: of the computation. Logits are always float32.
      parameter_dtype: of the stored parameters.
      attention: "xla" (everywhere) or "cudnn" (NVIDIA, 16-bit dtypes) of `jax.nn.dot_product_attention`, or "explicit",
        the same with a hand-written backward pass, which is fastest on CPU.
      gradients: of explicit attention, LayerNorm and GELU's tanh form: "explicit" (hand-written) or "derived" by JAX,
        which is slower but supports `jax.jvp`, needed for Hessian-vector products.
      scan_layers: compile one layer and loop over it: compiles L times faster; on CPU it runs slightly slower.
      rematerialize: what the backward pass recomputes instead of storing: "none", "dots" (all but the results of matrix
        products) or "full" (everything inside a layer).
    """

    architecture: str = "decoder"
    vocab_size: int | None = None
    layers: int = 4
    decoder_layers: int | None = _setting(None, architecture=("encoder_decoder",))
    width: int = 128
    recurrent_width: int | None = _setting(None, architecture=RECURRENT)
    heads: int = _setting(4, architecture=TRANSFORMERS)
    kv_heads: int | None = _setting(None, architecture=TRANSFORMERS)
    head_width: int | None = _setting(None, architecture=TRANSFORMERS)
    feed_forward_width: int | None = _setting(None, architecture=TRANSFORMERS)
    max_length: int = 128
    segment_types: int = _setting(0, architecture=("decoder", "encoder"))
    positions: str = _setting("learned", architecture=TRANSFORMERS)
    rotary_base: float = _setting(10_000.0, positions=("rotary",), architecture=TRANSFORMERS)
    relative_buckets: int = _setting(32, positions=("relative",), architecture=TRANSFORMERS)
    relative_max_distance: int = _setting(128, positions=("relative",), architecture=TRANSFORMERS)
    normalization: str = _setting("layer_norm", architecture=TRANSFORMERS)
    normalization_place: str = _setting("before", architecture=TRANSFORMERS)
    normalize_embeddings: bool = _setting(False, architecture=TRANSFORMERS)
    normalization_epsilon: float = _setting(1e-5, architecture=TRANSFORMERS)
    activation: str = _setting("gelu_tanh", architecture=TRANSFORMERS)
    bias: bool = _setting(False, architecture=TRANSFORMERS)
    tie_embeddings: bool = _setting(True, architecture=TRANSFORMERS)
    dropout: float = _setting(0.0, execution=True)
    initializer_range: float = 0.02
    dtype: str = _setting("float32", execution=True)
    parameter_dtype: str = _setting("float32", execution=True)
    attention: str = _setting("explicit", execution=True, architecture=TRANSFORMERS)
    gradients: str = _setting("explicit", execution=True, architecture=TRANSFORMERS)
    scan_layers: bool = _setting(False, architecture=TRANSFORMERS)
    rematerialize: str = _setting("none", execution=True, architecture=TRANSFORMERS)

    def __post_init__(self):
        self._check_sizes()
        self._check_choices()
        refuse_idle(self, "config.model", idle_settings(vars(self)))
        if self.architecture in TRANSFORMERS and self.width % self.heads and self.head_width is None:
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
        sizes += ("decoder_layers", "recurrent_width", "relative_buckets", "relative_max_distance")
        for name in sizes:
            value = getattr(self, name)
            least = 2 if name == "max_length" else 1
            if value is not None and value < least:
                raise UserError(f"config.model.{name} must be at least {least}, got {value}")
        for name in ("rotary_base", "normalization_epsilon", "initializer_range"):
            if getattr(self, name) <= 0:
                raise UserError(f"config.model.{name} must be positive, got {getattr(self, name)}")
        if self.segment_types < 0:
            raise UserError(f"config.model.segment_types must not be negative, got {self.segment_types}")

    def _check_choices(self):
        choices = {
            "architecture": ARCHITECTURES,
            "positions": POSITIONS,
            "normalization": NORMALIZATIONS,
            "normalization_place": PLACEMENTS,
            "activation": ACTIVATIONS,
            "attention": ATTENTIONS,
            "gradients": GRADIENTS,
            "rematerialize": REMATERIALIZATIONS,
            "dtype": DTYPES,
            "parameter_dtype": DTYPES,
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise UserError(f"config.model.{name} must be one of {', '.join(known)}; got {getattr(self, name)!r}")

    def executed_as(self, other: "ModelConfig") -> "ModelConfig":
        """This shape, with the execution settings of another config.

        Raises:
          UserError: if it sets something that has no effect on this shape.
        """
        return dataclasses.replace(self, **{name: getattr(other, name) for name in EXECUTION})

    @property
    def size_of_vocabulary(self) -> int:
        """V.

        Raises:
          ValueError: if it comes from a tokenizer that is not known yet.
        """
        if self.vocab_size is None:
            raise ValueError("config.model.vocab_size is not known yet")
        return self.vocab_size

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


# The settings that only control how to compute. `scan_layers` is not one of them: it stacks the layers' parameters.
EXECUTION: tuple[str, ...] = tuple(
    field.name for field in dataclasses.fields(ModelConfig) if field.metadata.get("execution")
)


def idle_settings(values: Mapping[str, Any]) -> dict[str, str]:
    """The settings that have no effect given these values, each with the name of the setting that disables it.

    Args:
      values: of a `ModelConfig`; missing ones take their defaults.
    """
    fields = dataclasses.fields(ModelConfig)
    known = {field.name: field.default for field in fields} | dict(values)
    return {
        field.name: other
        for field in fields
        for other, allowed in field.metadata.get("only_with", {}).items()
        if known[other] not in allowed
    }
