"""What Llama and its relatives share: the keys of config.json and the names of tensors, with what each of them adds."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

from lm.modules.config import ModelConfig
from lm.pretrained.activations import GATED_ACTIVATIONS, published_name
from lm.pretrained.family import Family
from lm.pretrained.layers import count_of_layers
from lm.pretrained.published_config import PublishedConfig
from lm.pretrained.rotary import rotary_to_published
from lm.pretrained.rules import Rule, gate_and_up, linear, norm, query_key_value, same

# Otherwise transformers takes the ids of the family's first models, which a small vocabulary may not have.
NO_SPECIAL_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}

# Constants that older versions of transformers wrote.
UNUSED_FREQUENCIES = r"rotary_emb\.inv_freq$"

# Our norms and theirs, by where they are.
_NORMS = {
    "before": {"attention_norm": "input_layernorm", "feed_forward_norm": "post_attention_layernorm"},
    "branch": {"attention_norm": "post_attention_layernorm", "feed_forward_norm": "post_feedforward_layernorm"},
    "both": {
        "attention_norm": "input_layernorm",
        "attention_output_norm": "post_attention_layernorm",
        "feed_forward_norm": "pre_feedforward_layernorm",
        "feed_forward_output_norm": "post_feedforward_layernorm",
    },
}


@dataclasses.dataclass(frozen=True)
class Defaults:
    """What a config class of transformers takes where config.json has no value; those of Llama."""

    vocab_size: int = 32_000
    layers: int = 32
    width: int = 4096
    heads: int = 32
    kv_heads: int | None = None
    head_width: int | None = None
    feed_forward_width: int = 11_008
    max_length: int = 2048
    epsilon: float = 1e-6
    tie_embeddings: bool = False


def llama_like(published: PublishedConfig, defaults: Defaults, **settings: Any) -> ModelConfig:
    """Our shape of a model like Llama.

    Args:
      published: config.json.
      defaults: of the family.
      **settings: of `ModelConfig`, in addition to those that all have in common, or instead of them.

    Raises:
      UserError: if a value is wrong, or sizes contradict each other.
    """
    if "activation" not in settings:
        settings["activation"] = published.choice("hidden_act", GATED_ACTIVATIONS, "silu")
    common = {
        "max_length": published.integer("max_position_embeddings", defaults.max_length, least=2),
        "normalization": "rms_norm",
        "normalization_epsilon": published.number("rms_norm_eps", defaults.epsilon),
        "tie_embeddings": published.flag("tie_word_embeddings", defaults.tie_embeddings),
        "positions": "rotary",
        "attention_dropout": published.number("attention_dropout", 0.0),
    }
    return ModelConfig(**_sizes(published, defaults) | common | settings)


def _sizes(published: PublishedConfig, defaults: Defaults) -> dict[str, Any]:
    width = published.integer("hidden_size", defaults.width, least=1)
    heads = published.integer("num_attention_heads", defaults.heads, least=1)
    kv_heads = published.integer("num_key_value_heads", defaults.kv_heads, least=1, nullable=True)
    head_width = published.integer("head_dim", defaults.head_width, least=1, nullable=True)
    if head_width is None:
        published.divides("num_attention_heads", heads, "hidden_size", width)
    published.divides("num_key_value_heads", kv_heads or heads, "num_attention_heads", heads)
    return {
        "vocab_size": published.integer("vocab_size", defaults.vocab_size, least=1),
        "layers": count_of_layers(published, defaults.layers),
        "width": width,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_width": head_width,
        "feed_forward_width": published.integer("intermediate_size", defaults.feed_forward_width, least=1),
    }


def llama_like_published(
    config: ModelConfig, model_type: str, activation: str = "hidden_act", **values: Any
) -> dict[str, Any]:
    """The config.json of a model like Llama.

    Args:
      config: our shape.
      model_type: of the family.
      activation: the key of the activation function.
      **values: of config.json, in addition to those that all have in common.

    Raises:
      KeyError: if the family has no such activation function.
    """
    return {
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.layers,
        "hidden_size": config.width,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.size_per_head,
        "intermediate_size": config.size_of_feed_forward,
        "max_position_embeddings": config.max_length,
        "rms_norm_eps": config.normalization_epsilon,
        activation: published_name(config, GATED_ACTIVATIONS),
        "tie_word_embeddings": config.tie_embeddings,
        "attention_dropout": config.attention_dropout,
        **rotary_to_published(config),
        **NO_SPECIAL_TOKENS,
        **values,
    }


def llama_like_rules(config: ModelConfig, fused: bool = False) -> Iterator[Rule]:
    """The tensors of a model like Llama.

    Args:
      config: our shape.
      fused: whether queries, keys and values are one tensor, and so are the two maps of the gated activation (Phi-3).
    """
    yield same("token_embedding/embedding", "model.embed_tokens.weight")
    for number in range(config.layers):
        ours, theirs = f"decoder/layer_{number}", f"model.layers.{number}"
        for our_norm, their_norm in _NORMS[config.normalization_place].items():
            yield from norm(f"{ours}/{our_norm}", f"{theirs}.{their_norm}", config)
        yield from _attention_rules(f"{ours}/attention", f"{theirs}.self_attn", config, fused)
        yield from _feed_forward_rules(f"{ours}/feed_forward", f"{theirs}.mlp", fused)
    yield from norm("decoder/final_norm", "model.norm", config)
    if not config.tie_embeddings:
        yield same("output", "lm_head.weight")


def _attention_rules(ours: str, theirs: str, config: ModelConfig, fused: bool) -> Iterator[Rule]:
    maps = [f"{theirs}.qkv_proj"] if fused else [f"{theirs}.{name}_proj" for name in "qkv"]
    yield from query_key_value(f"{ours}/query_key_value", maps, config, bias=config.has_attention_bias)
    if config.query_key_norm != "none":
        yield same(f"{ours}/query_norm/scale", f"{theirs}.q_norm.weight")
        yield same(f"{ours}/key_norm/scale", f"{theirs}.k_norm.weight")
    yield from linear(f"{ours}/output", f"{theirs}.o_proj", bias=False)


def _feed_forward_rules(ours: str, theirs: str, fused: bool) -> Iterator[Rule]:
    if fused:
        yield from gate_and_up(f"{ours}/gate", f"{ours}/up", f"{theirs}.gate_up_proj", bias=False)
    else:
        for name in ("gate", "up"):
            yield from linear(f"{ours}/{name}", f"{theirs}.{name}_proj", bias=False)
    yield from linear(f"{ours}/down", f"{theirs}.down_proj", bias=False)


def llama_like_family(
    name: str,
    model_type: str,
    model: str,
    to_ours: Callable[[PublishedConfig], ModelConfig],
    to_theirs: Callable[[ModelConfig], dict[str, Any]],
    fused: bool = False,
) -> Family:
    """An entry of the table of families for models like Llama.

    Args:
      name: as of `Family`.
      model_type: of config.json.
      model: the class of transformers.
      to_ours: as of `Family`.
      to_theirs: as of `Family`.
      fused: as of `llama_like_rules`.
    """
    return Family(
        name=name,
        model_types=(model_type,),
        prefix="model.",
        to_ours=to_ours,
        to_theirs=to_theirs,
        rules=functools.partial(llama_like_rules, fused=fused),
        models={(): model},
        unused=(UNUSED_FREQUENCIES,),
        copies={"lm_head.weight": "model.embed_tokens.weight"},
    )
