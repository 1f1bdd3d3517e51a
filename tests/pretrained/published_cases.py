"""Tiny models of every family, as transformers builds them, with random weights large enough that all matter."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

VOCAB = 68  # even, so that two devices share it


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A published model to be made.

    Attributes:
      name: of the case.
      config: makes the transformers config from the transformers module.
      model: name of the transformers class.
      without: settings of our `ModelConfig` under which its outputs must differ: that the knob matters.
    """

    name: str
    config: Callable[[Any], Any]
    model: str
    without: tuple[Mapping[str, Any], ...] = ()


def build(case: Case, transformers: Any, torch: Any) -> Any:
    """The transformers model of a case, in evaluation mode."""
    config = case.config(transformers)
    config._attn_implementation = "eager"
    model = getattr(transformers, case.model)(config)
    model.eval()
    random = np.random.default_rng(1)
    offset = "gemma" in config.model_type
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if config.model_type == "marian" and "embed_positions" in name:
                continue  # sinusoidal, and not saved
            is_norm = name.endswith("weight") and ("norm" in name.lower() or ".ln_" in name)
            values = random.normal(float(is_norm and not offset), 0.2, size=tuple(weight.shape))
            weight.copy_(torch.from_numpy(values.astype(np.float32)))
        for name, buffer in model.named_buffers():
            if name.endswith("final_logits_bias"):
                buffer.copy_(torch.from_numpy(random.normal(0, 0.2, size=tuple(buffer.shape)).astype(np.float32)))
    return model


def _decoder(name: str, **settings: Any) -> Callable[[Any], Any]:
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 40,
        "max_position_embeddings": 64,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    return lambda transformers: getattr(transformers, name)(**sizes | settings)


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}

# With a window that texts of the tests exceed.
WINDOW = 6

_GEMMA2_SIZES = {"head_dim": 8, "num_key_value_heads": 2, "num_hidden_layers": 3, "sliding_window": WINDOW}

DECODERS = (
    Case(
        "gpt2",
        lambda transformers: transformers.GPT2Config(
            vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0
        ),
        "GPT2LMHeadModel",
        without=({"activation": "gelu"},),
    ),
    Case(
        "pythia",
        _decoder("GPTNeoXConfig", rotary_pct=0.25, attention_bias=True),
        "GPTNeoXForCausalLM",
        without=({"parallel_residual": False}, {"rotary_fraction": 1.0}, {"activation": "gelu_tanh"}),
    ),
    Case(
        "gpt_neox_sequential",
        _decoder("GPTNeoXConfig", rotary_pct=0.5, use_parallel_residual=False, tie_word_embeddings=True),
        "GPTNeoXForCausalLM",
        without=({"parallel_residual": True},),
    ),
    Case("llama2", _decoder("LlamaConfig", num_key_value_heads=2), "LlamaForCausalLM", without=({"rotary_base": 1e5},)),
    Case(
        "llama3",
        _decoder("LlamaConfig", num_key_value_heads=2, rope_parameters=LLAMA3, tie_word_embeddings=True, head_dim=12),
        "LlamaForCausalLM",
        without=({"rotary_factor": 1.0}, {"rotary_low_frequency": 0.1}, {"rotary_original_length": 32}),
    ),
    Case(
        "llama_linear",
        _decoder("LlamaConfig", rope_parameters={"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}),
        "LlamaForCausalLM",
        without=({"rotary_factor": 1.0},),
    ),
    Case(
        "mistral",
        _decoder("MistralConfig", num_key_value_heads=2, sliding_window=WINDOW),
        "MistralForCausalLM",
        without=({"attention_window": None}, {"attention_window": WINDOW + 1}),
    ),
    Case(
        "mistral_without_window",
        _decoder("MistralConfig", num_key_value_heads=2, sliding_window=None),
        "MistralForCausalLM",
    ),
    Case(
        "qwen2",
        _decoder("Qwen2Config", num_key_value_heads=2, tie_word_embeddings=True),
        "Qwen2ForCausalLM",
        without=({"attention_bias": None},),
    ),
    Case(
        "qwen2_window",
        _decoder(
            "Qwen2Config", num_key_value_heads=4, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1
        ),
        "Qwen2ForCausalLM",
        without=({"attention_window": None, "global_layers": ()}, {"global_layers": ()}),
    ),
    Case(
        "qwen3",
        _decoder("Qwen3Config", num_key_value_heads=2, head_dim=12),
        "Qwen3ForCausalLM",
        without=({"query_key_norm": "none"},),
    ),
    Case(
        "olmo2",
        _decoder("Olmo2Config", num_key_value_heads=2),
        "Olmo2ForCausalLM",
        without=({"normalization_place": "before"}, {"query_key_norm": "none"}),
    ),
    Case(
        "phi3",
        _decoder("Phi3Config", num_key_value_heads=2, sliding_window=WINDOW),
        "Phi3ForCausalLM",
        without=({"attention_window": None},),
    ),
    Case(
        "phi4_mini",
        _decoder("Phi3Config", num_key_value_heads=2, partial_rotary_factor=0.75, tie_word_embeddings=True),
        "Phi3ForCausalLM",
        without=({"rotary_fraction": 1.0},),
    ),
    Case(
        "gemma",
        _decoder("GemmaConfig", num_key_value_heads=1, head_dim=12),
        "GemmaForCausalLM",
        without=({"scale_embeddings": None}, {"normalization": "rms_norm"}, {"activation": "gated_gelu_exact"}),
    ),
    Case(
        "gemma2",
        _decoder("Gemma2Config", query_pre_attn_scalar=12, attn_logit_softcapping=2.0, **_GEMMA2_SIZES),
        "Gemma2ForCausalLM",
        without=(
            {"normalization_place": "before"},
            {"attention_window": None, "global_layers": ()},
            {"attention_softcap": None},
            {"logit_softcap": None},
            {"attention_scale": None},
            {"global_layers": ()},
            {"normalization": "rms_norm"},
            {"scale_embeddings": None},
        ),
    ),
    Case(
        "gemma3",
        _decoder(
            "Gemma3TextConfig",
            query_pre_attn_scalar=12,
            sliding_window_pattern=3,
            rope_parameters={
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
            **_GEMMA2_SIZES,
        ),
        "Gemma3ForCausalLM",
        without=(
            {"query_key_norm": "none"},
            {"local_rotary_base": None},
            {"rotary_factor": 1.0},
            {"attention_scale": None},
            {"global_layers": ()},
        ),
    ),
)
