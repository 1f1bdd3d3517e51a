"""Tokenizers of Hugging Face directories: the ids of transformers, for every kind of vocabulary file."""

import json

import pytest
from tokenizers import Tokenizer as Backend

from lm.data.chat import Chat
from lm.data.config import TokenizerConfig
from lm.data.frames import Frame
from lm.data.published_tokenizers import export_tokenizer, read_tokenizer
from lm.data.tokenizers import train_tokenizer
from lm.errors import UserError
from tests.data.published_files import (
    ODD,
    TEXTS,
    make_bert,
    make_gpt2,
    make_llama,
    make_qwen2,
    make_roberta,
    make_t5,
    make_xlm_roberta,
    minilm,
    sentences,
)

MAKERS = [make_gpt2, make_qwen2, make_roberta, make_bert, make_t5, make_xlm_roberta, make_llama]


@pytest.mark.parametrize("make", MAKERS)
def test_vocabulary_files_give_the_ids_of_transformers(make, tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = make(tmp_path)
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), read_tokenizer(folder)
    texts = ODD + sentences(100)
    expected = theirs(texts, add_special_tokens=False)["input_ids"]
    assert ours.encode_batch(texts) == expected
    assert ours.with_frame(ours.encode(texts[0])) == theirs(texts[0])["input_ids"]
    assert (ours.role_id("eos"), ours.role_id("pad")) == (theirs.eos_token_id, theirs.pad_token_id)


@pytest.mark.parametrize("make", [make_t5, make_llama])
def test_sentencepiece_files_give_the_ids_of_sentencepiece(make, tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = make(tmp_path)
    model = next(folder.glob("*.model"))
    theirs, ours = sentencepiece.SentencePieceProcessor(model_file=str(model)), read_tokenizer(folder)
    # Transformers, which we follow, adds no space before a text that begins with one.
    texts = [text for text in ODD + sentences(100) if "▁" not in text and text[0] != " "]
    assert [ours.encode(text) for text in texts] == [theirs.encode(text) for text in texts]
    assert ours.decode(ours.encode("the film is good")) == "the film is good"


def test_minilm_gives_the_ids_of_transformers():
    transformers = pytest.importorskip("transformers")
    theirs, ours = transformers.AutoTokenizer.from_pretrained(minilm()), read_tokenizer(minilm())
    texts = ODD + sentences()
    expected = theirs(texts, truncation=False, padding=False)["input_ids"]
    assert [ours.with_frame(ids) for ids in ours.encode_batch(texts)] == expected
    assert ours.frame == Frame((101,), (102,), (102,))
    assert ours.special_id("[MASK]") == theirs.mask_token_id


def test_special_ids_of_the_model_s_own_files(tmp_path):
    make_qwen2(tmp_path)
    size = read_tokenizer(tmp_path).vocab_size
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [size - 1, size - 3]}))
    (tmp_path / "config.json").write_text(json.dumps({"decoder_start_token_id": size - 2, "bos_token_id": -1}))
    (tmp_path / "chat_template.jinja").write_text("<|im_start|>{{ messages[0].content }}")
    tokenizer = read_tokenizer(tmp_path)
    assert tokenizer.ends == (size - 1, size - 3)
    assert tokenizer.start_of_output == size - 2
    assert Chat.of(tokenizer).render([{"role": "user", "content": "<|im_end|>"}])[0] == size - 2


@pytest.mark.parametrize("make", [make_qwen2, make_roberta, make_llama])
def test_what_is_exported_is_the_same_in_transformers(make, tmp_path):
    transformers = pytest.importorskip("transformers")
    (tmp_path / "source").mkdir()
    (tmp_path / "copy").mkdir()
    tokenizer = read_tokenizer(make(tmp_path / "source"))
    export_tokenizer(tokenizer, tmp_path / "copy")
    again, theirs = read_tokenizer(tmp_path / "copy"), transformers.AutoTokenizer.from_pretrained(tmp_path / "copy")
    assert (again.published, again.frame) == (tokenizer.published, tokenizer.frame)
    assert [again.with_frame(ids) for ids in again.encode_batch(ODD)] == theirs(ODD)["input_ids"]
    assert theirs(ODD[0], ODD[1])["input_ids"][-1] == (tokenizer.frame.after or (tokenizer.encode(ODD[1])[-1],))[-1]
    assert theirs.eos_token_id == tokenizer.role_id("eos")


