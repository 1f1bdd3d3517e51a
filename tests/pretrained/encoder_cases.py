"""Tiny encoders and encoder-decoders of every family, as transformers builds them."""

from collections.abc import Callable
from typing import Any

from tests.pretrained.published_cases import VOCAB, Case

_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 40,
}
_NO_SPECIAL_TOKENS = dict.fromkeys((f"{name}_token_id" for name in ("pad", "bos", "eos", "cls", "sep")), 0)


def _made(name: str, sizes: dict[str, Any], **settings: Any) -> Callable[[Any], Any]:
    return lambda transformers: getattr(transformers, name)(**sizes | settings)


ENCODERS = (
    Case("bert", _made("BertConfig", _SIZES), "BertForPreTraining", without=({"normalization_epsilon": 1e-2},)),
    Case(
        "bert masked", _made("BertConfig", _SIZES, hidden_act="gelu_new"), "BertForMaskedLM", ({"activation": "relu"},)
    ),
    Case("bert body", _made("BertConfig", _SIZES, hidden_act="silu"), "BertModel", ({"activation": "gelu"},)),
    Case(
        "roberta",
        _made("RobertaConfig", _SIZES, type_vocab_size=1),
        "RobertaForMaskedLM",
        without=({"position_offset": 0, "max_length": 40},),
    ),
    Case("xlm-roberta", _made("XLMRobertaConfig", _SIZES, type_vocab_size=1), "XLMRobertaModel"),
    Case(
        "distilbert",
        lambda transformers: transformers.DistilBertConfig(
            vocab_size=VOCAB, dim=32, n_layers=2, n_heads=4, hidden_dim=40, max_position_embeddings=40
        ),
        "DistilBertForMaskedLM",
        without=({"activation": "relu"},),
    ),
    Case("electra", _made("ElectraConfig", _SIZES, embedding_size=32), "ElectraForMaskedLM"),
    Case("electra discriminator", _made("ElectraConfig", _SIZES, embedding_size=32), "ElectraForPreTraining"),
    Case("electra small", _made("ElectraConfig", _SIZES, embedding_size=16), "ElectraForMaskedLM"),
    Case(
        "modernbert",
        _made("ModernBertConfig", _SIZES | _NO_SPECIAL_TOKENS, num_hidden_layers=4, local_attention=10),
        "ModernBertForMaskedLM",
        without=(
            {"attention_window": 12},
            {"global_layers": (0,)},
            {"local_rotary_base": None},
            {"activation": "gated_gelu"},
        ),
    ),
)

_T5 = {
    "vocab_size": VOCAB,
    "d_model": 32,
    "d_kv": 6,
    "d_ff": 40,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 10,
}
_BART = {
    "vocab_size": VOCAB,
    "d_model": 32,
    "max_position_embeddings": 40,
    "decoder_start_token_id": 2,
    "pad_token_id": 1,
    **{f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in (("layers", 2), ("ffn_dim", 40))},
    **{f"{side}_attention_heads": 4 for side in ("encoder", "decoder")},
}

ENCODER_DECODERS = (
    Case(
        "t5 1.0",
        _made("T5Config", _T5, num_decoder_layers=3),
        "T5ForConditionalGeneration",
        without=(
            {"logit_scale": 1.0},
            {"attention_scale": None},
            {"relative_max_distance": 12},
        ),
    ),
    Case(
        "t5 1.1",
        _made("T5Config", _T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
        "T5ForConditionalGeneration",
        without=({"activation": "gated_gelu_exact"}, {"logit_scale": 0.1}),
    ),
    Case("mt5", _made("MT5Config", _T5), "MT5ForConditionalGeneration", without=({"activation": "swiglu"},)),
    Case(
        "bart",
        _made("BartConfig", _BART, decoder_layers=1),
        "BartForConditionalGeneration",
        without=(
            {"scale_embeddings": True},
            {"position_offset": 0, "max_length": 42},
            {"separate_embeddings": False},
            {"output_bias": False},
        ),
    ),
    Case(
        "marian",
        _made("MarianConfig", _BART, scale_embedding=True, activation_function="swish"),
        "MarianMTModel",
        without=({"scale_embeddings": False}, {"activation": "gelu"}),
    ),
    Case("marian untied", _made("MarianConfig", _BART, tie_word_embeddings=False), "MarianMTModel"),
)
# Those whose output matrix is not the token embedding.
UNTIED = ("t5 1.1", "marian untied")
