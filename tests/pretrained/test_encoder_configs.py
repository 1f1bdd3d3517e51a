"""config.json and names of weights of encoders and encoder-decoders: old and new ones, copies, and what is refused."""

import dataclasses

import jax
import numpy as np
import pytest

from lm.errors import UserError
from lm.models.build import make_language_model
from lm.models.parameter_paths import by_path
from lm.pretrained.families import family_of_published, published_form
from lm.pretrained.parameters import (
    dropped_weights,
    parts_present,
    published_tensors,
    read_parameters,
    shape_as_stored,
)
from lm.pretrained.published_config import PublishedConfig
from lm.pretrained.tensors import open_tensors, write_safetensors
from tests.pretrained.reading import shapes

TYPES = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra", "modernbert")
TYPES += ("t5", "mt5", "bart", "marian")
FULL, LOCAL = "full_attention", "sliding_attention"
BERT = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
T5 = {"vocab_size": 20, "d_model": 8, "d_kv": 4, "num_heads": 2, "d_ff": 12, "num_layers": 1}
BART = {"vocab_size": 20, "d_model": 8, "encoder_layers": 1, "decoder_layers": 1}
BART |= {f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("attention_heads", "ffn_dim")}


def config_of(model_type, **values):
    published = PublishedConfig({"model_type": model_type, **values}, "config.json")
    return family_of_published(published).to_ours(published)


@pytest.mark.parametrize("model_type", TYPES)
def test_defaults_are_those_of_transformers(model_type):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoConfig.for_model(model_type).to_dict()
    assert config_of(model_type, vocab_size=theirs["vocab_size"]) == config_of(**theirs)


def test_keys_of_modernbert_in_both_versions_of_transformers():
    old = {"global_attn_every_n_layers": 2, "global_rope_theta": 8e4, "local_rope_theta": 1e3}
    bases = {FULL: {"rope_theta": 8e4, "rope_type": "default"}, LOCAL: {"rope_theta": 1e3, "rope_type": "default"}}
    new = {"layer_types": [FULL, LOCAL, FULL], "rope_parameters": bases}
    found = config_of("modernbert", num_hidden_layers=3, **old)
    assert found == config_of("modernbert", num_hidden_layers=3, **new)
    assert (found.global_layers, found.rotary_base, found.local_rotary_base) == ((0, 2), 8e4, 1e3)
    _, values = published_form(found, ())
    assert {**old, "layer_types": new["layer_types"]}.items() <= values.items()


def test_logits_of_t5_are_scaled_unless_it_says_otherwise():
    assert config_of("t5", d_model=64).logit_scale == 1 / 8
    assert config_of("t5", tie_word_embeddings=False).logit_scale == 1
    assert config_of("t5", scale_decoder_outputs=False).logit_scale == 1
    assert config_of("mt5").logit_scale == 1
    for values in ({}, {"tie_word_embeddings": False}, {"scale_decoder_outputs": False}):
        config = config_of("t5", **values)
        assert config_of(**published_form(config, ())[1]) == config


@pytest.mark.parametrize(
    ("model_type", "values", "message"),
    [
        ("bert", {"hidden_size": 30}, "num_attention_heads=12 does not divide hidden_size=30"),
        ("bert", {"is_decoder": True}, "is_decoder=True is not supported"),
        (
            "bert",
            {"position_embedding_type": "relative_key"},
            "position_embedding_type='relative_key' is not supported",
        ),
        ("bert", {"hidden_act": "mish"}, "hidden_act must be one of gelu"),
        ("bert", {"tie_word_embeddings": False}, "tie_word_embeddings=False is not supported"),
        ("bert", {"type_vocab_size": 0}, "type_vocab_size must be a whole number from 1"),
        ("roberta", {"vocab_size": 9, "max_position_embeddings": 3}, "max_position_embeddings=3 leaves no room"),
        ("roberta", {"vocab_size": 9, "hidden_act": "relu"}, "hidden_act='relu' is not supported, only 'gelu'"),
        ("distilbert", {"n_heads": 5}, "n_heads=5 does not divide dim=768"),
        ("electra", {"hidden_act": "relu"}, "hidden_act='relu' is not supported, only 'gelu'"),
        ("modernbert", {"norm_bias": True}, "norm_bias=True is not supported"),
        ("modernbert", {"layer_types": [FULL]}, "layer_types has 1 entries for 22 layers"),
        ("modernbert", {"rope_scaling": {"factor": 2.0}}, "rope_scaling={'factor': 2.0} is not supported"),
        (
            "modernbert",
            {"classifier_activation": "silu"},
            "classifier_activation and hidden_activation must be the same",
        ),
        ("t5", {"feed_forward_proj": "gated-relu"}, "feed_forward_proj must be one of relu"),
        ("t5", {"feed_forward_proj": "gated-gelu", "dense_act_fn": "relu"}, "dense_act_fn='relu' is not supported"),
        ("t5", {"num_layers": 10**8}, "num_layers=100000000 is more than any model has"),
        ("bart", {"add_final_layer_norm": True}, "add_final_layer_norm=True is not supported"),
        ("bart", {"normalize_before": True}, "normalize_before=True is not supported"),
        ("bart", {"decoder_ffn_dim": 8}, "decoder_ffn_dim=8 is not supported, only 4096"),
        ("marian", {"decoder_vocab_size": 100}, "decoder_vocab_size=100 is not supported, only 58101"),
        (
            "marian",
            {"share_encoder_decoder_embeddings": False},
            "share_encoder_decoder_embeddings=False is not supported",
        ),
        ("marian", {"normalize_embedding": True}, "normalize_embedding=True is not supported"),
    ],
)
def test_what_would_compute_something_else_is_refused(model_type, values, message):
    with pytest.raises(UserError, match=message) as error:
        config_of(model_type, **values)
    assert "\n" not in str(error.value)


