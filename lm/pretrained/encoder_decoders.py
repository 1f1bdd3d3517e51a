"""Families of encoder-decoders: T5, BART and Marian.

Shapes follow transformers' config classes, whose defaults apply where config.json leaves a value out.
"""

from collections.abc import Iterator
from typing import Any

from lm.modules.config import ModelConfig
from lm.modules.feed_forward import GATED
from lm.pretrained.activations import PLAIN_ACTIVATIONS, published_name
from lm.pretrained.family import Family
from lm.pretrained.layers import count_of_layers
from lm.pretrained.published_config import PublishedConfig
from lm.pretrained.rules import Arrays, Layout, Rule, key_value, linear, norm, query_key_value, same

# `feed_forward_proj` of T5, and the function that it means: with "gated-gelu" the tanh form, otherwise what it says.
_T5_ACTIVATIONS = {
    "relu": "relu",
    "gated-gelu": "gated_gelu",
    "gated-silu": "swiglu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "silu": "silu",
}
_T5_FUNCTIONS = {"gated-gelu": "gelu_new", "gated-silu": "silu"}


def _t5_to_ours(published: PublishedConfig) -> ModelConfig:
    published.expect("is_decoder", False)
    published.expect("is_encoder_decoder", True)
    is_mt5 = published.values.get("model_type") == "mt5"
    width = published.integer("d_model", 512, least=1)
    layers = count_of_layers(published, 8 if is_mt5 else 6, "num_layers")
    feed_forward = "gated-gelu" if is_mt5 else "relu"
    activation = published.choice("feed_forward_proj", _T5_ACTIVATIONS, feed_forward)
    feed_forward = published.values.get("feed_forward_proj") or feed_forward
    published.expect("is_gated_act", feed_forward.startswith("gated"))
    published.expect("dense_act_fn", _T5_FUNCTIONS.get(feed_forward, feed_forward))
    is_tied = published.flag("tie_word_embeddings", True)
    dropout = published.number("dropout_rate", 0.1)
    # T5 scales where the output matrix is the embedding, for which transformers 5 has a setting; mT5 never does.
    is_scaled = not is_mt5 and published.flag("scale_decoder_outputs", is_tied)
    return ModelConfig(
        architecture="encoder_decoder",
        vocab_size=published.integer("vocab_size", 250_112 if is_mt5 else 32_128, least=1),
        layers=layers,
        decoder_layers=_decoder_layers(published, "num_decoder_layers", layers, layers),
        width=width,
        heads=published.integer("num_heads", 6 if is_mt5 else 8, least=1),
        head_width=published.integer("d_kv", 64, least=1),
        feed_forward_width=published.integer("d_ff", 1024 if is_mt5 else 2048, least=1),
        # Relative positions have no end; this is the length that it was trained on.
        max_length=published.integer("n_positions", 512, least=2),
        positions="relative",
        relative_buckets=published.integer("relative_attention_num_buckets", 32),
        relative_max_distance=published.integer("relative_attention_max_distance", 128),
        attention_scale=1.0,
        normalization="rms_norm",
        normalization_epsilon=published.number("layer_norm_epsilon", 1e-6),
        activation=activation,
        tie_embeddings=is_tied,
        logit_scale=width**-0.5 if is_scaled else 1.0,
        dropout=dropout,
        attention_dropout=dropout,
    )


def _decoder_layers(published: PublishedConfig, name: str, default: int, encoder_layers: int) -> int | None:
    layers = count_of_layers(published, default, name)
    return None if layers == encoder_layers else layers


def _t5_to_theirs(config: ModelConfig) -> dict[str, Any]:
    feed_forward = {ours: theirs for theirs, ours in _T5_ACTIVATIONS.items()}[config.activation]
    return {
        "model_type": "t5",
        "vocab_size": config.vocab_size,
        "num_layers": config.layers,
        "num_decoder_layers": config.decoder_layers or config.layers,
        "d_model": config.width,
        "num_heads": config.heads,
        "d_kv": config.size_per_head,
        "d_ff": config.size_of_feed_forward,
        "n_positions": config.max_length,
        "relative_attention_num_buckets": config.relative_buckets,
        "relative_attention_max_distance": config.relative_max_distance,
        "layer_norm_epsilon": config.normalization_epsilon,
        "feed_forward_proj": feed_forward,
        "dense_act_fn": _T5_FUNCTIONS.get(feed_forward, feed_forward),
        "is_gated_act": feed_forward.startswith("gated"),
        "is_encoder_decoder": True,
        "tie_word_embeddings": config.tie_embeddings,
        "scale_decoder_outputs": config.logit_scale != 1.0,
        "dropout_rate": config.dropout,
    }


