"""Families of encoders: BERT, RoBERTa, DistilBERT, ELECTRA and ModernBERT.

Shapes follow transformers' config classes, whose defaults apply where config.json leaves a value out.
"""

from collections.abc import Iterator
from typing import Any

from lm.errors import UserError
from lm.modules.config import ModelConfig
from lm.pretrained.activations import GATED_ACTIVATIONS, PLAIN_ACTIVATIONS, published_name
from lm.pretrained.family import Family, Head, Rules
from lm.pretrained.layers import FULL, LOCAL, count_of_layers, layer_types
from lm.pretrained.published_config import PublishedConfig
from lm.pretrained.rules import Rule, gate_and_up, linear, norm, query_key_value, same

_POSITION_IDS = (r"embeddings\.position_ids$",)  # constants that older versions of transformers wrote
_OLD_LAYER_NORM = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}


def _like_bert(published: PublishedConfig, **others: Any) -> ModelConfig:
    """The shape of BERT and of what keeps the names of its settings."""
    _check_is_encoder(published)
    published.expect("position_embedding_type", "absolute")
    shape = {
        "layers": count_of_layers(published, 12),
        **_width_and_heads(published, ("hidden_size", 768), ("num_attention_heads", 12)),
        "feed_forward_width": published.integer("intermediate_size", 3072, least=1),
        "max_length": published.integer("max_position_embeddings", 512, least=2),
        "segment_types": published.integer("type_vocab_size", 2, least=1),
        "normalization_epsilon": published.number("layer_norm_eps", 1e-12),
        "activation": published.choice("hidden_act", PLAIN_ACTIVATIONS, "gelu"),
        "dropout": published.number("hidden_dropout_prob", 0.1),
        "attention_dropout": published.number("attention_probs_dropout_prob", 0.1),
    }
    return _post_norm_encoder(**shape | others)


def _post_norm_encoder(**shape: Any) -> ModelConfig:
    return ModelConfig(
        architecture="encoder", normalization_place="after", normalize_embeddings=True, bias=True, **shape
    )


def _width_and_heads(published: PublishedConfig, width: tuple[str, int], heads: tuple[str, int]) -> dict[str, Any]:
    """From their names and defaults."""
    found = {"width": published.integer(*width, least=1), "heads": published.integer(*heads, least=1)}
    published.divides(heads[0], found["heads"], width[0], found["width"])
    return found


def _check_is_encoder(published: PublishedConfig) -> None:
    published.expect("is_decoder", False)
    published.expect("add_cross_attention", False)
    published.expect("tie_word_embeddings", True)


def _as_bert(config: ModelConfig, model_type: str) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.layers,
        "hidden_size": config.width,
        "num_attention_heads": config.heads,
        "intermediate_size": config.size_of_feed_forward,
        "max_position_embeddings": config.max_length,
        "type_vocab_size": config.segment_types,
        "layer_norm_eps": config.normalization_epsilon,
        "hidden_act": published_name(config, PLAIN_ACTIVATIONS),
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "tie_word_embeddings": config.tie_embeddings,
    }


def _bert_to_ours(published: PublishedConfig) -> ModelConfig:
    return _like_bert(published, vocab_size=published.integer("vocab_size", 30_522, least=1))


def _bert_to_theirs(config: ModelConfig) -> dict[str, Any]:
    return _as_bert(config, "bert")


def _bert_body(prefix: str, config: ModelConfig) -> Iterator[Rule]:
    """Of BERT, RoBERTa and ELECTRA, which differ in the prefix of the names."""
    tables = {"token": "word", "position": "position", "type": "token_type"}
    for ours, theirs in tables.items():
        yield same(f"{ours}_embedding/embedding", f"{prefix}.embeddings.{theirs}_embeddings.weight")
    yield from norm("embedding_norm", f"{prefix}.embeddings.LayerNorm", config)
    for number in range(config.layers):
        ours, theirs = f"encoder/layer_{number}", f"{prefix}.encoder.layer.{number}"
        maps = [f"{theirs}.attention.self.{name}" for name in ("query", "key", "value")]
        yield from query_key_value(f"{ours}/attention/query_key_value", maps, config, bias=True)
        yield from linear(f"{ours}/attention/output", f"{theirs}.attention.output.dense", True)
        yield from norm(f"{ours}/attention_norm", f"{theirs}.attention.output.LayerNorm", config)
        yield from linear(f"{ours}/feed_forward/up", f"{theirs}.intermediate.dense", True)
        yield from linear(f"{ours}/feed_forward/down", f"{theirs}.output.dense", True)
        yield from norm(f"{ours}/feed_forward_norm", f"{theirs}.output.LayerNorm", config)


