"""Tiny GGUF files of tiny random models of transformers, with the changes that llama.cpp's converter makes."""

from pathlib import Path
from typing import Any

import numpy as np

SMALL = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = {**SMALL, "num_key_value_heads": 2, "max_position_embeddings": 64, "head_dim": 8}
LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

# By name of a case: GGUF's architecture, the class of transformers' model and what its config has.
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", "LlamaForCausalLM", {**GROUPED, "rms_norm_eps": 1e-5, "tie_word_embeddings": True}),
    "llama with biases": ("llama", "LlamaForCausalLM", {**GROUPED, "attention_bias": True}),
    "llama 3": ("llama", "LlamaForCausalLM", {**GROUPED, "head_dim": 32, "rope_parameters": LLAMA_3}),
    "llama, scaled": (
        "llama",
        "LlamaForCausalLM",
        {**GROUPED, "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6}},
    ),
    "qwen2": ("qwen2", "Qwen2ForCausalLM", {key: value for key, value in GROUPED.items() if key != "head_dim"}),
    "qwen3": ("qwen3", "Qwen3ForCausalLM", {**GROUPED, "head_dim": 16}),
    "gemma": ("gemma", "GemmaForCausalLM", {**GROUPED, "head_dim": 16}),
    "gemma2": ("gemma2", "Gemma2ForCausalLM", {**GROUPED, "query_pre_attn_scalar": 8, "sliding_window": 16}),
    "gemma3": (
        "gemma3",
        "Gemma3ForCausalLM",
        {**GROUPED, "num_hidden_layers": 7, "query_pre_attn_scalar": 8, "sliding_window": 16},
    ),
    "phi3": ("phi3", "Phi3ForCausalLM", {**GROUPED, "sliding_window": 16, "pad_token_id": 0}),
    "olmo2": ("olmo2", "Olmo2ForCausalLM", GROUPED),
    "gpt2": ("gpt2", "GPT2LMHeadModel", {"vocab_size": 40, "n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 64}),
    "gptneox": ("gptneox", "GPTNeoXForCausalLM", {**SMALL, "max_position_embeddings": 64}),
    "gptneox, in sequence": ("gptneox", "GPTNeoXForCausalLM", {**SMALL, "use_parallel_residual": False}),
    "bert": ("bert", "BertModel", {**SMALL, "max_position_embeddings": 64}),
    "modern-bert": (
        "modern-bert",
        "ModernBertModel",
        {**SMALL, "num_hidden_layers": 4, "local_attention": 16, "pad_token_id": 0},
    ),
    "t5": ("t5", "T5ForConditionalGeneration", {"feed_forward_proj": "relu", "tie_word_embeddings": True}),
    "t5 1.1": ("t5", "T5ForConditionalGeneration", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
}
T5 = {"vocab_size": 40, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "num_layers": 2, "num_decoder_layers": 3}


def tiny_model(case: str) -> Any:
    """A random model of transformers."""
    import torch
    import transformers

    architecture, name, settings = MODELS[case]
    cls = getattr(transformers, name)
    torch.manual_seed(0)
    model = cls(cls.config_class(**({**T5, **settings} if architecture == "t5" else settings))).eval()
    for parameter in model.parameters():  # norms start as ones, and biases as zeros
        parameter.data += 0.1 * torch.randn(parameter.shape)
    if case == "t5 1.1":
        untie(model)
    return model


def untie(model: Any) -> None:
    """Gives the output its own weights. In transformers 5, T5's config doesn't say so."""
    import torch

    model.lm_head.weight = torch.nn.Parameter(torch.randn(model.lm_head.weight.shape))


def write_model(path: Path, case: str, model: Any) -> None:
    """Writes what llama.cpp's converter does."""
    import gguf

    architecture = MODELS[case][0]
    config = model.config.to_dict()
    writer = gguf.GGUFWriter(path, architecture)
    _write_metadata(writer, architecture, config)
    layers = config.get("num_hidden_layers") or config.get("n_layer") or config["num_decoder_layers"]
    numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(numbers[architecture], layers)
    for name, array in kept_weights(model).items():
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        writer.add_tensor(stored, np.ascontiguousarray(_converted(architecture, name, array, config)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def kept_weights(model: Any) -> dict[str, np.ndarray]:
    """The weights that converters keep: no copies of tied ones, and no pooler."""
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items() if not name.startswith("pooler.")}
    embedding = model.get_input_embeddings().weight.data_ptr()
    if "lm_head.weight" in state and model.lm_head.weight.data_ptr() == embedding:
        del state["lm_head.weight"]
    for copy in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
        state.pop(copy, None)
    return state


def _converted(architecture: str, name: str, array: np.ndarray, config: dict[str, Any]) -> np.ndarray:
    if architecture == "llama" and "q_proj" in name:
        return _pairs(array, config["num_attention_heads"])
    if architecture == "llama" and "k_proj" in name:
        return _pairs(array, config["num_key_value_heads"])
    if architecture.startswith("gemma") and name.endswith("norm.weight"):
        return array + 1
    if architecture == "gpt2" and name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
        return array.T
    if architecture == "gptneox" and "query_key_value" in name:
        by_head = array.reshape(config["num_attention_heads"], 3, -1, *array.shape[1:])
        return np.concatenate([by_head[:, part].reshape(-1, *array.shape[1:]) for part in range(3)])
    return array


def _pairs(array: np.ndarray, heads: int) -> np.ndarray:
    """Row i of a head's first half comes before row i of its second half."""
    halves = np.split(array.reshape(heads, -1, *array.shape[1:]), 2, axis=1)
    return np.stack(halves, axis=2).reshape(array.shape)


def _write_metadata(writer: Any, architecture: str, config: dict[str, Any]) -> None:
    if architecture == "t5":
        _write_t5(writer, config)
        return
    writer.add_context_length(config.get("max_position_embeddings") or config["n_positions"])
    writer.add_embedding_length(config.get("hidden_size") or config["n_embd"])
    writer.add_block_count(config.get("num_hidden_layers") or config["n_layer"])
    writer.add_head_count(config.get("num_attention_heads") or config["n_head"])
    writer.add_feed_forward_length(config.get("intermediate_size") or 4 * config["n_embd"])
    if "num_key_value_heads" in config:
        writer.add_head_count_kv(config["num_key_value_heads"])
    if "rms_norm_eps" in config:
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    for key in ("layer_norm_eps", "layer_norm_epsilon", "norm_eps"):
        if key in config:
            writer.add_layer_norm_eps(config[key])
    if config.get("head_dim") and architecture not in ("phi3", "olmo2"):
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    if config.get("sliding_window"):
        writer.add_sliding_window(config["sliding_window"])
    if architecture == "gemma2":
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    if architecture == "gptneox":
        rotated = config["rope_parameters"]["partial_rotary_factor"]
        writer.add_rope_dimension_count(int(rotated * config["hidden_size"] // config["num_attention_heads"]))
        writer.add_parallel_residual(config["use_parallel_residual"])
    if config.get("pad_token_id") is not None:
        writer.add_pad_token_id(config["pad_token_id"])
    if architecture == "modern-bert":
        writer.add_sliding_window(config["local_attention"])
        writer.add_sliding_window_pattern(3)
    if architecture in ("llama", "qwen2", "qwen3", "olmo2", "phi3"):
        _write_rotary(writer, config)


def _write_rotary(writer: Any, config: dict[str, Any]) -> None:
    import gguf

    rotary = config["rope_parameters"]
    writer.add_rope_freq_base(rotary["rope_theta"])
    writer.add_rope_dimension_count(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])
    if rotary["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rotary["factor"])
    if rotary["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_divisors(rotary, config["head_dim"]))


def llama3_divisors(rotary: dict[str, Any], width: int) -> np.ndarray:
    """By what Llama 3.1 divides each frequency."""
    divisors = []
    for feature in range(0, width, 2):
        wavelength = 2 * np.pi * rotary["rope_theta"] ** (feature / width)
        turns = rotary["original_max_position_embeddings"] / wavelength
        low, high = rotary["low_freq_factor"], rotary["high_freq_factor"]
        share = min(max((turns - low) / (high - low), 0), 1)
        divisors.append(1 / (share + (1 - share) / rotary["factor"]))
    return np.array(divisors, np.float32)


def _write_t5(writer: Any, config: dict[str, Any]) -> None:
    writer.add_context_length(512)
    writer.add_embedding_length(config["d_model"])
    writer.add_feed_forward_length(config["d_ff"])
    writer.add_block_count(config["num_layers"])
    writer.add_decoder_block_count(config["num_decoder_layers"])
    writer.add_head_count(config["num_heads"])
    writer.add_key_length(config["d_kv"])
    writer.add_value_length(config["d_kv"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    writer.add_layer_norm_rms_eps(config["layer_norm_epsilon"])
    writer.add_relative_attn_buckets_count(config["relative_attention_num_buckets"])
    writer.add_decoder_start_token_id(0)