def _t5_rules(config: ModelConfig) -> Iterator[Rule]:
    yield same("token_embedding/embedding", "shared.weight")
    for side, layers in _sides(config):
        first = f"{side}.block.0.layer.0.SelfAttention"
        yield same(f"{side}/relative_positions/embedding", f"{first}.relative_attention_bias.weight")
        for number in range(layers):
            yield from _t5_layer(config, f"{side}/layer_{number}", f"{side}.block.{number}.layer", side == "decoder")
        yield from norm(f"{side}/final_norm", f"{side}.final_layer_norm", config)
    if not config.tie_embeddings:
        yield same("output", "lm_head.weight")


def _sides(config: ModelConfig) -> tuple[tuple[str, int], tuple[str, int]]:
    return ("encoder", config.layers), ("decoder", config.decoder_layers or config.layers)


def _t5_layer(config: ModelConfig, ours: str, theirs: str, is_decoder: bool) -> Iterator[Rule]:
    attention = f"{theirs}.0.SelfAttention"
    maps = [f"{attention}.{name}" for name in "qkv"]
    yield from norm(f"{ours}/attention_norm", f"{theirs}.0.layer_norm", config)
    yield from query_key_value(f"{ours}/attention/query_key_value", maps, config, bias=False)
    yield from linear(f"{ours}/attention/output", f"{attention}.o", False)
    if is_decoder:
        cross, memory = f"{theirs}.1.EncDecAttention", f"{ours}/memory_attention"
        yield from norm(f"{memory}_norm", f"{theirs}.1.layer_norm", config)
        yield from linear(f"{memory}/query", f"{cross}.q", False)
        yield from key_value(f"{memory}/key_value", [f"{cross}.k", f"{cross}.v"], config, bias=False)
        yield from linear(f"{memory}/output", f"{cross}.o", False)
    last = f"{theirs}.{2 if is_decoder else 1}"
    yield from norm(f"{ours}/feed_forward_norm", f"{last}.layer_norm", config)
    names = {"up": "wi", "down": "wo"}
    if config.activation in GATED:
        names = {"gate": "wi_0", "up": "wi_1", "down": "wo"}
    for name, theirs_name in names.items():
        yield from linear(f"{ours}/feed_forward/{name}", f"{last}.DenseReluDense.{theirs_name}", False)


def _like_bart(published: PublishedConfig, **others: Any) -> ModelConfig:
    """The shape of BART and of Marian, which keeps the names of its settings."""
    published.expect("is_decoder", False)
    published.expect("is_encoder_decoder", True)
    # Settings of old files, of which transformers knows only these values.
    published.expect("normalize_before", False)
    published.expect("add_final_layer_norm", False)
    heads = published.integer("encoder_attention_heads", 16, least=1)
    feed_forward_width = published.integer("encoder_ffn_dim", 4096, least=1)
    published.expect("decoder_attention_heads", heads, default=16)
    published.expect("decoder_ffn_dim", feed_forward_width, default=4096)
    width = published.integer("d_model", 1024, least=1)
    layers = count_of_layers(published, 12, "encoder_layers")
    published.divides("encoder_attention_heads", heads, "d_model", width)
    return ModelConfig(
        architecture="encoder_decoder",
        layers=layers,
        decoder_layers=_decoder_layers(published, "decoder_layers", 12, layers),
        width=width,
        heads=heads,
        feed_forward_width=feed_forward_width,
        max_length=published.integer("max_position_embeddings", 1024, least=2),
        normalization_place="after",
        activation=published.choice("activation_function", PLAIN_ACTIVATIONS, "gelu"),
        bias=True,
        scale_embeddings=published.flag("scale_embedding", False),
        tie_embeddings=published.flag("tie_word_embeddings", True),
        output_bias=True,
        dropout=published.number("dropout", 0.1),
        attention_dropout=published.number("attention_dropout", 0.0),
        **others,
    )


def _bart_to_ours(published: PublishedConfig) -> ModelConfig:
    published.expect("normalize_embedding", True)
    published.expect("static_position_embeddings", False)
    return _like_bart(
        published,
        vocab_size=published.integer("vocab_size", 50_265, least=1),
        position_offset=2,
        normalize_embeddings=True,
        separate_embeddings=True,
    )


def _marian_to_ours(published: PublishedConfig) -> ModelConfig:
    published.expect("normalize_embedding", False)
    published.expect("static_position_embeddings", True)
    published.expect("share_encoder_decoder_embeddings", True)
    vocab_size = published.integer("vocab_size", 58_101, least=1)
    published.expect("decoder_vocab_size", vocab_size)
    return _like_bart(published, vocab_size=vocab_size, positions="sinusoidal")


def _as_bart(config: ModelConfig) -> dict[str, Any]:
    sizes = {
        f"{side}_{name}": size
        for side, layers in _sides(config)
        for name, size in {
            "layers": layers,
            "attention_heads": config.heads,
            "ffn_dim": config.size_of_feed_forward,
        }.items()
    }
    return sizes | {
        "vocab_size": config.vocab_size,
        "d_model": config.width,
        "max_position_embeddings": config.max_length,
        "activation_function": published_name(config, PLAIN_ACTIVATIONS),
        "is_encoder_decoder": True,
        "scale_embedding": config.scales_embeddings,
        "tie_word_embeddings": config.tie_embeddings,
        "dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
    }