def _prediction_head(dense: str, layer_norm: str, bias: str) -> Rules:
    """Of the head for hidden tokens, by the names of its tensors."""

    def rules(config: ModelConfig) -> Iterator[Rule]:
        yield from linear("prediction_head/dense", dense, config.bias)
        yield from norm("prediction_head/norm", layer_norm, config)
        yield same("prediction_head/bias", bias)

    return rules


def _roberta_to_ours(published: PublishedConfig) -> ModelConfig:
    published.expect("hidden_act", "gelu")  # its head uses it whatever the config says
    offset = published.integer("pad_token_id", 1) + 1
    rows = published.integer("max_position_embeddings", 512)
    if rows <= offset + 1:
        raise UserError(
            f"{published.place}: max_position_embeddings={rows} leaves no room for texts: the first {offset} are not "
            "used"
        )
    return _like_bert(
        published,
        vocab_size=published.integer("vocab_size", least=1),
        max_length=rows - offset,
        position_offset=offset,
    )


def _roberta_to_theirs(config: ModelConfig) -> dict[str, Any]:
    if not config.position_offset:
        raise KeyError("position_offset")
    return _as_bert(config, "roberta") | {
        "max_position_embeddings": config.max_length + config.position_offset,
        # transformers counts positions from it.
        "pad_token_id": config.position_offset - 1,
    }


def _distilbert_to_ours(published: PublishedConfig) -> ModelConfig:
    published.expect("tie_word_embeddings", True)
    return _post_norm_encoder(
        **_width_and_heads(published, ("dim", 768), ("n_heads", 12)),
        vocab_size=published.integer("vocab_size", 30_522, least=1),
        layers=count_of_layers(published, 6, "n_layers"),
        feed_forward_width=published.integer("hidden_dim", 4 * 768, least=1),
        max_length=published.integer("max_position_embeddings", 512, least=2),
        normalization_epsilon=1e-12,
        activation=published.choice("activation", PLAIN_ACTIVATIONS, "gelu"),
        dropout=published.number("dropout", 0.1),
        attention_dropout=published.number("attention_dropout", 0.1),
    )


def _distilbert_to_theirs(config: ModelConfig) -> dict[str, Any]:
    return {
        "model_type": "distilbert",
        "vocab_size": config.vocab_size,
        "n_layers": config.layers,
        "dim": config.width,
        "n_heads": config.heads,
        "hidden_dim": config.size_of_feed_forward,
        "max_position_embeddings": config.max_length,
        "activation": published_name(config, PLAIN_ACTIVATIONS),
        "dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "tie_word_embeddings": config.tie_embeddings,
    }


def _distilbert_rules(config: ModelConfig) -> Iterator[Rule]:
    embeddings = "distilbert.embeddings"
    yield same("token_embedding/embedding", f"{embeddings}.word_embeddings.weight")
    yield same("position_embedding/embedding", f"{embeddings}.position_embeddings.weight")
    yield from norm("embedding_norm", f"{embeddings}.LayerNorm", config)
    for number in range(config.layers):
        ours, theirs = f"encoder/layer_{number}", f"distilbert.transformer.layer.{number}"
        maps = [f"{theirs}.attention.{name}_lin" for name in "qkv"]
        yield from query_key_value(f"{ours}/attention/query_key_value", maps, config, bias=True)
        yield from linear(f"{ours}/attention/output", f"{theirs}.attention.out_lin", True)
        yield from norm(f"{ours}/attention_norm", f"{theirs}.sa_layer_norm", config)
        yield from linear(f"{ours}/feed_forward/up", f"{theirs}.ffn.lin1", True)
        yield from linear(f"{ours}/feed_forward/down", f"{theirs}.ffn.lin2", True)
        yield from norm(f"{ours}/feed_forward_norm", f"{theirs}.output_layer_norm", config)


def _electra_to_ours(published: PublishedConfig) -> ModelConfig:
    published.expect("hidden_act", "gelu")  # its head uses it whatever the config says
    sizes = _width_and_heads(published, ("hidden_size", 256), ("num_attention_heads", 4))
    embedding_width = published.integer("embedding_size", 128, least=1)
    return _like_bert(
        published,
        **sizes,
        vocab_size=published.integer("vocab_size", 30_522, least=1),
        feed_forward_width=published.integer("intermediate_size", 1024, least=1),
        embedding_width=None if embedding_width == sizes["width"] else embedding_width,
    )


def _electra_to_theirs(config: ModelConfig) -> dict[str, Any]:
    return _as_bert(config, "electra") | {"embedding_size": config.size_of_embedding}


def _electra_rules(config: ModelConfig) -> Iterator[Rule]:
    yield from _bert_body("electra", config)
    if config.embedding_width is not None:
        yield from linear("embedding_projection", "electra.embeddings_project", True)


