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

DECODERS = (
    Case(
        "gpt2",
        lambda transformers: transformers.GPT2Config(
            vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0
        ),
        "GPT2LMHeadModel",
        without=({"activation": "gelu"},),
    ),
    Case("llama2", _decoder("LlamaConfig", num_key_value_heads=2), "LlamaForCausalLM", without=({"rotary_base": 1e5},)),
    Case(
        "llama3",
        _decoder("LlamaConfig", num_key_value_heads=2, rope_parameters=LLAMA3, tie_word_embeddings=True),
        "LlamaForCausalLM",
        without=({"rotary_scaling": "none"},),
    ),
)
