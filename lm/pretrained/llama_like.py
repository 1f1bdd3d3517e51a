"""What Llama and its relatives share: the keys of config.json and the names of tensors, with what each of them adds."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lm.errors import UserError
from lm.modules.config import ModelConfig
from lm.pretrained.activations import published_name
from lm.pretrained.family import Family
from lm.pretrained.published_config import PublishedConfig
from lm.pretrained.rotary import rotary_to_published
from lm.pretrained.rules import Rule, gate_and_up, linear, norm, query_key_value, same

# Where several names mean the same, the first is written.
GATED_ACTIVATIONS = {
    "silu": "swiglu",
    "swish": "swiglu",
    "gelu_pytorch_tanh": "gated_gelu",
    "gelu_new": "gated_gelu",
    "gelu": "gated_gelu_exact",
}

# Otherwise transformers takes the ids of the family's first models, which a small vocabulary may not have.
NO_SPECIAL_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}

FULL, LOCAL = "full_attention", "sliding_attention"

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
    }
    return ModelConfig(**_sizes(published, defaults) | common | settings)


def count_of_layers(published: PublishedConfig, default: int, name: str = "num_hidden_layers") -> int:
    """How many layers the model has.

    Raises:
      UserError: if it is not a number, or more than any model has: one rule for each would fill the memory.
    """
    layers = published.integer(name, default, least=1)
    if layers > 10_000:
        raise UserError(f"{published.place}: {name}={layers} is more than any model has")
    return layers


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


def windows(
    published: PublishedConfig, default: int | None, layer_types: Sequence[str], has_window: bool = True
) -> dict[str, Any]:
    """Our settings of the layers that see a window only.

    Args:
      published: config.json, whose `sliding_window` and `layer_types` count.
      default: the window, where config.json has none; null is no window.
      layer_types: of each layer, where config.json has no such list.
      has_window: whether the model uses its window.

    Raises:
      UserError: if a layer has a window and the model has not.
    """
    types = published.choices("layer_types", (FULL, LOCAL), layer_types, len(layer_types))
    if LOCAL not in types:
        return {}
    window = published.integer("sliding_window", default, least=1, nullable=True)
    if window is None or not has_window:
        raise UserError(f"{published.place}: layer_types has {LOCAL}, and the model has no sliding_window")
    return {
        "attention_window": window,
        "global_layers": tuple(number for number, kind in enumerate(types) if kind == FULL),
    }


def layer_types(config: ModelConfig) -> list[str]:
    """What each layer sees, in their terms."""
    has_window = config.attention_window is not None
    return [LOCAL if has_window and number not in config.global_layers else FULL for number in range(config.layers)]


def llama_like_published(
    config: ModelConfig, model_type: str, architecture: str, activation: str = "hidden_act", **values: Any
) -> dict[str, Any]:
    """The config.json of a model like Llama.

    Args:
      config: our shape.
      model_type: of the family.
      architecture: the class of transformers.
      activation: the key of the activation function.
      **values: of config.json, in addition to those that all have in common.

    Raises:
      KeyError: if the family has no such activation function.
    """
    return {
        "model_type": model_type,
        "architectures": [architecture],
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
    to_ours: Callable[[PublishedConfig], ModelConfig],
    to_theirs: Callable[[ModelConfig, tuple[str, ...]], dict[str, Any]],
    fused: bool = False,
) -> Family:
    """An entry of the table of families for models like Llama. Arguments as of `Family` and `llama_like_rules`."""
    return Family(
        name=name,
        model_types=(model_type,),
        prefix="model.",
        to_ours=to_ours,
        to_theirs=to_theirs,
        rules=functools.partial(llama_like_rules, fused=fused),
        # Older versions of transformers wrote these constants.
        unused=(r"rotary_emb\.inv_freq$",),
        copies={"lm_head.weight": "model.embed_tokens.weight"},
    )