def _modernbert_to_ours(published: PublishedConfig) -> ModelConfig:
    for name in ("attention_bias", "mlp_bias", "norm_bias", "classifier_bias"):
        published.expect(name, False)
    published.expect("decoder_bias", True)
    published.expect("tie_word_embeddings", True)
    published.expect("rope_scaling", None)
    activation = published.choice("hidden_activation", GATED_ACTIVATIONS, "gelu")
    if published.choice("classifier_activation", GATED_ACTIVATIONS, "gelu") != activation:
        raise UserError(f"{published.place}: classifier_activation and hidden_activation must be the same here")
    layers = count_of_layers(published, 22)
    return ModelConfig(
        architecture="encoder",
        **_width_and_heads(published, ("hidden_size", 768), ("num_attention_heads", 12)),
        **_windows_and_rotations(published, layers),
        vocab_size=published.integer("vocab_size", 50_368, least=1),
        layers=layers,
        feed_forward_width=published.integer("intermediate_size", 1152, least=1),
        max_length=published.integer("max_position_embeddings", 8192, least=2),
        positions="rotary",
        first_norm=False,
        normalize_embeddings=True,
        normalization_epsilon=published.number("norm_eps", 1e-5),
        activation=activation,
        dropout=published.number("mlp_dropout", 0.0),
        attention_dropout=published.number("attention_dropout", 0.0),
    )


def _windows_and_rotations(published: PublishedConfig, layers: int) -> dict[str, Any]:
    """Which layers have a window, by a list or, as before transformers 5, by a period; and the bases of both kinds."""
    period = published.integer("global_attn_every_n_layers", 3, least=1)
    by_period = [LOCAL if number % period else FULL for number in range(layers)]
    types = published.choices("layer_types", (FULL, LOCAL), by_period, layers)
    base = _rotary_base(published, FULL, "global_rope_theta", 160_000.0)
    if LOCAL not in types:
        return {"rotary_base": base}
    local_base = _rotary_base(published, LOCAL, "local_rope_theta", 10_000.0)
    return {
        "rotary_base": base,
        "local_rotary_base": None if local_base == base else local_base,
        "attention_window": published.integer("local_attention", 128, least=1),
        "global_layers": tuple(number for number, kind in enumerate(types) if kind == FULL),
    }


def _rotary_base(published: PublishedConfig, kind: str, name: str, default: float) -> float:
    """Of one kind of layers: in a group of its own or, as before transformers 5, by a name."""
    group = published.group("rope_parameters").group(kind)
    group.expect("rope_type", "default")
    group.only(("rope_type", "rope_theta"))
    return group.number("rope_theta", published.number(name, default))


def _modernbert_to_theirs(config: ModelConfig) -> dict[str, Any]:
    types = layer_types(config)
    values = {
        "model_type": "modernbert",
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.layers,
        "hidden_size": config.width,
        "num_attention_heads": config.heads,
        "intermediate_size": config.size_of_feed_forward,
        "max_position_embeddings": config.max_length,
        "global_rope_theta": config.rotary_base,
        "local_rope_theta": config.local_rotary_base or config.rotary_base,
        "layer_types": types,
        "norm_eps": config.normalization_epsilon,
        "hidden_activation": published_name(config, GATED_ACTIVATIONS),
        "classifier_activation": published_name(config, GATED_ACTIVATIONS),
        "tie_word_embeddings": config.tie_embeddings,
        # Its defaults are rows of a vocabulary of 50,368.
        **{f"{name}_token_id": None for name in ("pad", "bos", "eos", "cls", "sep")},
        **dict.fromkeys(("mlp_dropout", "embedding_dropout"), config.dropout),
        "attention_dropout": config.attention_dropout,
    }
    if config.attention_window is not None:
        values["local_attention"] = config.attention_window
    # Transformers 4 knows only periods.
    for period in range(1, config.layers + 1):
        if types == [LOCAL if number % period else FULL for number in range(config.layers)]:
            values["global_attn_every_n_layers"] = period
    return values


def _modernbert_rules(config: ModelConfig) -> Iterator[Rule]:
    yield same("token_embedding/embedding", "model.embeddings.tok_embeddings.weight")
    yield from norm("embedding_norm", "model.embeddings.norm", config)
    for number in range(config.layers):
        ours, theirs = f"encoder/layer_{number}", f"model.layers.{number}"
        if number:
            yield from norm(f"{ours}/attention_norm", f"{theirs}.attn_norm", config)
        fused = (f"{theirs}.attn.Wqkv",)
        yield from query_key_value(f"{ours}/attention/query_key_value", fused, config, bias=False)
        yield from linear(f"{ours}/attention/output", f"{theirs}.attn.Wo", False)
        yield from norm(f"{ours}/feed_forward_norm", f"{theirs}.mlp_norm", config)
        yield from gate_and_up(f"{ours}/feed_forward/gate", f"{ours}/feed_forward/up", f"{theirs}.mlp.Wi", False)
        yield from linear(f"{ours}/feed_forward/down", f"{theirs}.mlp.Wo", False)
    yield from norm("encoder/final_norm", "model.final_norm", config)