def _bart_to_theirs(config: ModelConfig) -> dict[str, Any]:
    return {"model_type": "bart", **_as_bart(config)}


def _marian_to_theirs(config: ModelConfig) -> dict[str, Any]:
    return {
        "model_type": "marian",
        **_as_bart(config),
        "share_encoder_decoder_embeddings": True,
        "decoder_vocab_size": config.vocab_size,
        "pad_token_id": None,  # its default is a row of a vocabulary of 58,101
    }


def _bart_rules(config: ModelConfig) -> Iterator[Rule]:
    """Of BART and Marian."""
    yield same("token_embedding/embedding", "model.shared.weight")
    for side, layers in _sides(config):
        ours = "decoder_" if side == "decoder" else ""
        if config.separate_embeddings:
            yield same(f"{ours}position_embedding/embedding", f"model.{side}.embed_positions.weight")
            yield from norm(f"{ours}embedding_norm", f"model.{side}.layernorm_embedding", config)
        for number in range(layers):
            names = f"{side}/layer_{number}", f"model.{side}.layers.{number}"
            yield from _bart_layer(config, *names, is_decoder=side == "decoder")
    if not config.tie_embeddings:
        yield same("output", "lm_head.weight")
    if config.output_bias:
        yield Rule(("output_bias",), ("final_logits_bias",), _ROW)


def _bart_layer(config: ModelConfig, ours: str, theirs: str, is_decoder: bool) -> Iterator[Rule]:
    maps = [f"{theirs}.self_attn.{name}_proj" for name in "qkv"]
    yield from query_key_value(f"{ours}/attention/query_key_value", maps, config, bias=True)
    yield from linear(f"{ours}/attention/output", f"{theirs}.self_attn.out_proj", True)
    yield from norm(f"{ours}/attention_norm", f"{theirs}.self_attn_layer_norm", config)
    if is_decoder:
        cross, memory = f"{theirs}.encoder_attn", f"{ours}/memory_attention"
        yield from linear(f"{memory}/query", f"{cross}.q_proj", True)
        yield from key_value(f"{memory}/key_value", [f"{cross}.k_proj", f"{cross}.v_proj"], config, bias=True)
        yield from linear(f"{memory}/output", f"{cross}.out_proj", True)
        yield from norm(f"{memory}_norm", f"{theirs}.encoder_attn_layer_norm", config)
    yield from linear(f"{ours}/feed_forward/up", f"{theirs}.fc1", True)
    yield from linear(f"{ours}/feed_forward/down", f"{theirs}.fc2", True)
    yield from norm(f"{ours}/feed_forward_norm", f"{theirs}.final_layer_norm", config)


def _from_row(arrays: Arrays) -> Arrays:
    return [array.reshape(-1) for array in arrays]


def _to_row(arrays: Arrays) -> Arrays:
    return [array.reshape(1, -1) for array in arrays]


_ROW = Layout(_from_row, _to_row)  # [V] stored as [1, V]


def _shared_tables(shared: str) -> dict[str, str]:
    prefix = shared.removesuffix("shared.weight")
    return {f"{prefix}{side}.embed_tokens.weight": shared for side in ("encoder", "decoder")}


ENCODER_DECODERS = (
    Family(
        name="T5, FLAN-T5, mT5",
        model_types=("t5", "mt5"),
        prefix="",
        to_ours=_t5_to_ours,
        to_theirs=_t5_to_theirs,
        rules=_t5_rules,
        models={(): "T5ForConditionalGeneration"},
        copies=_shared_tables("shared.weight"),
        # The second was never used.
        unused=(r"^lm_head\.weight$", r"EncDecAttention\.relative_attention_bias\.weight$"),
    ),
    Family(
        name="BART",
        model_types=("bart",),
        prefix="model.",
        to_ours=_bart_to_ours,
        to_theirs=_bart_to_theirs,
        rules=_bart_rules,
        models={(): "BartForConditionalGeneration"},
        copies=_shared_tables("model.shared.weight"),
        copies_if_untied=True,
        unused=(r"^lm_head\.weight$", r"^(model\.)?(encoder|decoder)\.version$"),
    ),
    Family(
        name="Marian (OPUS-MT)",
        model_types=("marian",),
        prefix="model.",
        to_ours=_marian_to_ours,
        to_theirs=_marian_to_theirs,
        rules=_bart_rules,
        models={(): "MarianMTModel"},
        copies=_shared_tables("model.shared.weight"),
        copies_if_untied=True,
        unused=(r"^lm_head\.weight$", r"embed_positions\.weight$"),
    ),
)
