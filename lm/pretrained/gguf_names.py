"""Names of tensors in GGUF files and in transformers, by architecture, and what llama.cpp's converter changes.

Axes: N heads, H head width, R rows of a matrix (features that it gives), ... any others.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping

import numpy as np

# Names without `.weight` or `.bias`. Those of layers follow `blk.{layer}.` there, and the prefix below here.
_LLAMA = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_OUTER_NORMS = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
_GEMMA_2 = {**_LLAMA, **_OUTER_NORMS, "ffn_norm": "pre_feedforward_layernorm"}
_OLMO_2 = {
    **{name: theirs for name, theirs in _LLAMA.items() if name not in ("attn_norm", "ffn_norm")},
    **_OUTER_NORMS,
    **_HEAD_NORMS,
}
_PHI_3 = {
    "attn_norm": "input_layernorm",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.gate_up_proj",
    "ffn_down": "mlp.down_proj",
}
_GPT_2 = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
_GPT_NEOX = {
    "attn_norm": "input_layernorm",
    "attn_qkv": "attention.query_key_value",
    "attn_output": "attention.dense",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.dense_h_to_4h",
    "ffn_down": "mlp.dense_4h_to_h",
}
_BERT = {
    "attn_q": "attention.self.query",
    "attn_k": "attention.self.key",
    "attn_v": "attention.self.value",
    "attn_output": "attention.output.dense",
    "attn_output_norm": "attention.output.LayerNorm",
    "ffn_up": "intermediate.dense",
    "ffn_down": "output.dense",
    "layer_output_norm": "output.LayerNorm",
}
_MODERN_BERT = {
    "attn_norm": "attn_norm",
    "attn_qkv": "attn.Wqkv",
    "attn_output": "attn.Wo",
    "ffn_norm": "mlp_norm",
    "ffn_up": "mlp.Wi",
    "ffn_down": "mlp.Wo",
}
_T5_ATTENTION = {
    "attn_norm": "layer.0.layer_norm",
    "attn_q": "layer.0.SelfAttention.q",
    "attn_k": "layer.0.SelfAttention.k",
    "attn_v": "layer.0.SelfAttention.v",
    "attn_o": "layer.0.SelfAttention.o",
    "attn_rel_b": "layer.0.SelfAttention.relative_attention_bias",
}
_T5_CROSS_ATTENTION = {
    "cross_attn_norm": "layer.1.layer_norm",
    "cross_attn_q": "layer.1.EncDecAttention.q",
    "cross_attn_k": "layer.1.EncDecAttention.k",
    "cross_attn_v": "layer.1.EncDecAttention.v",
    "cross_attn_o": "layer.1.EncDecAttention.o",
}

_OUTER_LLAMA = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_OUTER_GPT_2 = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
}
_OUTER_GPT_NEOX = {
    "token_embd": "gpt_neox.embed_in",
    "output_norm": "gpt_neox.final_layer_norm",
    "output": "embed_out",
}
_OUTER_BERT = {
    "token_embd": "embeddings.word_embeddings",
    "position_embd": "embeddings.position_embeddings",
    "token_types": "embeddings.token_type_embeddings",
    "token_embd_norm": "embeddings.LayerNorm",
}
_OUTER_MODERN_BERT = {
    "token_embd": "embeddings.tok_embeddings",
    "token_embd_norm": "embeddings.norm",
    "output_norm": "final_norm",
}
_OUTER_T5 = {
    "token_embd": "shared",
    "output": "lm_head",
    "enc.output_norm": "encoder.final_layer_norm",
    "dec.output_norm": "decoder.final_layer_norm",
}


def _t5_feed_forward(number: int, gated: bool) -> dict[str, str]:
    """Names of one side's feed-forward layers, which are its layers of this number."""
    inner = f"layer.{number}.DenseReluDense"
    names = {"ffn_norm": f"layer.{number}.layer_norm", "ffn_down": f"{inner}.wo"}
    return names | ({"ffn_gate": f"{inner}.wi_0", "ffn_up": f"{inner}.wi_1"} if gated else {"ffn_up": f"{inner}.wi"})


