"""The config.json that a GGUF file's metadata stand for, with the keys of transformers 4.

What a file does not hold has one value in all published models of the architecture, which is given here. The sliding
window of Mistral 7B v0.1 is not in its GGUF files: llama.cpp does without.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lm.errors import UserError

Config = dict[str, Any]


class Metadata:
    """The metadata of one model, whose keys begin with its architecture, and the shapes of its tensors."""

    def __init__(self, path: Path, values: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]):
        self.path = path
        self.values = values
        self.shapes = shapes
        self.architecture = str(values.get("general.architecture"))

    def count(self, key: str, default: int | None = None) -> int:
        """A number of things, at least one.

        Raises:
          UserError: if it is missing without a default, or something else.
        """
        value = self._value(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
            varies = " (layers that differ are not supported)" if isinstance(value, list) else ""
            raise UserError(f"{self.path}: {self.architecture}.{key} is not a positive number{varies}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number.

        Raises:
          UserError: if it is missing without a default, or something else.
        """
        value = self._value(key, default)
        if not isinstance(value, int | float) or not 0 < value < math.inf:
            raise UserError(f"{self.path}: {self.architecture}.{key} is not a positive number")
        return float(value)

    def get(self, key: str) -> Any:
        """Any value, or None."""
        return self.values.get(f"{self.architecture}.{key}")

    def rows(self, tensor: str, default: int | None = None) -> int:
        """The first dimension of a matrix.

        Raises:
          UserError: if there is no such matrix and no default.
        """
        shape = self.shapes.get(tensor, ())
        if len(shape) != 2 and (tensor in self.shapes or default is None):
            raise UserError(f"{self.path} has no matrix {tensor}: give the file of a whole model")
        return shape[0] if shape else default or 0

    def unsupported(self, what: str) -> UserError:
        """What to raise for a model that is not supported."""
        return UserError(f"{self.path} has {what}, which is not supported: give another model")

    def _value(self, key: str, default: Any) -> Any:
        value = self.get(key)
        if value is None and default is None:
            raise UserError(
                f"{self.path} has no metadata {self.architecture}.{key}: convert the model again with llama.cpp"
            )
        return default if value is None else value


def config_of(metadata: Metadata) -> Config:
    """The model's config.json.

    Raises:
      UserError: if the architecture is not known, or the metadata are incomplete or ask for what is not supported.
    """
    if metadata.architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UserError(f"{metadata.path} has architecture {metadata.architecture!r:.50}, but those known are {known}")
    if metadata.values.get("general.type", "model") != "model":
        raise UserError(
            f"{metadata.path} is of type {metadata.values['general.type']!r:.50}, not a model: give the model's file"
        )
    if metadata.get("expert_count"):
        raise metadata.unsupported("a mixture of experts")
    return {**ARCHITECTURES[metadata.architecture](metadata), **_special_tokens(metadata)}


def _special_tokens(metadata: Metadata) -> Config:
    """Ids of tokens that the tokenizer's metadata name."""
    found = {}
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        value = metadata.values.get(f"tokenizer.ggml.{theirs}_token_id")
        if isinstance(value, int):
            found[f"{ours}_token_id"] = value
    return found


