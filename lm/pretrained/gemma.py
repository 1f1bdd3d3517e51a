"""Gemma 1, 2 and 3, as far as they read text.

Shapes follow transformers' config classes, whose defaults apply where config.json leaves a value out.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

from lm.errors import UserError
from lm.modules.config import ModelConfig
from lm.pretrained.activations import GATED_ACTIVATIONS
from lm.pretrained.family import Family
from lm.pretrained.layers import FULL, LOCAL, count_of_layers, layer_types, windows
from lm.pretrained.llama_like import (
    Defaults,
    llama_like,
    llama_like_family,
    llama_like_published,
    llama_like_rules,
)
from lm.pretrained.published_config import PublishedConfig
from lm.pretrained.rotary import rotary_from_published, rotary_group
from lm.pretrained.rules import Rule

_GEMMA = Defaults(
    vocab_size=256_000,
    layers=28,
    width=3072,
    heads=16,
    kv_heads=16,
    head_width=256,
    feed_forward_width=24_576,
    max_length=8192,
    tie_embeddings=True,
)
_GEMMA2 = dataclasses.replace(_GEMMA, layers=26, width=2304, heads=8, kv_heads=4, feed_forward_width=9216)
_GEMMA3 = dataclasses.replace(_GEMMA2, vocab_size=262_208, max_length=131_072)
_TANH = "gelu_pytorch_tanh"
# Every sixth layer of Gemma 3 sees everything.
_PATTERN = 6


def _check_attention(published: PublishedConfig) -> None:
    published.expect("attention_bias", False)
    published.expect("use_bidirectional_attention", False)


def _gemma_to_ours(published: PublishedConfig) -> ModelConfig:
    _check_attention(published)
    for name in ("hidden_act", "hidden_activation"):
        # Published as "gelu", the first Gemma always was computed with its tanh form.
        published.choice(name, ("gelu", _TANH), _TANH)
    return llama_like(
        published,
        _GEMMA,
        activation="gated_gelu",
        normalization="rms_norm_offset",
        scale_embeddings=True,
        **rotary_from_published(published),
    )


def _gemma_to_theirs(config: ModelConfig) -> dict[str, Any]:
    return llama_like_published(config, "gemma", hidden_act=_TANH, hidden_activation=_TANH)


def _with_norms_on_both_sides(published: PublishedConfig, defaults: Defaults, **settings: Any) -> ModelConfig:
    _check_attention(published)
    return llama_like(
        published,
        defaults,
        activation=published.choice("hidden_activation", GATED_ACTIVATIONS, _TANH),
        normalization="rms_norm_offset",
        normalization_place="both",
        scale_embeddings=True,
        attention_scale=_attention_scale(published),
        **settings,
    )


def _attention_scale(published: PublishedConfig) -> float:
    scalar = published.number("query_pre_attn_scalar", 256.0)
    if scalar <= 0:
        raise UserError(f"{published.place}: query_pre_attn_scalar must be positive, got {scalar}")
    return scalar**-0.5


def _alternating(published: PublishedConfig, default: int, layers: int, pattern: int) -> dict[str, Any]:
    """Our settings of windows, where one layer of each `pattern` sees everything."""
    kinds = [LOCAL if (number + 1) % pattern else FULL for number in range(count_of_layers(published, layers))]
    return windows(published, default, kinds)


def _gemma2_to_ours(published: PublishedConfig) -> ModelConfig:
    return _with_norms_on_both_sides(
        published,
        _GEMMA2,
        attention_softcap=published.number("attn_logit_softcapping", 50.0, nullable=True),
        logit_softcap=published.number("final_logit_softcapping", 30.0, nullable=True),
        **_alternating(published, 4096, _GEMMA2.layers, 2),
        **rotary_from_published(published),
    )


def _gemma2_to_theirs(config: ModelConfig) -> dict[str, Any]:
    return llama_like_published(
        config,
        "gemma2",
        activation="hidden_activation",
        query_pre_attn_scalar=_query_scalar(config),
        attn_logit_softcapping=config.attention_softcap,
        final_logit_softcapping=config.logit_softcap,
        sliding_window=config.attention_window,
        layer_types=layer_types(config),
    )


def _gemma3_to_ours(published: PublishedConfig) -> ModelConfig:
    published.expect("attn_logit_softcapping", None)
    pattern = published.integer("sliding_window_pattern", _PATTERN, least=1)
    local = _alternating(published, 4096, _GEMMA3.layers, pattern)
    return _with_norms_on_both_sides(
        published,
        _GEMMA3,
        query_key_norm="head",
        logit_softcap=published.number("final_logit_softcapping", None),
        **local,
        **_gemma3_rotary(published, has_window=bool(local)),
    )


def _gemma3_rotary(published: PublishedConfig, has_window: bool) -> dict[str, Any]:
    """Bases of global and local layers, of which only the first can be scaled."""
    base = published.number("rope_theta", 1_000_000.0)
    local_base = published.number("rope_local_base_freq", 10_000.0)
    groups = published.group("rope_parameters")
    groups.only((FULL, LOCAL))
    scaling = published.group("rope_scaling")
    everywhere = PublishedConfig({**groups.group(FULL).values, **scaling.values}, scaling.place)
    nearby = groups.group(LOCAL)
    for name in ("rope_type", "type"):
        nearby.expect(name, "default")
    max_length = published.integer("max_position_embeddings", _GEMMA3.max_length)
    found, local = rotary_group(everywhere, base, max_length), rotary_group(nearby, local_base, max_length)
    return found | ({"local_rotary_base": local["rotary_base"]} if has_window else {})


def _gemma3_to_theirs(config: ModelConfig) -> dict[str, Any]:
    local_base = config.rotary_base if config.local_rotary_base is None else config.local_rotary_base
    return llama_like_published(
        config,
        "gemma3_text",
        activation="hidden_activation",
        query_pre_attn_scalar=_query_scalar(config),
        final_logit_softcapping=config.logit_softcap,
        sliding_window=config.attention_window,
        layer_types=layer_types(config),
        rope_local_base_freq=local_base,
    )


def _query_scalar(config: ModelConfig) -> float:
    """The number whose power of -1/2 is the factor of the scores: mostly whole, which rounding must not hide."""
    if config.attention_scale is None:
        return config.size_per_head
    scalar = config.attention_scale**-2
    whole = max(round(scalar), 1)
    return whole if whole**-0.5 == config.attention_scale else scalar


def _whole_gemma3_to_ours(published: PublishedConfig) -> ModelConfig:
    text = published.group("text_config")
    text.expect("model_type", "gemma3_text")
    return _gemma3_to_ours(text)


def _whole_gemma3_to_theirs(config: ModelConfig) -> dict[str, Any]:
    raise UserError("Gemma 3 is written without the part that reads images: as gemma3_text")


def _whole_gemma3_rules(config: ModelConfig) -> Iterator[Rule]:
    for rule in llama_like_rules(config):
        yield dataclasses.replace(rule, theirs=tuple(f"language_model.{name}" for name in rule.theirs))


GEMMA = (
    llama_like_family("Gemma", "gemma", "GemmaForCausalLM", _gemma_to_ours, _gemma_to_theirs),
    llama_like_family("Gemma 2", "gemma2", "Gemma2ForCausalLM", _gemma2_to_ours, _gemma2_to_theirs),
    llama_like_family("Gemma 3", "gemma3_text", "Gemma3ForCausalLM", _gemma3_to_ours, _gemma3_to_theirs),
    Family(
        name="Gemma 3 (text part)",
        model_types=("gemma3",),
        prefix="language_model.",
        to_ours=_whole_gemma3_to_ours,
        to_theirs=_whole_gemma3_to_theirs,
        rules=_whole_gemma3_rules,
        models={},  # it is not written
        copies={"language_model.lm_head.weight": "language_model.model.embed_tokens.weight"},
        dropped=(r"^(model\.)?(vision_tower|multi_modal_projector)\.",),
    ),
)