def _heads(name: str, classification: Rules) -> dict[str, Head]:
    """Of BERT and RoBERTa.

    Args:
      name: that the transformers classes begin with.
      classification: of the pooler and the classes of whole texts.
    """
    return {
        "classification": Head(f"{name}ForSequenceClassification", classification, pools=True),
        "tagging": Head(f"{name}ForTokenClassification", lambda config: linear("head", "classifier", True)),
        "question_answering": Head(
            f"{name}ForQuestionAnswering", lambda config: linear("head", "qa_outputs", True), has_classes=False
        ),
    }


def _bert_classification(config: ModelConfig) -> Iterator[Rule]:
    yield from linear("pooler", "bert.pooler.dense", True)
    yield from linear("head", "classifier", True)


def _roberta_classification(config: ModelConfig) -> Iterator[Rule]:
    yield from linear("pooler", "classifier.dense", True)
    yield from linear("head", "classifier.out_proj", True)


ENCODERS = (
    Family(
        name="BERT, MiniLM, BGE, E5",
        model_types=("bert",),
        prefix="bert.",
        to_ours=_bert_to_ours,
        to_theirs=_bert_to_theirs,
        rules=lambda config: _bert_body("bert", config),
        models={
            ("prediction_head", "next_sentence_head"): "BertForPreTraining",
            ("prediction_head",): "BertForMaskedLM",
            ("next_sentence_head",): "BertForNextSentencePrediction",
            (): "BertModel",
        },
        parts={
            "pooler": lambda config: linear("pooler", "bert.pooler.dense", True),
            "prediction_head": _prediction_head(
                "cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias"
            ),
            "next_sentence_head": lambda config: linear("next_sentence_head", "cls.seq_relationship", True),
        },
        heads=_heads("Bert", _bert_classification),
        copies={
            "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias",
        },
        old_names=_OLD_LAYER_NORM,
        unused=_POSITION_IDS,
    ),
    Family(
        name="RoBERTa, XLM-R, CamemBERT",
        model_types=("roberta", "xlm-roberta", "camembert"),
        prefix="roberta.",
        to_ours=_roberta_to_ours,
        to_theirs=_roberta_to_theirs,
        rules=lambda config: _bert_body("roberta", config),
        models={("prediction_head",): "RobertaForMaskedLM", (): "RobertaModel"},
        parts={
            "pooler": lambda config: linear("pooler", "roberta.pooler.dense", True),
            "prediction_head": _prediction_head("lm_head.dense", "lm_head.layer_norm", "lm_head.bias"),
        },
        heads=_heads("Roberta", _roberta_classification),
        copies={
            "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
            "lm_head.decoder.bias": "lm_head.bias",
        },
        old_names=_OLD_LAYER_NORM,
        unused=_POSITION_IDS,
    ),
    Family(
        name="DistilBERT",
        model_types=("distilbert",),
        prefix="distilbert.",
        to_ours=_distilbert_to_ours,
        to_theirs=_distilbert_to_theirs,
        rules=_distilbert_rules,
        models={("prediction_head",): "DistilBertForMaskedLM", (): "DistilBertModel"},
        parts={
            "prediction_head": _prediction_head("vocab_transform", "vocab_layer_norm", "vocab_projector.bias"),
        },
        copies={"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"},
        unused=_POSITION_IDS,
    ),
    Family(
        name="ELECTRA",
        model_types=("electra",),
        prefix="electra.",
        to_ours=_electra_to_ours,
        to_theirs=_electra_to_theirs,
        rules=_electra_rules,
        models={("prediction_head",): "ElectraForMaskedLM", (): "ElectraModel"},
        parts={
            "prediction_head": _prediction_head(
                "generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head.bias"
            ),
        },
        copies={"generator_lm_head.weight": "electra.embeddings.word_embeddings.weight"},
        old_names=_OLD_LAYER_NORM,
        unused=_POSITION_IDS,
        dropped=(r"^discriminator_predictions\.",),
    ),
    Family(
        name="ModernBERT",
        model_types=("modernbert",),
        prefix="model.",
        to_ours=_modernbert_to_ours,
        to_theirs=_modernbert_to_theirs,
        rules=_modernbert_rules,
        models={("prediction_head",): "ModernBertForMaskedLM", (): "ModernBertModel"},
        parts={
            "prediction_head": _prediction_head("head.dense", "head.norm", "decoder.bias"),
        },
        copies={"decoder.weight": "model.embeddings.tok_embeddings.weight"},
    ),
)
