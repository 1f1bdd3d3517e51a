"""config.json: defaults of each family, keys of transformers 4 and 5, and what is refused, by name and in one line."""

import dataclasses

import pytest

from lm.errors import UserError
from lm.models.accounting import parameter_count
from lm.models.presets import PRESETS
from lm.modules.config import ModelConfig
from lm.pretrained.families import FAMILIES, family_of_published, published_form
from lm.pretrained.layers import FULL, LOCAL
from lm.pretrained.published_config import PublishedConfig

DECODERS = ("gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3", "olmo2", "phi3", "gemma", "gemma2", "gemma3_text")
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def shape(model_type: str, **values) -> ModelConfig:
    published = PublishedConfig({"model_type": model_type, **values}, "config.json")
    found = family_of_published(published).to_ours(published)
    return dataclasses.replace(found, kv_heads=found.num_kv_heads, head_width=found.size_per_head)


@pytest.mark.parametrize("model_type", DECODERS)
def test_defaults_are_those_of_transformers(model_type):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoConfig.for_model(model_type).to_dict()
    assert shape(model_type) == shape(**theirs)


def test_a_config_that_leaves_out_nearly_everything():
    """As of gemma-3-4b, which is published like this."""
    text = {
        "model_type": "gemma3_text",
        "hidden_size": 2560,
        "intermediate_size": 10_240,
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    found = shape("gemma3", text_config=text, vision_config={"hidden_size": 1152})
    assert (found.vocab_size, found.heads, found.num_kv_heads, found.size_per_head) == (262_208, 8, 4, 256)
    assert (found.attention_window, found.global_layers) == (1024, (5, 11, 17, 23, 29))
    assert (found.rotary_base, found.local_rotary_base, found.rotary_factor) == (1e6, 1e4, 8.0)


@pytest.mark.parametrize(
    ("model_type", "common", "old", "new"),
    [
        ("llama", {}, {"rope_theta": 5e5}, {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}),
        (
            "llama",
            {"max_position_embeddings": 131_072},
            {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
            {"rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", **LLAMA3}},
        ),
        (
            "llama",
            {},
            {"rope_scaling": {"type": "linear", "factor": 2.0}, "torch_dtype": "bfloat16"},
            {"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0}, "dtype": "bfloat16"},
        ),
        (
            "gpt_neox",
            {"num_attention_heads": 32},
            {"rotary_pct": 0.5, "rotary_emb_base": 20_000, "rope_scaling": None},
            {"rope_parameters": {"rope_theta": 20_000, "partial_rotary_factor": 0.5, "rope_type": "default"}},
        ),
        (
            "phi3",
            {},
            {"partial_rotary_factor": 0.75, "rope_theta": 1e4},
            {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.75, "rope_type": "default"}},
        ),
        (
            "qwen2",
            {"num_hidden_layers": 3, "use_sliding_window": True, "sliding_window": 64},
            {"max_window_layers": 2},
            {"layer_types": [FULL, FULL, LOCAL]},
        ),
        (
            "qwen2",
            {"num_hidden_layers": 3},
            {"sliding_window": 64},
            {"sliding_window": None, "layer_types": [FULL] * 3},
        ),
        ("gemma", {}, {"hidden_act": "gelu", "hidden_activation": None}, {"hidden_act": "gelu_pytorch_tanh"}),
        ("gemma2", {"num_hidden_layers": 3}, {}, {"layer_types": [LOCAL, FULL, LOCAL]}),
        (
            "gemma3_text",
            {"num_hidden_layers": 3},
            {"sliding_window_pattern": 2, "rope_local_base_freq": 1e3, "rope_theta": 1e5},
            {
                "layer_types": [LOCAL, FULL, LOCAL],
                "rope_parameters": {
                    FULL: {"rope_theta": 1e5, "rope_type": "default"},
                    LOCAL: {"rope_theta": 1e3, "rope_type": "default"},
                },
            },
        ),
    ],
)
def test_keys_of_transformers_4_and_5_mean_the_same(model_type, common, old, new):
    found = shape(model_type, **common, **old)
    assert found == shape(model_type, **common, **new)
    assert found != shape(model_type, **common) or old == {} or model_type in ("gemma", "qwen2")


def test_null_is_not_missing_where_it_means_none():
    assert shape("mistral").attention_window == 4096
    assert shape("mistral", sliding_window=None).attention_window is None
    assert shape("mistral", num_key_value_heads=None).num_kv_heads == 32
    assert shape("gemma2", attn_logit_softcapping=None, final_logit_softcapping=None).attention_softcap is None
    assert shape("llama", rope_scaling=None, rope_theta=None) == shape("llama")


@pytest.mark.parametrize(
    ("model_type", "values", "message"),
    [
        ("llama", {"hidden_size": "4096"}, "hidden_size must be a whole number from 1 to a billion, got '4096'"),
        ("llama", {"hidden_size": 4096.0}, "hidden_size must be a whole number from 1 to a billion, got 4096.0"),
        ("llama", {"num_attention_heads": 0}, "num_attention_heads must be a whole number from 1"),
        ("llama", {"num_hidden_layers": True}, "num_hidden_layers must be a whole number"),
        ("llama", {"num_hidden_layers": 10**8}, "num_hidden_layers=100000000 is more than any model has"),
        ("llama", {"vocab_size": 10**30}, "vocab_size must be a whole number from 1 to a billion, got 1000"),
        ("llama", {"rms_norm_eps": float("nan")}, "rms_norm_eps must be a number, got nan"),
        ("llama", {"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false, got 'yes'"),
        ("llama", {"hidden_act": "quick_gelu"}, "hidden_act must be one of silu, .*, got 'quick_gelu'"),
        ("llama", {"hidden_act": ["silu"]}, "hidden_act must be one of"),
        ("llama", {"rope_scaling": "linear"}, "rope_scaling must be an object, got 'linear'"),
        ("llama", {"rope_scaling": {"type": "linear"}}, "rope_scaling has no factor"),
        ("llama", {"rope_scaling": {"type": ["linear"], "factor": 2}}, "type must be one of default, linear, llama3"),
        ("qwen2", {"layer_types": LOCAL}, "layer_types must be a list of full_attention, sliding_attention"),
        ("qwen2", {"layer_types": ["linear_attention"] * 32}, "layer_types must be a list of"),
    ],
)
def test_values_of_wrong_types_are_refused(model_type, values, message):
    with pytest.raises(UserError, match=rf"^config\.json.*{message}"):
        shape(model_type, **values)


@pytest.mark.parametrize(
    ("model_type", "values", "message"),
    [
        ("llama", {"num_attention_heads": 30}, "num_attention_heads=30 does not divide hidden_size=4096"),
        ("llama", {"num_key_value_heads": 3}, "num_key_value_heads=3 does not divide num_attention_heads=32"),
        ("gpt2", {"n_head": 5}, "n_head=5 does not divide n_embd=768"),
        ("gpt_neox", {"num_attention_heads": 60}, "num_attention_heads=60 does not divide hidden_size=6144"),
        ("qwen2", {"layer_types": [FULL]}, "layer_types has 1 entries for 32 layers"),
        (
            "qwen2",
            {"layer_types": [LOCAL] * 32},
            "layer_types has sliding_attention, and the model has no sliding_window",
        ),
        ("gemma2", {"sliding_window": None}, "layer_types has sliding_attention, and the model has no sliding_window"),
    ],
)
def test_contradictions_are_refused(model_type, values, message):
    with pytest.raises(UserError, match=f"^config\\.json: {message}"):
        shape(model_type, **values)


@pytest.mark.parametrize(
    ("model_type", "values", "name"),
    [
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
        ("gpt_neox", {"attention_bias": False}, "attention_bias"),
        ("llama", {"attention_bias": True}, "attention_bias"),
        ("llama", {"mlp_bias": True}, "mlp_bias"),
        ("llama", {"pretraining_tp": 2}, "pretraining_tp"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("llama", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "type must be one of"),
        ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "beta_fast": 32}}, "beta_fast"),
        ("mistral", {"layer_types": [FULL]}, "layer_types"),
        ("qwen3", {"attention_bias": True}, "attention_bias"),
        ("olmo2", {"attention_bias": True}, "attention_bias"),
        (
            "phi3",
            {"rope_scaling": {"type": "longrope", "short_factor": [1.0]}},
            "type must be one of .* got 'longrope'",
        ),
        ("gemma", {"hidden_activation": "silu"}, "hidden_activation"),
        ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma2", {"attention_bias": True}, "attention_bias"),
        ("gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar must be positive"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ("gemma3_text", {"rope_parameters": {"rope_theta": 1e6}}, "rope_theta"),
        ("gemma3_text", {"rope_parameters": {LOCAL: {"rope_type": "linear", "factor": 2.0}}}, "rope_type='linear'"),
    ],
)
def test_what_would_change_the_computation_is_refused_by_name(model_type, values, name):
    with pytest.raises(UserError, match=rf"^config\.json.*{name}"):
        shape(model_type, **values)


@pytest.mark.parametrize(
    "name", [name for name in PRESETS if name.startswith(("gpt2", "llama", "smollm", "tinyllama"))]
)
def test_presets_of_decoders_have_a_published_form(name):
    config = dataclasses.replace(PRESETS[name], vocab_size=PRESETS[name].vocab_size or 1000)
    family, values = published_form(config, ())
    assert family.name == ("GPT-2" if config.positions == "learned" else "Llama 1 to 3, TinyLlama, SmolLM2")
    read = family.to_ours(PublishedConfig(values, "config.json"))
    assert (read.max_length, read.rotary_base, read.tie_embeddings) == (
        config.max_length,
        config.rotary_base,
        config.tie_embeddings,
    )
    assert read.size_of_feed_forward == config.size_of_feed_forward


def test_a_shape_of_no_family_has_no_published_form():
    for config in (ModelConfig(vocab_size=10, architecture="lstm"), ModelConfig(vocab_size=10, bias=False)):
        with pytest.raises(UserError, match="no published family has a model of this shape"):
            published_form(config, ())


def test_the_family_that_a_model_came_from_is_asked_first():
    config = shape("mistral", sliding_window=None)
    assert published_form(config, ())[1]["model_type"] == "llama"
    assert published_form(config, (), model_type="mistral")[1]["model_type"] == "mistral"
    assert published_form(config, (), model_type="gpt2")[1]["model_type"] == "llama"


def test_names_of_families_are_unique():
    kinds = [kind for family in FAMILIES for kind in family.model_types]
    assert len(kinds) == len(set(kinds))


@pytest.mark.parametrize(
    ("parameters", "values"),
    [
        (
            70_426_624,  # Pythia 70M
            {
                "model_type": "gpt_neox",
                "hidden_size": 512,
                "intermediate_size": 2048,
                "num_attention_heads": 8,
                "num_hidden_layers": 6,
                "vocab_size": 50_304,
            },
        ),
        (
            494_032_768,  # Qwen2.5 0.5B
            {
                "model_type": "qwen2",
                "hidden_size": 896,
                "intermediate_size": 4864,
                "num_attention_heads": 14,
                "num_hidden_layers": 24,
                "num_key_value_heads": 2,
                "tie_word_embeddings": True,
            },
        ),
        (
            999_885_952,  # Gemma 3 1B
            {
                "model_type": "gemma3_text",
                "hidden_size": 1152,
                "intermediate_size": 6912,
                "num_attention_heads": 4,
                "num_hidden_layers": 26,
                "num_key_value_heads": 1,
                "sliding_window": 512,
                "vocab_size": 262_144,
            },
        ),
    ],
)
def test_published_models_have_their_published_number_of_parameters(parameters, values):
    assert parameter_count(shape(**values)) == parameters