@dataclasses.dataclass(frozen=True)
class Naming:
    """How one architecture's tensors are called, without `.weight` and `.bias`.

    Attributes:
      outer: names outside layers.
      layers: by GGUF's prefix of layers, transformers' prefix and the names in a layer.
    """

    outer: Mapping[str, str]
    layers: Mapping[str, tuple[str, Mapping[str, str]]]

    def find(self, name: str) -> str | None:
        """Transformers' name of a tensor, or None if it is not known."""
        stem, dot, ending = name.rpartition(".")
        if ending not in ("weight", "bias"):
            return None
        if theirs := self.outer.get(stem):
            return theirs + dot + ending
        if not (match := re.fullmatch(r"(\w+(?:\.blk)?)\.(\d{1,4})\.(\w+)", stem)) or match[1] not in self.layers:
            return None
        prefix, names = self.layers[match[1]]
        return f"{prefix}.{match[2]}.{names[match[3]]}.{ending}" if match[3] in names else None


def naming(architecture: str, names: set[str]) -> Naming:
    """The names of an architecture.

    Args:
      architecture: one of `gguf_configs.ARCHITECTURES`.
      names: of the tensors in the file.
    """
    if architecture == "t5":
        gated = "enc.blk.0.ffn_gate.weight" in names
        encoder = {**_T5_ATTENTION, **_t5_feed_forward(1, gated)}
        decoder = {**_T5_ATTENTION, **_T5_CROSS_ATTENTION, **_t5_feed_forward(2, gated)}
        return Naming(_OUTER_T5, {"enc.blk": ("encoder.block", encoder), "dec.blk": ("decoder.block", decoder)})
    outer, prefix, inner = _NAMES[architecture]
    return Naming(outer, {"blk": (prefix, inner)})


_NAMES: Mapping[str, tuple[Mapping[str, str], str, Mapping[str, str]]] = {
    "llama": (_OUTER_LLAMA, "model.layers", _LLAMA),
    "qwen2": (_OUTER_LLAMA, "model.layers", _LLAMA),
    "qwen3": (_OUTER_LLAMA, "model.layers", {**_LLAMA, **_HEAD_NORMS}),
    "gemma": (_OUTER_LLAMA, "model.layers", _LLAMA),
    "gemma2": (_OUTER_LLAMA, "model.layers", _GEMMA_2),
    "gemma3": (_OUTER_LLAMA, "model.layers", {**_GEMMA_2, **_HEAD_NORMS}),
    "phi3": (_OUTER_LLAMA, "model.layers", _PHI_3),
    "olmo2": (_OUTER_LLAMA, "model.layers", _OLMO_2),
    "gpt2": (_OUTER_GPT_2, "transformer.h", _GPT_2),
    "gptneox": (_OUTER_GPT_NEOX, "gpt_neox.layers", _GPT_NEOX),
    "bert": (_OUTER_BERT, "encoder.layer", _BERT),
    "modern-bert": (_OUTER_MODERN_BERT, "layers", _MODERN_BERT),
}

# From an array as it is stored to the array of transformers.
Undo = Callable[[np.ndarray], np.ndarray]


def undo_of(architecture: str, name: str, heads: int, key_value_heads: int) -> Undo | None:
    """What undoes the converter's change of a tensor, or None if it made none.

    Args:
      architecture: one of `gguf_configs.ARCHITECTURES`.
      name: transformers' name.
      heads: query heads.
      key_value_heads: key and value heads.
    """
    stem = name.rpartition(".")[0]
    if architecture == "llama" and stem.endswith((".q_proj", ".k_proj")):
        count = heads if stem.endswith(".q_proj") else key_value_heads
        return lambda array: _halves_from_pairs(array, count)
    if architecture in ("gemma", "gemma2", "gemma3") and name.endswith("norm.weight"):
        return lambda array: array - np.float32(1)
    if architecture == "gpt2" and name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
        return np.transpose
    if architecture == "gptneox" and stem.endswith(".query_key_value"):
        return lambda array: _parts_by_head(array, heads)
    return None


def _halves_from_pairs(array: np.ndarray, heads: int) -> np.ndarray:
    """Rows [R, ...] of queries or keys from those that llama.cpp rotates in neighbouring pairs.

    Transformers rotates the first half of a head's rows against the second.
    """
    pairs = array.reshape(heads, -1, 2, *array.shape[1:])
    return pairs.swapaxes(1, 2).reshape(array.shape)


def _parts_by_head(array: np.ndarray, heads: int) -> np.ndarray:
    """Rows [N, query key value, H, ...] from rows [query key value, N, H, ...]."""
    parts = array.reshape(3, heads, -1, *array.shape[1:])
    return parts.swapaxes(0, 1).reshape(array.shape)
