"""Files damaged in many random ways, with fixed seeds: each loader gives one clear line or something well-formed."""

import json
import random

import numpy as np
import pytest

from lm.data.config import DataConfig, TokenizerConfig
from lm.data.rows import read_rows
from lm.data.sources import Source
from lm.data.store import TokenStore, build_corpus
from lm.data.tokenizers import Tokenizer, train_tokenizer
from lm.data.word_vectors import first_words, read_word_vectors
from lm.errors import UserError

TEXTS = {"text": "text", "label": "label"}
TAGGING = {"words": "words", "tags": "tags"}
QUESTIONS = {name: name for name in ("id", "context", "question", "answers")}
ROWS = [{"text": f'naïve "text" {i}, and; so on', "label": f"l{i % 3}"} for i in range(12)]
QUESTION = {"id": "1", "question": "?", "answers": [{"text": "Köln", "answer_start": 0}], "is_impossible": False}
SQUAD = {"data": [{"paragraphs": [{"context": "Köln lies there.", "qas": [QUESTION]}]}]}
CONTENTS = {
    "jsonl:a.jsonl": ("".join(json.dumps(row) + "\n" for row in ROWS), TEXTS),
    "jsonl:a.json": (json.dumps(ROWS, indent=1), TEXTS),
    "csv:a.csv": ("text,label\r\n" + "".join(f'"a ""quoted"", text {i}",l{i % 3}\r\n' for i in range(12)), TEXTS),
    "csv:a.tsv": ("text\tlabel\n" + "".join(f'"a ""quoted"" text {i}"\tl{i % 3}\n' for i in range(12)), TEXTS),
    "conll:a.conll": ("# id = 1\nEU\tNN\tB-ORG\nrejects\tVB\tO\n\n-DOCSTART-\t-\tO\n\nOslo\tNN\tB-LOC\n", TAGGING),
    "squad:a.squad": (json.dumps(SQUAD), QUESTIONS),
}
TROUBLE = [b"\0", b'"', b"\r", b"\n", b"\t", b"\xef\xbb\xbf", b"\\ud800", b"NaN", b"9" * 5000]
VECTORS = "4 3\nthe 0.5 -1 2e-1\ncat 1 2 3\nnaïve 4 5 6\n. 7 8 9\n"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def damaged(content, seed):
    """The bytes with some changed, removed, repeated, or put in; now and then cut or in another encoding."""
    chance, data = random.Random(seed), bytearray(content)
    for _ in range(chance.randint(1, 3)):
        place = chance.randrange(len(data) + 1)
        size = chance.choice([1, 1, 2, 7, 40])
        action = chance.randrange(5)
        if action == 0:
            data[place : place + size] = bytes(chance.randrange(256) for _ in range(size))
        elif action == 1:
            del data[place : place + size]
        elif action == 2:
            data[place:place] = data[place : place + size] * 2
        elif action == 3:
            data[place:place] = chance.choice(
                [b"\0", b'"', b"\r", b"\n", b"\t", b"\xef\xbb\xbf", b"\\ud800", b"NaN", b"9" * 5000]
            )
        elif chance.random() < 0.3:
            del data[place:]
    return bytes(data) or b"\0"


def survives(load):
    """The result, or None where the damage is reported in one line."""
    try:
        return load()
    except UserError as error:
        message = str(error)
    assert message.strip()
    assert "\n" not in message
    return None


@pytest.mark.parametrize("source", CONTENTS)
def test_rows(source, folder):
    content, columns = CONTENTS[source]
    file = folder / source.partition(":")[2]
    for seed in range(250):
        file.write_bytes(damaged(content.encode(), seed))
        for row in survives(lambda: read_rows(source, columns, "config.data.train")) or ():
            assert row.keys() == {*columns, "place"}
            for name in row.keys() & {"text", "label", "id", "context", "question"}:
                assert row[name].strip()
                row[name].encode()
            assert len(row.get("words", ())) == len(row.get("tags", ()))


@pytest.mark.parametrize("scheme", ["text", "jsonl"])
def test_documents(scheme, folder):
    content = CONTENTS["jsonl:a.jsonl"][0].encode()
    config = DataConfig(f"{scheme}:a", validation_fraction=0.0)
    for seed in range(250):
        (folder / "a").write_bytes(damaged(content, seed))
        for text in survives(lambda: list(Source(config).documents("train"))) or ():
            assert text.encode()
            assert not text.startswith("\ufeff")


def test_parquet_rows(folder):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "a.parquet")
    content = (folder / "a.parquet").read_bytes()
    for seed in range(100):
        (folder / "a.parquet").write_bytes(damaged(content, seed))
        for row in survives(lambda: read_rows("parquet:a.parquet", TEXTS, "config.data.train")) or ():
            row["text"].encode()


def test_word_vectors(folder):
    file = folder / "vectors.txt"
    for seed in range(400):
        file.write_bytes(damaged(VECTORS.encode(), seed))
        found = survives(lambda: read_word_vectors(file, ["the", "cat", "naïve"])) or {}
        assert all(np.isfinite(vector).all() for vector in found.values())
        assert len({vector.shape for vector in found.values()}) <= 1
        survives(lambda: first_words(file, 9))


@pytest.mark.parametrize("kind", ["bytes", "characters", "bpe", "wordpiece", "unigram", "words"])
def test_tokenizers(kind, folder):
    texts = [f"don't stop the naïve word{i}" for i in range(40)]
    train_tokenizer(TokenizerConfig(kind, vocab_size=280), texts).save("whole.json")
    content = (folder / "whole.json").read_bytes()

    def use(path):
        tokenizer = Tokenizer.load(path)
        ids = tokenizer.encode("don't stop the naïve word")
        assert all(0 <= i < tokenizer.vocab_size for i in ids)
        tokenizer.encode_words(["stop", "naïve"])
        tokenizer.decode(ids)
        return tokenizer.with_special_tokens(["[CLS]"])

    assert use("whole.json")
    for seed in range(60):
        (folder / "tokenizer.json").write_bytes(damaged(content, seed))
        survives(lambda: use("tokenizer.json"))
        (folder / "tokenizer.json").write_text(json.dumps(with_other_value(json.loads(content), random.Random(seed))))
        survives(lambda: use("tokenizer.json"))


def with_other_value(state, chance):
    """A JSON object with one value, at a random depth, missing or of another kind."""
    junk = [None, -1, 2**31, 2**64, 1.5, "", "x", [], {}, True, [[]], "\ud800"]
    inner, key = state, chance.choice(list(state))
    while inner[key] and isinstance(inner[key], dict | list) and chance.random() < 0.6:
        inner = inner[key]
        key = chance.choice(list(inner)) if isinstance(inner, dict) else chance.randrange(len(inner))
    if chance.random() < 0.3:
        del inner[key]
    else:
        inner[key] = chance.choice(junk)
    return state


def test_token_stores(folder):
    (folder / "a.jsonl").write_text(CONTENTS["jsonl:a.jsonl"][0])
    data = DataConfig("jsonl:a.jsonl", validation_fraction=0.3, cache_dir=str(folder / "cache"))
    store = build_corpus(data, TokenizerConfig("bytes")).train
    tokens = np.array(store.tokens)
    split = next((folder / "cache").glob("*/train"))
    for file in sorted(split.iterdir()):
        content = file.read_bytes()
        for seed in range(60):
            file.write_bytes(damaged(content, seed))
            found = survives(lambda: TokenStore.open(split))
            if found is not None:
                assert file.name == "checksums.json" or file.read_bytes() == content
                np.testing.assert_array_equal(found.tokens, tokens)
        file.write_bytes(content)
