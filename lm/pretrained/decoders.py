"""Families of decoders: GPT-2; Llama and its relatives.

Shapes follow transformers' config classes, whose defaults apply where config.json leaves a value out.
"""

from collections.abc import Iterator
from typing import Any

from lm.modules.config import ModelConfig
from lm.pretrained.family import Family
from lm.pretrained.published_config import PublishedConfig
from lm.pretrained.rotary import rotary_from_published, rotary_to_published
from lm.pretrained.rules import SAME, Rule, linear, norm, query_key_value, same


def _gpt2_to_ours(published: PublishedConfig) -> ModelConfig:
    width = published.integer("n_embd", 768)
    published.expect("scale_attn_weights", True)
    published.expect("scale_attn_by_inverse_layer_idx", False)
    published.expect("add_cross_attention", False)
    return ModelConfig(
        vocab_size=published.integer("vocab_size", 50_257),
        layers=published.integer("n_layer", 12),
        width=width,
        heads=published.integer("n_head", 12),
        feed_forward_width=published.integer("n_inner", None),
        max_length=published.integer("n_positions", 1024),
        normalization_epsilon=published.number("layer_norm_epsilon", 1e-5),
        activation=published.choice("activation_function", {"gelu_new": "gelu_tanh", "gelu": "gelu"}, "gelu_new"),
        tie_embeddings=published.flag("tie_word_embeddings", True),
        bias=True,
        dropout=published.number("resid_pdrop", 0.1),
    )


def _gpt2_to_theirs(config: ModelConfig, parts: tuple[str, ...]) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": config.vocab_size,
        "n_layer": config.layers,
        "n_embd": config.width,
        "n_head": config.heads,
        "n_inner": config.feed_forward_width,
        "n_positions": config.max_length,
        "layer_norm_epsilon": config.normalization_epsilon,
        "activation_function": {"gelu_tanh": "gelu_new"}.get(config.activation, config.activation),
        "tie_word_embeddings": config.tie_embeddings,
        **{name: config.dropout for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop")},
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


def _llama_to_ours(published: PublishedConfig) -> ModelConfig:
    for name in ("attention_bias", "mlp_bias"):
        published.expect(name, False)
    published.expect("pretraining_tp", 1)
    published.expect("hidden_act", "silu")
    return ModelConfig(
        vocab_size=published.integer("vocab_size", 32_000),
        layers=published.integer("num_hidden_layers", 32),
        width=published.integer("hidden_size", 4096),
        heads=published.integer("num_attention_heads", 32),
        kv_heads=published.integer("num_key_value_heads", None),
        head_width=published.integer("head_dim", None),
        feed_forward_width=published.integer("intermediate_size", 11_008),
        max_length=published.integer("max_position_embeddings", 2048),
        normalization="rms_norm",
        normalization_epsilon=published.number("rms_norm_eps", 1e-6),
        activation="swiglu",
        tie_embeddings=published.flag("tie_word_embeddings", False),
        positions="rotary",
        **rotary_from_published(published),
    )


def _llama_to_theirs(config: ModelConfig, parts: tuple[str, ...]) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.layers,
        "hidden_size": config.width,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.size_per_head,
        "intermediate_size": config.size_of_feed_forward,
        "max_position_embeddings": config.max_length,
        "rms_norm_eps": config.normalization_epsilon,
        "hidden_act": "silu",
        "tie_word_embeddings": config.tie_embeddings,
        **rotary_to_published(config),
    }


def _llama_rules(config: ModelConfig) -> Iterator[Rule]:
    yield same("token_embedding/embedding", "model.embed_tokens.weight")
    for number in range(config.layers):
        ours, theirs = f"decoder/layer_{number}", f"model.layers.{number}"
        yield from norm(f"{ours}/attention_norm", f"{theirs}.input_layernorm", config)
        maps = [f"{theirs}.self_attn.{name}_proj" for name in "qkv"]
        yield from query_key_value(f"{ours}/attention/query_key_value", maps, config, bias=False)
        yield from linear(f"{ours}/attention/output", f"{theirs}.self_attn.o_proj", False)
        yield from norm(f"{ours}/feed_forward_norm", f"{theirs}.post_attention_layernorm", config)
        for name in ("gate", "up", "down"):
            yield from linear(f"{ours}/feed_forward/{name}", f"{theirs}.mlp.{name}_proj", False)
    yield from norm("decoder/final_norm", "model.norm", config)
    if not config.tie_embeddings:
        yield same("output", "lm_head.weight")


DECODERS = (
    Family(
        name="GPT-2",
        model_types=("gpt2",),
        prefix="transformer.",
        to_ours=_gpt2_to_ours,
        to_theirs=_gpt2_to_theirs,
        rules=_gpt2_rules,
        unused=(r"h\.\d+\.attn\.(masked_)?bias$",),
    ),
    Family(
        name="Llama 1 to 3, TinyLlama, SmolLM2",
        model_types=("llama",),
        prefix="model.",
        to_ours=_llama_to_ours,
        to_theirs=_llama_to_theirs,
        rules=_llama_rules,
        unused=(r"rotary_emb\.inv_freq$",),
    ),
)
