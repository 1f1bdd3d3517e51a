"""Families of decoders: GPT-2, GPT-NeoX, Llama and its relatives.

Shapes follow transformers' config classes, whose defaults apply where config.json leaves a value out.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

from lm.modules.config import ModelConfig
from lm.pretrained.activations import PLAIN_ACTIVATIONS, published_name
from lm.pretrained.family import Family
from lm.pretrained.gemma import GEMMA
from lm.pretrained.layers import FULL, LOCAL, count_of_layers, layer_types, windows
from lm.pretrained.llama_like import (
    NO_SPECIAL_TOKENS,
    UNUSED_FREQUENCIES,
    Defaults,
    llama_like,
    llama_like_family,
    llama_like_published,
)
from lm.pretrained.published_config import PublishedConfig
from lm.pretrained.rotary import rotary_from_published, rotary_to_published
from lm.pretrained.rules import SAME, Rule, linear, norm, query_key_value, same


def _gpt2_to_ours(published: PublishedConfig) -> ModelConfig:
    width = published.integer("n_embd", 768, least=1)
    heads = published.integer("n_head", 12, least=1)
    published.divides("n_head", heads, "n_embd", width)
    published.expect("scale_attn_weights", True)
    published.expect("scale_attn_by_inverse_layer_idx", False)
    published.expect("add_cross_attention", False)
    return ModelConfig(
        vocab_size=published.integer("vocab_size", 50_257, least=1),
        layers=count_of_layers(published, 12, "n_layer"),
        width=width,
        heads=heads,
        feed_forward_width=published.integer("n_inner", None, least=1),
        max_length=published.integer("n_positions", 1024, least=2),
        normalization_epsilon=published.number("layer_norm_epsilon", 1e-5),
        activation=published.choice("activation_function", PLAIN_ACTIVATIONS, "gelu_new"),
        tie_embeddings=published.flag("tie_word_embeddings", True),
        bias=True,
        dropout=published.number("resid_pdrop", 0.1),
        attention_dropout=published.number("attn_pdrop", 0.1),
    )


def _gpt2_to_theirs(config: ModelConfig) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_layer": config.layers,
        "n_embd": config.width,
        "n_head": config.heads,
        "n_inner": config.feed_forward_width,
        "n_positions": config.max_length,
        "layer_norm_epsilon": config.normalization_epsilon,
        "activation_function": published_name(config, PLAIN_ACTIVATIONS),
        "tie_word_embeddings": config.tie_embeddings,
        **NO_SPECIAL_TOKENS,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop"), config.dropout),
        "attn_pdrop": config.attention_dropout,
    }


def _gpt2_rules(config: ModelConfig) -> Iterator[Rule]:
    yield same("token_embedding/embedding", "transformer.wte.weight")
    yield same("position_embedding/embedding", "transformer.wpe.weight")
    for number in range(config.layers):
        ours, theirs = f"decoder/layer_{number}", f"transformer.h.{number}"
        yield from norm(f"{ours}/attention_norm", f"{theirs}.ln_1", config)
        fused = (f"{theirs}.attn.c_attn",)
        yield from query_key_value(f"{ours}/attention/query_key_value", fused, config, bias=True, conv1d=True)
        yield from linear(f"{ours}/attention/output", f"{theirs}.attn.c_proj", True, SAME)
        yield from norm(f"{ours}/feed_forward_norm", f"{theirs}.ln_2", config)
        yield from linear(f"{ours}/feed_forward/up", f"{theirs}.mlp.c_fc", True, SAME)
        yield from linear(f"{ours}/feed_forward/down", f"{theirs}.mlp.c_proj", True, SAME)
    yield from norm("decoder/final_norm", "transformer.ln_f", config)
    if not config.tie_embeddings:
        yield same("output", "lm_head.weight")


def _neox_to_ours(published: PublishedConfig) -> ModelConfig:
    published.expect("attention_bias", True)
    width = published.integer("hidden_size", 6144, least=1)
    heads = published.integer("num_attention_heads", 64, least=1)
    published.divides("num_attention_heads", heads, "hidden_size", width)
    return ModelConfig(
        vocab_size=published.integer("vocab_size", 50_432, least=1),
        layers=count_of_layers(published, 44),
        width=width,
        heads=heads,
        feed_forward_width=published.integer("intermediate_size", 24_576, least=1),
        max_length=published.integer("max_position_embeddings", 2048, least=2),
        normalization_epsilon=published.number("layer_norm_eps", 1e-5),
        parallel_residual=published.flag("use_parallel_residual", True),
        activation=published.choice("hidden_act", PLAIN_ACTIVATIONS, "gelu"),
        tie_embeddings=published.flag("tie_word_embeddings", False),
        bias=True,
        dropout=published.number("hidden_dropout", 0.0),
        attention_dropout=published.number("attention_dropout", 0.0),
        positions="rotary",
        **rotary_from_published(published, "rotary_emb_base", "rotary_pct", 0.25),
    )


def _neox_to_theirs(config: ModelConfig) -> dict[str, Any]:
    return {
        "model_type": "gpt_neox",
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.layers,
        "hidden_size": config.width,
        "num_attention_heads": config.heads,
        "intermediate_size": config.size_of_feed_forward,
        "max_position_embeddings": config.max_length,
        "layer_norm_eps": config.normalization_epsilon,
        "use_parallel_residual": config.parallel_residual,
        "hidden_act": published_name(config, PLAIN_ACTIVATIONS),
        "tie_word_embeddings": config.tie_embeddings,
        **NO_SPECIAL_TOKENS,
        "hidden_dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "rotary_pct": config.rotary_fraction,
        "rotary_emb_base": config.rotary_base,
        **rotary_to_published(config),
    }


def _neox_rules(config: ModelConfig) -> Iterator[Rule]:
    yield same("token_embedding/embedding", "gpt_neox.embed_in.weight")
    for number in range(config.layers):
        ours, theirs = f"decoder/layer_{number}", f"gpt_neox.layers.{number}"
        yield from norm(f"{ours}/attention_norm", f"{theirs}.input_layernorm", config)
        # Their columns are grouped by head, as ours.
        yield from linear(f"{ours}/attention/query_key_value", f"{theirs}.attention.query_key_value", True)
        yield from linear(f"{ours}/attention/output", f"{theirs}.attention.dense", True)
        yield from norm(f"{ours}/feed_forward_norm", f"{theirs}.post_attention_layernorm", config)
        yield from linear(f"{ours}/feed_forward/up", f"{theirs}.mlp.dense_h_to_4h", True)
        yield from linear(f"{ours}/feed_forward/down", f"{theirs}.mlp.dense_4h_to_h", True)
    yield from norm("decoder/final_norm", "gpt_neox.final_layer_norm", config)
    if not config.tie_embeddings:
        yield same("output", "embed_out.weight")


def _llama_to_ours(published: PublishedConfig) -> ModelConfig:
    for name in ("attention_bias", "mlp_bias"):
        published.expect(name, False)
    # With more, a product was once computed in parts.
    published.expect("pretraining_tp", 1)
    return llama_like(published, Defaults(), **rotary_from_published(published))


def _llama_to_theirs(config: ModelConfig) -> dict[str, Any]:
    return llama_like_published(config, "llama")


_MISTRAL = Defaults(kv_heads=8, feed_forward_width=14_336, max_length=131_072)


def _mistral_to_ours(published: PublishedConfig) -> ModelConfig:
    published.expect("layer_types", None)
    return llama_like(
        published,
        _MISTRAL,
        attention_window=published.integer("sliding_window", 4096, least=1, nullable=True),
        **rotary_from_published(published),
    )


def _mistral_to_theirs(config: ModelConfig) -> dict[str, Any]:
    return llama_like_published(config, "mistral", sliding_window=config.attention_window)


_QWEN2 = Defaults(vocab_size=151_936, kv_heads=32, feed_forward_width=22_016, max_length=32_768)
_QWEN3 = dataclasses.replace(_QWEN2, head_width=128)


def _qwen_windows(published: PublishedConfig) -> dict[str, Any]:
    """Our settings of windows: the first layers see everything."""
    has_window = published.flag("use_sliding_window", False) and published.values.get("sliding_window", 0) is not None
    first = published.integer("max_window_layers", 28) if has_window else 10**9
    kinds = [LOCAL if number >= first else FULL for number in range(count_of_layers(published, _QWEN2.layers))]
    return windows(published, 4096, kinds, has_window)


def _qwen_windows_published(config: ModelConfig) -> dict[str, Any]:
    kinds = layer_types(config)
    return {
        "use_sliding_window": LOCAL in kinds,
        "sliding_window": config.attention_window,
        "max_window_layers": kinds.index(LOCAL) if LOCAL in kinds else config.layers,
        "layer_types": kinds,
    }


def _qwen2_to_ours(published: PublishedConfig) -> ModelConfig:
    settings = _qwen_windows(published) | rotary_from_published(published)
    return llama_like(published, _QWEN2, attention_bias=True, **settings)


def _qwen2_to_theirs(config: ModelConfig) -> dict[str, Any]:
    return llama_like_published(config, "qwen2", **_qwen_windows_published(config))


def _qwen3_to_ours(published: PublishedConfig) -> ModelConfig:
    published.expect("attention_bias", False)
    settings = _qwen_windows(published) | rotary_from_published(published)
    return llama_like(published, _QWEN3, query_key_norm="head", **settings)


def _qwen3_to_theirs(config: ModelConfig) -> dict[str, Any]:
    return llama_like_published(config, "qwen3", **_qwen_windows_published(config))


_OLMO2 = Defaults(vocab_size=50_304, epsilon=1e-5)


def _olmo2_to_ours(published: PublishedConfig) -> ModelConfig:
    published.expect("attention_bias", False)
    return llama_like(
        published,
        _OLMO2,
        query_key_norm="all",
        normalization_place="branch",
        **rotary_from_published(published),
    )


def _olmo2_to_theirs(config: ModelConfig) -> dict[str, Any]:
    return llama_like_published(config, "olmo2")


_PHI3 = Defaults(vocab_size=32_064, width=3072, feed_forward_width=8192, max_length=4096, epsilon=1e-5)


def _phi3_to_ours(published: PublishedConfig) -> ModelConfig:
    return llama_like(
        published,
        _PHI3,
        attention_window=published.integer("sliding_window", None, least=1),
        dropout=published.number("resid_pdrop", 0.0),
        **rotary_from_published(published, fraction="partial_rotary_factor"),
    )


def _phi3_to_theirs(config: ModelConfig) -> dict[str, Any]:
    return llama_like_published(
        config,
        "phi3",
        sliding_window=config.attention_window,
        partial_rotary_factor=config.rotary_fraction,
        resid_pdrop=config.dropout,
    )


# Constants that older versions of transformers wrote.
_MASKS = r"\.(attn|attention)\.(masked_)?bias$"

DECODERS = (
    Family(
        name="GPT-2",
        model_types=("gpt2",),
        prefix="transformer.",
        to_ours=_gpt2_to_ours,
        to_theirs=_gpt2_to_theirs,
        rules=_gpt2_rules,
        models={(): "GPT2LMHeadModel"},
        unused=(_MASKS,),
        copies={"lm_head.weight": "transformer.wte.weight"},
    ),
    Family(
        name="GPT-NeoX, Pythia",
        model_types=("gpt_neox",),
        prefix="gpt_neox.",
        to_ours=_neox_to_ours,
        to_theirs=_neox_to_theirs,
        rules=_neox_rules,
        models={(): "GPTNeoXForCausalLM"},
        unused=(_MASKS, UNUSED_FREQUENCIES),
        copies={"embed_out.weight": "gpt_neox.embed_in.weight"},
        # Inside of transformers 5 it has this name.
        old_names={"embed_out.weight": "lm_head.weight"},
    ),
    llama_like_family(
        "Llama 1 to 3, TinyLlama, SmolLM2", "llama", "LlamaForCausalLM", _llama_to_ours, _llama_to_theirs
    ),
    llama_like_family("Mistral", "mistral", "MistralForCausalLM", _mistral_to_ours, _mistral_to_theirs),
    llama_like_family("Qwen2, Qwen2.5", "qwen2", "Qwen2ForCausalLM", _qwen2_to_ours, _qwen2_to_theirs),
    llama_like_family("Qwen3", "qwen3", "Qwen3ForCausalLM", _qwen3_to_ours, _qwen3_to_theirs),
    llama_like_family("OLMo2", "olmo2", "Olmo2ForCausalLM", _olmo2_to_ours, _olmo2_to_theirs),
    llama_like_family("Phi-3", "phi3", "Phi3ForCausalLM", _phi3_to_ours, _phi3_to_theirs, fused=True),
    *GEMMA,
)
