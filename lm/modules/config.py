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
ONE_STACK = ("decoder", "encoder")
POSITIONS = ("learned", "sinusoidal", "rotary", "relative")
PLACEMENTS = ("before", "after", "branch", "both")
NORMALIZATIONS = ("layer_norm", "rms_norm", "rms_norm_offset")
QUERY_KEY_NORMS = ("none", "head", "all")
ROTARY_SCALINGS = ("none", "linear", "llama3")
ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "silu", "swiglu", "gated_gelu", "gated_gelu_exact")
ATTENTIONS = ("auto", "explicit", "xla", "cudnn", "splash")
GRADIENTS = ("explicit", "derived")
REMATERIALIZATIONS = ("none", "dots", "full")
DTYPES = ("float32", "bfloat16", "float16")


# A condition of `_setting`: any value but None.
GIVEN = None


def _setting(default: Any, *, execution: bool = False, **only_with: tuple[Any, ...] | None) -> Any:
    """A field of `ModelConfig`.

    Args:
      default: value.
      execution: whether it only controls how to compute. It must not change the parameters' names or sizes, nor the
        result, except for rounding and dropout.
      **only_with: other settings, each with the values for which this one has an effect, or `GIVEN`. Messages name the
        last condition that fails.
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
      max_length: the longest sequence that the model can process, in tokens: the rows of its position table, or the
        positions that it was made for.
      sequence_length: the longest training window or example, in tokens. None: `max_length`.
      segment_types: number of segment types that an "encoder" distinguishes by an embedding (BERT: 2); 0: none.
      embedding_width: of the token, position and type embeddings and their norm, which a linear map then leads to
        `width` (small ELECTRA). None: `width`, without a map.
      positions: how positions are encoded: "learned" or "sinusoidal" embeddings, "rotary" queries and keys, or
        "relative" attention biases per head and distance bucket (T5).
      position_offset: rows of the table of "learned" positions before that of position 0 (RoBERTa, BART: 2).
      rotary_base: the base of the rotary frequencies.
      local_rotary_base: of the layers with a window (Gemma 3, ModernBERT), whose frequencies are then not scaled. None:
        `rotary_base`.
      rotary_fraction: the share of each head, from its beginning, that is rotated (GPT-NeoX: 0.25).
      rotary_scaling: how a model that was trained on short texts reads long ones: "linear" divides all frequencies by
        `rotary_factor` (Gemma 3), "llama3" only the low ones (Llama 3.1); "none".
      rotary_factor: see `rotary_scaling`.
      rotary_low_frequency: "llama3" divides the frequencies that turn at most this often in `rotary_original_length`.
      rotary_high_frequency: it keeps those that turn at least this often, and interpolates between the two.
      rotary_original_length: of the texts before scaling, in tokens.
      relative_buckets: number of buckets for "relative" positions.
      relative_max_distance: distances from here on share the last bucket of "relative" positions.
      attention_bias: whether the maps to queries, keys and values have biases (Qwen2). None: as `bias`.
      attention_scale: the factor of the scores (T5: 1; Gemma 2: its `query_pre_attn_scalar` to the power -1/2). None:
        1 / sqrt(H).
      attention_softcap: scores become `softcap * tanh(score / softcap)` (Gemma 2: 50). None: they stay.
      attention_window: a token sees only what is nearer than this, itself included (Mistral, Gemma 2 and 3); in an
        "encoder", what is at most half of this away in either direction (ModernBERT). None: everything.
      global_layers: the layers, counted from 0, without a window.
      query_key_norm: normalizes queries and keys before their rotation: "none", each "head" (Qwen3, Gemma 3), or "all"
        heads together (OLMo2).
      normalization: "layer_norm", "rms_norm", or "rms_norm_offset", whose factor is 1 + its parameter (Gemma).
      normalization_place: "before" each sub-layer (GPT-2, T5), "after" each sum of a sub-layer and its input (the
        Transformer of 2017, BERT), on each "branch" before it is added (OLMo2), or "both" before a sub-layer and on its
        branch (Gemma 2 and 3). All but "after" also normalize after the last layer.
      first_norm: whether the attention of the first layer has a norm before it (ModernBERT: false).
      parallel_residual: whether attention and feed-forward layer read the same stream and are added to it together
        (GPT-NeoX).
      normalize_embeddings: whether the sum of the embeddings is normalized too (BERT).
      scale_embeddings: whether token embeddings are multiplied by sqrt(D) (Gemma, Marian). None: with "sinusoidal"
        positions.
      separate_embeddings: whether the decoder of an "encoder_decoder" has a position table and an embedding norm of its
        own (BART).
      normalization_epsilon: added to the variance.
      activation: "gelu" (exact), "gelu_tanh" (its tanh form, as in GPT-2), "relu", "silu" (Marian), or gated with a
        third matrix: "swiglu" (Llama), "gated_gelu" (its tanh form: T5 1.1, Gemma), "gated_gelu_exact" (ModernBERT).
      bias: whether linear maps and LayerNorm have biases.
      tie_embeddings: whether the output matrix is the token embedding.
      output_bias: whether logits have a bias (Marian, BART); that of an "encoder" belongs to its prediction head.
      logit_scale: the factor of the logits (T5 1.0: D to the power -1/2).
      logit_softcap: logits become `softcap * tanh(logit / softcap)` (Gemma 2: 30). None: they stay.
      dropout: the rate after the embedding and after each sub-layer, in [0, 1).
      attention_dropout: the rate of attention probabilities, in [0, 1); above 0, training needs "explicit" attention,
        which "auto" then chooses.
      initializer_range: standard deviation of the initial weights, divided by sqrt(2 L) for maps back into the residual
        stream (Radford et al. 2019).
      dtype: of the computation. Logits are always float32.
      parameter_dtype: of the stored parameters.
      attention: "auto" takes what suits the device: a fused kernel, "cudnn" on NVIDIA GPUs (16-bit dtypes, heads up to
        128 wide) and "splash" on TPUs (lengths in steps of 128, no relative positions), and on CPU "explicit", which
        has a hand-written backward pass. Where a kernel cannot do what is asked, it is "xla", which runs everywhere, or
        "explicit" for caps of scores, dropout and decoding (`lm.modules.attention_choice` has the rule). A kernel's
        name means the same as "auto" on its own devices, and no kernel on others.
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
    sequence_length: int | None = _setting(None, execution=True)
    segment_types: int = _setting(0, architecture=ONE_STACK)
    embedding_width: int | None = _setting(None, architecture=("encoder",))
    positions: str = _setting("learned", architecture=TRANSFORMERS)
    position_offset: int = _setting(0, positions=("learned",), architecture=TRANSFORMERS)
    rotary_base: float = _setting(10_000.0, positions=("rotary",), architecture=TRANSFORMERS)
    local_rotary_base: float | None = _setting(
        None, attention_window=GIVEN, positions=("rotary",), architecture=ONE_STACK
    )
    rotary_fraction: float = _setting(1.0, positions=("rotary",), architecture=TRANSFORMERS)
    rotary_scaling: str = _setting("none", positions=("rotary",), architecture=TRANSFORMERS)
    rotary_factor: float = _setting(1.0, rotary_scaling=("linear", "llama3"))
    rotary_low_frequency: float = _setting(1.0, rotary_scaling=("llama3",))
    rotary_high_frequency: float = _setting(4.0, rotary_scaling=("llama3",))
    rotary_original_length: int = _setting(8192, rotary_scaling=("llama3",))
    relative_buckets: int = _setting(32, positions=("relative",), architecture=TRANSFORMERS)
    relative_max_distance: int = _setting(128, positions=("relative",), architecture=TRANSFORMERS)
    attention_bias: bool | None = _setting(None, architecture=TRANSFORMERS)
    attention_scale: float | None = _setting(None, architecture=TRANSFORMERS)
    attention_softcap: float | None = _setting(None, architecture=TRANSFORMERS)
    attention_window: int | None = _setting(None, architecture=ONE_STACK)
    global_layers: tuple[int, ...] = _setting((), attention_window=GIVEN, architecture=ONE_STACK)
    query_key_norm: str = _setting("none", architecture=ONE_STACK)
    normalization: str = _setting("layer_norm", architecture=TRANSFORMERS)
    normalization_place: str = _setting("before", architecture=TRANSFORMERS)
    first_norm: bool = _setting(True, normalization_place=("before",), architecture=ONE_STACK)
    parallel_residual: bool = _setting(False, normalization_place=("before",), architecture=ONE_STACK)
    normalize_embeddings: bool = _setting(False, architecture=TRANSFORMERS)
    scale_embeddings: bool | None = _setting(None, architecture=TRANSFORMERS)
    separate_embeddings: bool = _setting(False, architecture=("encoder_decoder",))
    normalization_epsilon: float = _setting(1e-5, architecture=TRANSFORMERS)
    activation: str = _setting("gelu_tanh", architecture=TRANSFORMERS)
    bias: bool = _setting(False, architecture=TRANSFORMERS)
    tie_embeddings: bool = _setting(True, architecture=TRANSFORMERS)
    output_bias: bool = _setting(False, architecture=("decoder", "encoder_decoder"))
    logit_scale: float = _setting(1.0, architecture=TRANSFORMERS)
    logit_softcap: float | None = _setting(None, architecture=TRANSFORMERS)
    dropout: float = _setting(0.0, execution=True)
    attention_dropout: float = _setting(0.0, execution=True, architecture=TRANSFORMERS)
    initializer_range: float = 0.02
    dtype: str = _setting("float32", execution=True)
    parameter_dtype: str = _setting("float32", execution=True)
    attention: str = _setting("auto", execution=True, architecture=TRANSFORMERS)
    gradients: str = _setting("explicit", execution=True, architecture=TRANSFORMERS)
    scan_layers: bool = _setting(False, architecture=TRANSFORMERS)
    rematerialize: str = _setting("none", execution=True, architecture=TRANSFORMERS)

    def __post_init__(self):
        self._check_sizes()
        self._check_choices()
        refuse_idle(self, "config.model", idle_settings(vars(self)))
        self._check_heads()
        self._check_layers()
        self._check_attention()

    def _check_attention(self):
        """Checks that a named implementation of attention can do what is asked for."""
        if self.attention == "cudnn" and self.dtype == "float32":
            raise UserError("config.model.attention=cudnn needs config.model.dtype=bfloat16 or float16")
        if self.attention_softcap is not None and self.attention in ("xla", "cudnn"):
            raise UserError(
                f"config.model.attention={self.attention} cannot cap scores, which config.model.attention_softcap asks "
                "for: set config.model.attention=auto"
            )
        if self.attention_dropout and self.attention not in ("auto", "explicit"):
            raise UserError(
                f"config.model.attention={self.attention} cannot drop attention probabilities, which "
                "config.model.attention_dropout asks for: set config.model.attention=auto"
            )
        if self.attention == "splash" and self.positions == "relative":
            raise UserError(
                "config.model.attention=splash cannot add config.model.positions=relative to scores: set "
                "config.model.attention=auto"
            )

    def _check_sizes(self):
        sizes = ("vocab_size", "layers", "width", "heads", "kv_heads", "head_width", "feed_forward_width", "max_length")
        sizes += ("decoder_layers", "recurrent_width", "relative_buckets", "relative_max_distance")
        sizes += ("sequence_length", "embedding_width", "attention_window", "rotary_original_length")
        for name in sizes:
            value = getattr(self, name)
            least = 2 if name in ("max_length", "sequence_length") else 1
            if value is not None and value < least:
                raise UserError(f"config.model.{name} must be at least {least}, got {value}")
        positive = ("rotary_base", "local_rotary_base", "rotary_factor", "normalization_epsilon", "initializer_range")
        positive += ("attention_scale", "attention_softcap", "logit_scale", "logit_softcap", "rotary_low_frequency")
        for name in positive:
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"config.model.{name} must be positive, got {value}")
        for name in ("segment_types", "position_offset"):
            if getattr(self, name) < 0:
                raise UserError(f"config.model.{name} must not be negative, got {getattr(self, name)}")
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"config.model.{name} must be in [0, 1), got {getattr(self, name)}")
        if self.rotary_high_frequency <= self.rotary_low_frequency:
            raise UserError(
                f"config.model.rotary_high_frequency={self.rotary_high_frequency} must be above "
                f"config.model.rotary_low_frequency={self.rotary_low_frequency}"
            )

    def _check_heads(self):
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
        if not 0 < self.rotary_fraction <= 1:
            raise UserError(f"config.model.rotary_fraction must be in (0, 1], got {self.rotary_fraction}")
        if self.positions == "rotary" and self.rotary_fraction == 1 and self.size_per_head % 2:
            raise UserError(f"rotary positions need an even config.model.head_width, got {self.size_per_head}")
        if self.positions == "rotary" and (self.rotary_width % 2 or not self.rotary_width):
            raise UserError(
                f"config.model.rotary_fraction={self.rotary_fraction} rotates {self.rotary_width} of the "
                f"{self.size_per_head} numbers of a head: they must be pairs"
            )

    def _check_layers(self):
        """Checks what belongs to some layers or to one side only."""
        if not isinstance(self.global_layers, tuple):
            raise UserError(f"config.model.global_layers must be a tuple of layers, got {self.global_layers!r}")
        if wrong := [layer for layer in self.global_layers if not 0 <= layer < self.layers]:
            raise UserError(
                f"config.model.global_layers names layer {wrong[0]}, and config.model.layers={self.layers} has layers "
                f"0 to {self.layers - 1}"
            )
        if self.separate_embeddings and self.positions != "learned" and not self.normalize_embeddings:
            raise UserError(
                "config.model.separate_embeddings has no effect without config.model.positions=learned or "
                "config.model.normalize_embeddings: leave it out"
            )

    def _check_choices(self):
        choices = {
            "architecture": ARCHITECTURES,
            "positions": POSITIONS,
            "normalization": NORMALIZATIONS,
            "normalization_place": PLACEMENTS,
            "query_key_norm": QUERY_KEY_NORMS,
            "rotary_scaling": ROTARY_SCALINGS,
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

    def check_lengths(self) -> None:
        """Checks that the model can process its training windows or examples.

        This is not checked on construction, because with `init_from` the two lengths come from two configs.

        Raises:
          UserError: if it cannot.
        """
        if self.size_of_sequence > self.max_length:
            raise UserError(
                f"config.model.sequence_length={self.sequence_length} is longer than the model can process "
                f"(config.model.max_length={self.max_length}): lower it"
            )

    def executed_as(self, other: "ModelConfig") -> "ModelConfig":
        """This shape, with the execution settings of another config.

        Raises:
          UserError: if it sets something that has no effect on this shape, or sequences that are too long for it.
        """
        combined = dataclasses.replace(self, **{name: getattr(other, name) for name in EXECUTION})
        combined.check_lengths()
        return combined

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
    def size_of_sequence(self) -> int:
        """The longest training window or example, with the default resolved."""
        return self.sequence_length or self.max_length

    @property
    def length_setting(self) -> str:
        """The name, for messages, of the setting that `size_of_sequence` comes from."""
        return "config.model.max_length" if self.sequence_length is None else "config.model.sequence_length"

    @property
    def size_of_embedding(self) -> int:
        """Width of the embeddings, with the default resolved."""
        return self.embedding_width or self.width

    @property
    def scales_embeddings(self) -> bool:
        """`scale_embeddings`, with the default resolved."""
        return self.positions == "sinusoidal" if self.scale_embeddings is None else self.scale_embeddings

    @property
    def has_attention_bias(self) -> bool:
        """`attention_bias`, with the default resolved."""
        return self.bias if self.attention_bias is None else self.attention_bias

    @property
    def rotary_width(self) -> int:
        """How many numbers of each head are rotated."""
        return int(self.size_per_head * self.rotary_fraction)

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
        if (known[other] is None if allowed is GIVEN else known[other] not in allowed)
    }