def test_padding_and_truncation_of_a_file_are_no_frame(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "copy").mkdir()
    make_bert(tmp_path / "source")
    export_tokenizer(read_tokenizer(tmp_path / "source"), tmp_path / "source")
    backend = Backend.from_file(str(tmp_path / "source" / "tokenizer.json"))
    backend.enable_padding(length=128)
    backend.enable_truncation(2)
    backend.save(str(tmp_path / "source" / "tokenizer.json"))
    tokenizer = read_tokenizer(tmp_path / "source")
    export_tokenizer(tokenizer, tmp_path / "copy")
    again = read_tokenizer(tmp_path / "copy")
    assert tokenizer.frame is not None
    assert tokenizer.frame.before
    assert (again.frame, again.digest) == (tokenizer.frame, tokenizer.digest)


def test_chats_have_the_ids_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    (tmp_path / "copy").mkdir()
    make_qwen2(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(
        "{%- for message in messages %}\n"
        "    {{- '<|im_start|>' + message.role + '\\n' }}{{ message.content | trim }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = read_tokenizer(tmp_path)
    export_tokenizer(tokenizer, tmp_path / "copy")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "copy")
    conversations = [[{"role": "user", "content": text}, {"role": "assistant", "content": "ok"}] for text in ODD]
    expected = [theirs.apply_chat_template(each, add_generation_prompt=True)["input_ids"] for each in conversations]
    assert Chat.of(tokenizer).render_batch(conversations) == expected


def test_one_of_our_own_is_exported_with_its_frame(tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = train_tokenizer(TokenizerConfig("bpe", vocab_size=400), TEXTS)
    export_tokenizer(tokenizer, tmp_path, Frame((tokenizer.end_of_text,)))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(ODD)["input_ids"] == [tokenizer.with_start(ids) for ids in tokenizer.encode_batch(ODD)]
    assert theirs.eos_token_id == tokenizer.end_of_text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.json", "{", "vocab.json is not JSON"),
        ("vocab.json", '{"a": 0, "b": 0}', "vocab.json must give each token its own id"),
        ("vocab.json", '{"a": "0"}', "vocab.json must be a JSON object from tokens to ids"),
        ("merges.txt", "#version: 0.2\na b c\n", "merges.txt must have two tokens"),
        ("merges.txt", "xx yy\n", "is damaged"),
        ("tokenizer.json", '{"model": {"type": "BPE", ', "is not a tokenizer.json"),
        ("tokenizer_config.json", '{"tokenizer_class": "FancyTokenizer"}', "FancyTokenizer.* is not among those"),
        (
            "tokenizer_config.json",
            '{"tokenizer_class": "GPT2Tokenizer", "eos_token": "no"}',
            "source: eos_token .* 'no'",
        ),
        ("generation_config.json", '{"eos_token_id": 99999}', "eos_token_id=99999 is not an id of the tokenizer"),
        ("generation_config.json", '{"eos_token_id": "2"}', "eos_token_id must be a token id"),
        ("config.json", '["x"]', "config.json must be a JSON object"),
        ("special_tokens_map.json", '{"bos_token": 3}', "bos_token must be a token"),
    ],
)
def test_damage_is_one_line(name, content, message, tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    make_gpt2(folder)
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        read_tokenizer(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_a_damaged_sentencepiece_model_is_named(tmp_path):
    make_t5(tmp_path)
    path = tmp_path / "spiece.model"
    content = path.read_bytes()
    for damaged in (content[:-7], b"\xff" * 40, b"", b"\x0a\xff\xff\xff\xff\x7f"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"spiece\.model"):
            read_tokenizer(tmp_path)


def test_a_directory_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(UserError, match=r"has no tokenizer: none of tokenizer\.json, vocab\.txt"):
        read_tokenizer(tmp_path)
