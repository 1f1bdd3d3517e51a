"""Model shapes by name, with published parameter counts where there are any."""

from lm.errors import UserError
from lm.modules.config import ModelConfig


def _gpt2(layers: int, width: int, heads: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=50_257, layers=layers, width=width, heads=heads, max_length=1024, bias=True, dropout=0.1
    )


def _llama(
    vocab_size: int | None, layers: int, width: int, heads: int, kv_heads: int, feed_forward_width: int, **rest
) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocab_size,
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        feed_forward_width=feed_forward_width,
        positions="rotary",
        normalization="rms_norm",
        activation="swiglu",
        **rest,
    )


def _bert(layers: int, width: int) -> ModelConfig:
    return ModelConfig(
        architecture="encoder",
        vocab_size=30_522,
        layers=layers,
        width=width,
        heads=width // 64,
        max_length=512,
        segment_types=2,
        normalization_place="after",
        normalize_embeddings=True,
        normalization_epsilon=1e-12,
        activation="gelu",
        bias=True,
        dropout=0.1,
    )


def _t5(layers: int, width: int, heads: int, feed_forward_width: int) -> ModelConfig:
    return ModelConfig(
        architecture="encoder_decoder",
        vocab_size=32_128,
        layers=layers,
        width=width,
        heads=heads,
        head_width=64,
        feed_forward_width=feed_forward_width,
        max_length=512,
        positions="relative",
        normalization="rms_norm",
        normalization_epsilon=1e-6,
        activation="relu",
        dropout=0.1,
    )


PRESETS: dict[str, ModelConfig] = {
    # Small ones, for a laptop. Their vocabulary is the tokenizer's.
    "tiny": ModelConfig(layers=2, width=64, heads=2, max_length=64),
    "small": ModelConfig(layers=4, width=256, heads=4, max_length=256),
    "llama_small": _llama(None, 4, 256, 4, 2, 704, max_length=256),
    # GPT-2 (Radford et al. 2019, table 2; counts of the released weights).
    "gpt2_124m": _gpt2(12, 768, 12),
    "gpt2_355m": _gpt2(24, 1024, 16),
    "gpt2_774m": _gpt2(36, 1280, 20),
    "gpt2_1.5b": _gpt2(48, 1600, 25),
    # Llama-like: SmolLM2 (Allal et al. 2025), TinyLlama (Zhang et al. 2024), Llama 3 (Grattafiori et al. 2024).
    "smollm2_135m": _llama(49_152, 30, 576, 9, 3, 1536, max_length=8192, rotary_base=100_000.0),
    "smollm2_360m": _llama(49_152, 32, 960, 15, 5, 2560, max_length=8192, rotary_base=100_000.0),
    "tinyllama_1.1b": _llama(32_000, 22, 2048, 32, 4, 5632, max_length=2048, tie_embeddings=False),
    "llama3_1b": _llama(128_256, 16, 2048, 32, 8, 8192, max_length=8192, rotary_base=500_000.0),
    "llama3_3b": _llama(128_256, 28, 3072, 24, 8, 8192, max_length=8192, rotary_base=500_000.0),
    "llama3_8b": _llama(128_256, 32, 4096, 32, 8, 14_336, max_length=8192, rotary_base=500_000.0, tie_embeddings=False),
    # BERT (Devlin et al. 2019) and its smaller relatives (Turc et al. 2019, table 1).
    "bert_tiny": _bert(2, 128),
    "bert_mini": _bert(4, 256),
    "bert_small": _bert(4, 512),
    "bert_medium": _bert(8, 512),
    "bert_base": _bert(12, 768),
    "bert_large": _bert(24, 1024),
    # The Transformer (Vaswani et al. 2017, table 3; the vocabulary of English-German).
    "transformer_base": ModelConfig(
        architecture="encoder_decoder",
        vocab_size=37_000,
        layers=6,
        width=512,
        heads=8,
        max_length=512,
        positions="sinusoidal",
        normalization_place="after",
        activation="relu",
        bias=True,
        dropout=0.1,
    ),
    # T5 (Raffel et al. 2020, section 3.1; counts of the released weights).
    "t5_small": _t5(6, 512, 8, 2048),
    "t5_base": _t5(12, 768, 12, 3072),
    "t5_large": _t5(24, 1024, 16, 4096),
}

# As `lm.models.accounting.parameter_count` counts: BERT with its pooler, without the heads of pretraining.
PUBLISHED_PARAMETERS: dict[str, int] = {
    "gpt2_124m": 124_439_808,
    "gpt2_355m": 354_823_168,
    "gpt2_774m": 774_030_080,
    "gpt2_1.5b": 1_557_611_200,
    "smollm2_135m": 134_515_008,
    "smollm2_360m": 361_821_120,
    "tinyllama_1.1b": 1_100_048_384,
    "llama3_1b": 1_235_814_400,
    "llama3_3b": 3_212_749_824,
    "llama3_8b": 8_030_261_248,
    "bert_base": 109_482_240,
    "bert_large": 335_141_888,
    "t5_small": 60_506_624,
    "t5_base": 222_903_552,
    "t5_large": 737_668_096,
}


def preset(name: str) -> ModelConfig:
    """The model shape of that name.

    Raises:
      UserError: if there is none; the message lists the known names.
    """
    if name not in PRESETS:
        raise UserError(f"there is no model preset {name!r}: choose one of {', '.join(PRESETS)}")
    return PRESETS[name]