def _llama_like(metadata: Metadata, model_type: str, name: str, activation: str = "silu") -> Config:
    """What nearly all decoders have."""
    heads, width = metadata.count("attention.head_count"), metadata.count("embedding_length")
    key_value_heads = metadata.count("attention.head_count_kv", heads)
    if (width % heads and metadata.get("attention.key_length") is None) or heads % key_value_heads:
        raise UserError(
            f"{metadata.path}: {heads} heads do not fit width {width} and {key_value_heads} key-value heads"
        )
    head_width = metadata.count("attention.key_length", width // heads)
    if metadata.count("attention.value_length", head_width) != head_width:
        raise metadata.unsupported("values that are not as wide as keys")
    return {
        "model_type": model_type,
        "architectures": [name],
        "vocab_size": metadata.rows("token_embd.weight"),
        "hidden_size": width,
        "intermediate_size": metadata.count("feed_forward_length"),
        "num_hidden_layers": metadata.count("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "head_dim": head_width,
        "hidden_act": activation,
        "max_position_embeddings": metadata.count("context_length"),
        "rms_norm_eps": metadata.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": metadata.number("rope.freq_base", 10000.0),
        "rope_scaling": _rotary_scaling(metadata, head_width),
        "attention_bias": "blk.0.attn_output.bias" in metadata.shapes,
        "tie_word_embeddings": "output.weight" not in metadata.shapes,
    }


def _rotary_scaling(metadata: Metadata, head_width: int) -> Config | None:
    """How rotary frequencies are scaled, as in config.json.

    Raises:
      UserError: if the kind is not supported.
    """
    if frequencies := metadata.values.get(ROTARY_FACTORS):
        return _llama3_scaling(metadata, frequencies, head_width)
    factor = metadata.get("rope.scaling.factor") or metadata.get("rope.scale_linear")
    kind = metadata.get("rope.scaling.type") or ("linear" if factor else "none")
    if kind == "none" or (kind == "linear" and factor in (None, 0, 1)):
        return None
    if kind != "linear" or "rope_factors_long.weight" in metadata.shapes:
        raise metadata.unsupported(f"rotary positions of type {kind!r:.50}")
    return {"rope_type": "linear", "factor": float(factor)}


# Under this key, the values of the tensor `rope_freqs.weight` join the metadata: by what each frequency is divided.
ROTARY_FACTORS = "rope_freqs.weight"


def _llama3_scaling(metadata: Metadata, divisors: list[float], head_width: int) -> Config | None:
    """The parameters of Llama 3.1's scaling from its result, the divisor of each frequency.

    The published models share all of them but the factor, which is the divisor of the lowest frequency.
    """
    low, high = 1.0, 4.0
    original = metadata.count("rope.scaling.original_context_length", 8192)
    factor = float(divisors[-1])
    if all(divisor == 1 for divisor in divisors):
        return None
    theta = metadata.number("rope.freq_base", 10000.0)
    wavelengths = 2 * np.pi * theta ** (np.arange(0, head_width, 2) / head_width)
    smooth = np.clip((original / wavelengths - low) / (high - low), 0, 1)
    if len(divisors) != len(smooth) or not np.allclose(divisors, 1 / ((1 - smooth) / factor + smooth), rtol=1e-4):
        raise metadata.unsupported("rotary frequencies (rope_freqs.weight) other than those of Llama 3.1 to 3.3")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


def _llama(metadata: Metadata) -> Config:
    config = _llama_like(metadata, "llama", "LlamaForCausalLM")
    if metadata.count("rope.dimension_count", config["head_dim"]) != config["head_dim"]:
        raise metadata.unsupported("rotary positions on a part of each head")
    return {**config, "mlp_bias": "blk.0.ffn_down.bias" in metadata.shapes}


def _qwen2(metadata: Metadata) -> Config:
    config = _llama_like(metadata, "qwen2", "Qwen2ForCausalLM")
    del config["attention_bias"]  # queries, keys and values always have biases
    return {**config, "use_sliding_window": False}


def _qwen3(metadata: Metadata) -> Config:
    config = _llama_like(metadata, "qwen3", "Qwen3ForCausalLM")
    return {**config, "use_sliding_window": False}


def _gemma(metadata: Metadata) -> Config:
    config = _llama_like(metadata, "gemma", "GemmaForCausalLM", "gelu_pytorch_tanh")
    return {**config, "hidden_activation": config["hidden_act"]}


def _gemma2(metadata: Metadata) -> Config:
    config = _llama_like(metadata, "gemma2", "Gemma2ForCausalLM", "gelu_pytorch_tanh")
    return {
        **config,
        "hidden_activation": config["hidden_act"],
        "query_pre_attn_scalar": _query_scale(metadata, config, largest=46),
        "attn_logit_softcapping": metadata.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": metadata.number("final_logit_softcapping", 30.0),
        "sliding_window": metadata.count("attention.sliding_window", 4096),
        "layer_types": _layer_types(metadata, config["num_hidden_layers"], 2),
    }


def _gemma3(metadata: Metadata) -> Config:
    config = _llama_like(metadata, "gemma3_text", "Gemma3ForCausalLM", "gelu_pytorch_tanh")
    return {
        **config,
        "hidden_activation": config["hidden_act"],
        "query_pre_attn_scalar": _query_scale(metadata, config, largest=62),
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "rope_theta": metadata.number("rope.freq_base", 1e6),
        "rope_local_base_freq": metadata.number("rope.freq_base_swa", 1e4),
        "sliding_window": metadata.count("attention.sliding_window"),
        "layer_types": _layer_types(metadata, config["num_hidden_layers"], 6),
    }


def _query_scale(metadata: Metadata, config: Config, largest: int) -> int | float:
    """Queries are divided by its root: a head's width, or in the 27B models, known by their layers, D / N."""
    if metadata.get("attention.scale") is not None:
        return float(np.float32(metadata.number("attention.scale") ** -2))
    in_heads = config["hidden_size"] // config["num_attention_heads"]
    return in_heads if config["num_hidden_layers"] == largest else config["head_dim"]


def _layer_types(metadata: Metadata, layers: int, default_period: int) -> list[str]:
    """Which layers see everything: the last of each period, unless the file lists those with a window."""
    pattern = metadata.get("attention.sliding_window_pattern")
    if isinstance(pattern, list):
        if len(pattern) != layers:
            raise UserError(
                f"{metadata.path} says of {len(pattern)} layers whether they have a window, but has {layers}"
            )
        local = [bool(windowed) for windowed in pattern]
    else:
        period = metadata.count("attention.sliding_window_pattern", default_period)
        local = [bool((layer + 1) % period) for layer in range(layers)]
    return ["sliding_attention" if windowed else "full_attention" for windowed in local]


def _phi3(metadata: Metadata) -> Config:
    config = _llama_like(metadata, "phi3", "Phi3ForCausalLM")
    del config["attention_bias"]  # there are none
    if "rope_factors_long.weight" in metadata.shapes:
        raise metadata.unsupported("rotary positions of type 'longrope'")
    rotated = metadata.count("rope.dimension_count", config["head_dim"])
    return {
        **config,
        "partial_rotary_factor": rotated / config["head_dim"],
        "sliding_window": metadata.get("attention.sliding_window") or None,
    }


def _olmo2(metadata: Metadata) -> Config:
    if metadata.get("attention.sliding_window"):
        raise metadata.unsupported("layers with a sliding window, as OLMo 3")
    return _llama_like(metadata, "olmo2", "Olmo2ForCausalLM")


def _gpt2(metadata: Metadata) -> Config:
    width = metadata.count("embedding_length")
    inner = metadata.count("feed_forward_length")
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": metadata.rows("token_embd.weight"),
        "n_embd": width,
        "n_inner": None if inner == 4 * width else inner,
        "n_layer": metadata.count("block_count"),
        "n_head": metadata.count("attention.head_count"),
        "n_positions": metadata.rows("position_embd.weight"),
        "activation_function": "gelu_new",
        "layer_norm_epsilon": metadata.number("attention.layer_norm_epsilon"),
        "tie_word_embeddings": True,
    }


def _gpt_neox(metadata: Metadata) -> Config:
    width, heads = metadata.count("embedding_length"), metadata.count("attention.head_count")
    return {
        "model_type": "gpt_neox",
        "architectures": ["GPTNeoXForCausalLM"],
        "vocab_size": metadata.rows("token_embd.weight"),
        "hidden_size": width,
        "intermediate_size": metadata.count("feed_forward_length"),
        "num_hidden_layers": metadata.count("block_count"),
        "num_attention_heads": heads,
        "hidden_act": "gelu",
        "max_position_embeddings": metadata.count("context_length"),
        "layer_norm_eps": metadata.number("attention.layer_norm_epsilon"),
        "rotary_pct": metadata.count("rope.dimension_count") / max(width // heads, 1),
        "rotary_emb_base": metadata.number("rope.freq_base", 10000.0),
        "use_parallel_residual": metadata.get("use_parallel_residual") is not False,
        "attention_bias": True,
        "tie_word_embeddings": "output.weight" not in metadata.shapes,
    }


def _bert(metadata: Metadata) -> Config:
    """BERT, and what llama.cpp stores as BERT.

    RoBERTa and XLM-R come without the first rows of their position tables, and so are BERTs with one type of segment.
    DistilBERT has none.
    """
    return {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "vocab_size": metadata.rows("token_embd.weight"),
        "hidden_size": metadata.count("embedding_length"),
        "intermediate_size": metadata.count("feed_forward_length"),
        "num_hidden_layers": metadata.count("block_count"),
        "num_attention_heads": metadata.count("attention.head_count"),
        "hidden_act": "gelu",
        "max_position_embeddings": metadata.rows("position_embd.weight"),
        "type_vocab_size": metadata.rows("token_types.weight", 0),
        "layer_norm_eps": metadata.number("attention.layer_norm_epsilon"),
        "position_embedding_type": "absolute",
    }


def _modern_bert(metadata: Metadata) -> Config:
    return {
        "model_type": "modernbert",
        "architectures": ["ModernBertModel"],
        "vocab_size": metadata.rows("token_embd.weight"),
        "hidden_size": metadata.count("embedding_length"),
        "intermediate_size": metadata.count("feed_forward_length"),
        "num_hidden_layers": metadata.count("block_count"),
        "num_attention_heads": metadata.count("attention.head_count"),
        "hidden_activation": "gelu",
        "max_position_embeddings": metadata.count("context_length"),
        "norm_eps": metadata.number("attention.layer_norm_epsilon"),
        "norm_bias": False,
        "attention_bias": False,
        "mlp_bias": False,
        "global_rope_theta": metadata.number("rope.freq_base", 160000.0),
        "local_rope_theta": metadata.number("rope.freq_base_swa", 10000.0),
        "local_attention": metadata.count("attention.sliding_window"),
        "global_attn_every_n_layers": metadata.count("attention.sliding_window_pattern", 3),
        "tie_word_embeddings": True,
    }


def _t5(metadata: Metadata) -> Config:
    gated = "enc.blk.0.ffn_gate.weight" in metadata.shapes
    layers = metadata.count("block_count")
    return {
        "model_type": "t5",
        "architectures": ["T5ForConditionalGeneration"],
        "vocab_size": metadata.rows("token_embd.weight"),
        "d_model": metadata.count("embedding_length"),
        "d_kv": metadata.count("attention.key_length"),
        "d_ff": metadata.count("feed_forward_length"),
        "num_layers": layers,
        "num_decoder_layers": metadata.count("decoder_block_count", layers),
        "num_heads": metadata.count("attention.head_count"),
        "n_positions": metadata.count("context_length", 512),
        "relative_attention_num_buckets": metadata.count("attention.relative_buckets_count"),
        "relative_attention_max_distance": 128,
        "layer_norm_epsilon": metadata.number("attention.layer_norm_rms_epsilon"),
        "feed_forward_proj": "gated-gelu" if gated else "relu",
        "is_encoder_decoder": True,
        "decoder_start_token_id": metadata.get("decoder_start_token_id") or 0,
        "tie_word_embeddings": "output.weight" not in metadata.shapes,
    }


ARCHITECTURES: Mapping[str, Callable[[Metadata], Config]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "phi3": _phi3,
    "olmo2": _olmo2,
    "gpt2": _gpt2,
    "gptneox": _gpt_neox,
    "bert": _bert,
    "modern-bert": _modern_bert,
    "t5": _t5,
}