class Files:
    """A model with random parameters, its family, and its tensors by name."""

    def __init__(self, model_type, parts=(), **values):
        self.config, self.parts = config_of(model_type, **values), parts
        self.family = family_of_published(PublishedConfig({"model_type": model_type}, ""))
        self.like = shapes(make_language_model(self.config), parts)
        random = np.random.default_rng(0)
        self.params = jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(leaf.dtype), self.like)
        self.arrays = dict(published_tensors(self.family, self.config, parts, self.params))

    def written(self, path, **arrays):
        (path / "model.safetensors").unlink(missing_ok=True)
        write_safetensors(path, (self.arrays | arrays).items())
        return open_tensors(path)

    def check(self, tensors):
        assert parts_present(self.family, self.config, tensors) == self.parts
        found = by_path(read_parameters(self.family, self.config, self.parts, tensors, self.like))
        for name, array in by_path(self.params).items():
            np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_old_names_of_norms_and_names_without_a_prefix_are_read(tmp_path):
    files = Files("bert", ("pooler", "prediction_head"), **BERT)
    for old, new in (("gamma", "weight"), ("beta", "bias")):
        for name in [name for name in files.arrays if name.endswith(f"LayerNorm.{new}")]:
            files.arrays[name.removesuffix(new) + old] = files.arrays.pop(name)
    files.arrays = {name.removeprefix("bert."): array for name, array in files.arrays.items()}
    files.check(files.written(tmp_path, **{"embeddings.position_ids": np.arange(4)}))


def test_a_copy_must_equal_what_it_is_of(tmp_path):
    files = Files("bert", ("prediction_head",), **BERT)
    embedding = files.arrays["bert.embeddings.word_embeddings.weight"]
    files.check(files.written(tmp_path, **{"cls.predictions.decoder.weight": embedding}))
    tensors = files.written(tmp_path, **{"cls.predictions.decoder.weight": embedding + 1})
    with pytest.raises(UserError, match=r"cls\.predictions\.decoder\.weight differs from bert\.embeddings\.word"):
        files.check(tensors)


def test_missing_unused_and_misshapen_weights_are_named(tmp_path):
    files = Files("bert", **BERT)
    with pytest.raises(UserError, match=r"does not use.*: classifier\.weight$"):
        files.check(files.written(tmp_path, **{"classifier.weight": np.zeros((2, 8), np.float32)}))
    with pytest.raises(UserError, match=r"pooler\.dense\.weight"):  # half of a part
        files.check(files.written(tmp_path, **{"pooler.dense.weight": np.zeros((8, 8), np.float32)}))
    with pytest.raises(UserError, match=r"word_embeddings\.weight is \(21, 8\), and config\.json says \(20, 8\)"):
        files.check(files.written(tmp_path, **{"embeddings.word_embeddings.weight": np.zeros((21, 8), np.float32)}))
    del files.arrays["embeddings.LayerNorm.bias"]
    with pytest.raises(UserError, match=r"lacks bert\.embeddings\.LayerNorm\.bias"):
        files.check(files.written(tmp_path))


def test_the_head_of_an_electra_discriminator_is_dropped_and_named(tmp_path):
    files = Files("electra", embedding_size=4, **BERT)
    head = {f"discriminator_predictions.{name}.weight": np.zeros((8, 8), np.float32) for name in ("dense", "out")}
    tensors = files.written(tmp_path, **head)
    files.check(tensors)
    assert set(dropped_weights(files.family, tensors)) == set(head)


def test_an_output_matrix_counts_if_it_differs_from_the_embedding(tmp_path):
    files = Files("t5", **T5)
    embedding = files.arrays["shared.weight"]
    tensors = files.written(tmp_path, **{"lm_head.weight": embedding})
    assert shape_as_stored(files.family, files.config, tensors) == files.config
    files.check(tensors)
    tensors = files.written(tmp_path, **{"lm_head.weight": -embedding})
    assert shape_as_stored(files.family, files.config, tensors) == dataclasses.replace(
        files.config, tie_embeddings=False
    )


def test_a_missing_bias_of_logits_is_none(tmp_path):
    files = Files("bart", **BART)
    assert shape_as_stored(files.family, files.config, files.written(tmp_path)) == files.config
    del files.arrays["final_logits_bias"]
    config = shape_as_stored(files.family, files.config, files.written(tmp_path))
    assert config == dataclasses.replace(files.config, output_bias=False)
    assert published_form(config, ())[0] is files.family


def test_what_no_family_has_is_not_exported():
    config = config_of("bert", **BERT)
    with pytest.raises(UserError, match="no published family has a model of this shape"):
        published_form(dataclasses.replace(config, normalization_place="branch"), ())
    # DistilBERT has no pooler.
    with pytest.raises(UserError, match="no published family"):
        published_form(dataclasses.replace(config, segment_types=0, normalization_epsilon=1e-12), ("pooler",))
