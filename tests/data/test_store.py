"""The token store: its layout, its cache, and what an interrupted build leaves."""

import contextlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models

from lm.data import cache as cache_module
from lm.data import store as store_module
from lm.data.config import DataConfig, TokenizerConfig
from lm.data.store import TokenStore, build_corpus
from lm.data.tokenizers import Tokenizer, train_tokenizer
from lm.errors import UserError

BYTES = TokenizerConfig("bytes")
TEXTS = [f"document {i}: naïve\n" for i in range(60)]


@pytest.fixture
def data(tmp_path):
    lines = "".join(json.dumps({"text": text, "title": text}) + "\n" for text in TEXTS)
    (tmp_path / "a.jsonl").write_text(lines)
    for i in range(9):
        (tmp_path / f"{i}.txt").write_text(TEXTS[i])
    return {
        "source": f"jsonl:{tmp_path}/a.jsonl",
        "validation_fraction": 0.3,
        "cache_dir": str(tmp_path / "cache"),
    }


@pytest.fixture
def forbid_building(monkeypatch):
    def forbid():
        def fail(*_):
            raise AssertionError("built again")

        monkeypatch.setattr(store_module, "_write_splits", fail)
        monkeypatch.setattr(store_module, "_check_splits", fail)

    return forbid


def test_end_of_text_opens_every_document_and_closes_the_last(data):
    corpus = build_corpus(DataConfig(**data), BYTES)
    end = corpus.tokenizer.end_of_text
    texts = []
    for store in (corpus.train, corpus.validation):
        assert store.end_of_text == end
        assert store.has_end_of_text
        positions = np.flatnonzero(np.asarray(store.tokens) == end)
        np.testing.assert_array_equal(positions[:-1], store.document_starts)
        assert positions[-1] == store.num_tokens - 1
        documents = np.split(store.tokens, store.document_starts[1:])
        decoded = [corpus.tokenizer.decode(document) for document in documents]
        assert store.num_documents == len(decoded)
        assert store.num_bytes == sum(len(text.encode()) for text in decoded)
        assert store.num_tokens == store.num_bytes + store.num_documents + 1
        texts += decoded
    assert sorted(texts) == sorted(TEXTS)


def test_without_end_of_text_documents_follow_one_another(data):
    corpus = build_corpus(DataConfig(**data), TokenizerConfig("bytes", end_of_text=False))
    assert corpus.train.end_of_text is None
    assert corpus.train.num_tokens == corpus.train.num_bytes
    starts = [*corpus.train.document_starts, corpus.train.num_tokens]
    for start, stop in itertools.pairwise(starts):
        assert corpus.tokenizer.decode(corpus.train.tokens[start:stop]) in TEXTS


def test_types(data):
    train = build_corpus(DataConfig(**data), BYTES).train
    assert isinstance(train.tokens, np.memmap)
    assert train.tokens.dtype == np.uint16
    assert train.document_starts.dtype == np.int64
    with pytest.raises(ValueError, match="read-only"):
        train.tokens[0] = 1


def test_a_large_vocabulary_takes_four_bytes(data, tmp_path):
    model = models.WordLevel({str(i): i for i in range(70_000)}, unk_token="69999")
    Backend(model).save(str(tmp_path / "words.json"))
    corpus = build_corpus(DataConfig(**data), TokenizerConfig("file", path=str(tmp_path / "words.json")))
    assert corpus.tokenizer.vocab_size == 70_000
    assert corpus.train.tokens.dtype == np.uint32
    assert set(np.unique(corpus.train.tokens)) == {69_999}


def test_batches_of_documents_do_not_show(data, monkeypatch):
    one = build_corpus(DataConfig(**data), BYTES)
    monkeypatch.setattr(store_module, "_BATCH_CHARACTERS", 30)
    two = build_corpus(DataConfig(**data | {"cache_dir": data["cache_dir"] + "2"}), BYTES)
    np.testing.assert_array_equal(one.train.tokens, two.train.tokens)
    np.testing.assert_array_equal(one.train.document_starts, two.train.document_starts)


@pytest.mark.parametrize("kind", ["bytes", "bpe", "unigram"])
def test_a_cache_hit_builds_nothing(data, forbid_building, kind):
    config = TokenizerConfig(kind, vocab_size=300)
    first = build_corpus(DataConfig(**data), config)
    forbid_building()
    second = build_corpus(DataConfig(**data), config)
    assert second.tokenizer.digest == first.tokenizer.digest
    np.testing.assert_array_equal(first.train.tokens, second.train.tokens)


@pytest.mark.parametrize(
    "change",
    [{"validation_fraction": 0.4}, {"cleaning": ("lowercase",)}, {"field": "title"}, {"source": "text:{}/*.txt"}],
)
def test_what_changes_the_content_misses_the_cache(data, forbid_building, change, tmp_path):
    config = TokenizerConfig("file", path=_bytes_file(data))  # the same whatever the text
    build_corpus(DataConfig(**data), config)
    forbid_building()
    change = {name: value.format(tmp_path) if name == "source" else value for name, value in change.items()}
    with pytest.raises(AssertionError, match="built again"):
        build_corpus(DataConfig(**data | change), config)


def test_a_tokenizer_file_is_used_instead_of_training(data, tmp_path):
    saved = tmp_path / "work" / "tokenizer.json"
    saved.parent.mkdir()
    first = build_corpus(DataConfig(**data), TokenizerConfig(vocab_size=300))
    first.tokenizer.save(saved)
    again = build_corpus(DataConfig(**data), TokenizerConfig(vocab_size=290), kept=Tokenizer.load(saved))
    assert again.tokenizer.digest == first.tokenizer.digest
    assert again.train.tokens.filename == first.train.tokens.filename


def test_an_interrupted_build_leaves_nothing(data, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", interrupt)
        with pytest.raises(KeyboardInterrupt):
            build_corpus(DataConfig(**data), TokenizerConfig("file", path=_bytes_file(data)))
    assert os.listdir(data["cache_dir"]) == []
    assert build_corpus(DataConfig(**data), BYTES).train.num_documents


def _bytes_file(data):
    path = f"{data['cache_dir']}.json"
    train_tokenizer(BYTES, lambda split: ()).save(path)
    return path


def test_the_first_of_two_builds_at_once_wins(data, monkeypatch):
    write = store_module._write_splits

    def write_after_another(*arguments):
        monkeypatch.setattr(store_module, "_write_splits", write)
        build_corpus(DataConfig(**data), BYTES)
        write(*arguments)

    monkeypatch.setattr(cache_module, "_only_builder", lambda _: contextlib.nullcontext())  # locks that are not shared
    monkeypatch.setattr(store_module, "_write_splits", write_after_another)
    assert build_corpus(DataConfig(**data), BYTES).train.num_documents
    assert len(os.listdir(data["cache_dir"])) == 2  # the tokenizer and the tokens


def test_duplicates_of_training_leave_validation(tmp_path):
    (tmp_path / "train.txt").write_text("a\n\nb\n\na")
    (tmp_path / "validation.txt").write_text("B\n\nc")
    data = DataConfig(
        source=f"text:{tmp_path}/train.txt",
        validation_source=f"text:{tmp_path}/validation.txt",
        document_separator="blank_line",
        cleaning=("whitespace", "lowercase", "exact_duplicates"),
        cache_dir=str(tmp_path / "cache"),
    )
    corpus = build_corpus(data, BYTES)
    assert corpus.tokenizer.decode(corpus.validation.tokens) == "c"


def test_unwritable_cache_is_named(data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"config.data.cache_dir: cannot write to .*/file/cache .*LM_CACHE_DIR"):
        build_corpus(DataConfig(**data | {"cache_dir": f"{tmp_path}/file/cache"}), BYTES)


def test_cache_folder_comes_from_the_environment(data, tmp_path, monkeypatch):
    monkeypatch.setenv("LM_CACHE_DIR", str(tmp_path / "elsewhere"))
    build_corpus(DataConfig(**data | {"cache_dir": None}), BYTES)
    assert (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("file", ["store.json", "tokens.bin", "documents.npy", "checksums.json"])
@pytest.mark.parametrize("damage", ["cut", "bit", "missing", "longer"])
def test_a_damaged_store_is_named(data, file, damage):
    folder = Path(build_corpus(DataConfig(**data), BYTES).train.tokens.filename).parent
    spoil(folder / file, damage)
    with pytest.raises(UserError, match=f"the token store {folder} is damaged .*delete it and run again"):
        TokenStore.open(folder)
    with pytest.raises(UserError, match=f"the token store {folder} is damaged"):
        build_corpus(DataConfig(**data), BYTES)


@pytest.mark.parametrize("damage", ["bit", "missing"])
def test_a_damaged_tokenizer_of_the_cache_is_named(data, damage):
    build_corpus(DataConfig(**data), BYTES)
    (file,) = Path(data["cache_dir"]).glob("*/tokenizer.json")
    spoil(file, damage)
    with pytest.raises(UserError, match=f"the cached tokenizer {file.parent} is damaged"):
        build_corpus(DataConfig(**data), BYTES)


def spoil(file, damage):
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(content[:-2])
    elif damage == "longer":
        file.write_bytes(content + b"7")
    else:
        middle = len(content) // 2
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])


def test_a_killed_build_is_removed_at_the_next_start_and_a_living_one_is_not(data, tmp_path):
    cache = Path(data["cache_dir"])
    cache.mkdir()
    program = """if True:
        import pathlib, sys, time
        from lm.data.cache import cached

        def write(folder):
            (folder / "tokens.bin").write_text("half")
            print(flush=True)
            time.sleep(600)

        cached(pathlib.Path(sys.argv[1]), write)
    """
    processes = [
        subprocess.Popen([sys.executable, "-c", program, str(cache / (letter * 32))], stdout=subprocess.PIPE)
        for letter in "ab"
    ]
    try:
        for process in processes:
            process.stdout.readline()
        processes[0].kill()
        processes[0].wait()
        assert len(list(cache.iterdir())) == 4  # a folder and a lock each
        build_corpus(DataConfig(**data), BYTES)
        assert [path.name[:33] for path in cache.glob(".*")] == 2 * ["." + "b" * 32]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    other = cache / ".not-ours"
    other.mkdir()
    build_corpus(DataConfig(**data), BYTES)
    assert list(cache.glob(".*")) == [other]


def test_an_empty_split_is_an_error_before_anything_is_trained(data, monkeypatch):
    monkeypatch.delattr(store_module, "train_tokenizer")
    with pytest.raises(UserError, match="the validation split is empty"):
        build_corpus(DataConfig(**data | {"validation_fraction": 0.0}), TokenizerConfig("bpe"))
    assert os.listdir(data["cache_dir"]) == []


def test_cleaning_that_empties_a_split_is_an_error(tmp_path):
    (tmp_path / "train.txt").write_text("a")
    (tmp_path / "validation.txt").write_text("\x00")
    sources = {"source": f"text:{tmp_path}/train.txt", "validation_source": f"text:{tmp_path}/validation.txt"}
    data = DataConfig(**sources, cleaning=("control_characters",), cache_dir=str(tmp_path / "cache"))
    with pytest.raises(UserError, match="the validation split is empty"):
        build_corpus(data, BYTES)


@pytest.mark.skipif("TFDS_DATA_DIR" not in os.environ, reason="TFDS_DATA_DIR is not set")
def test_tiny_shakespeare(tmp_path):
    data = DataConfig("tfds:tiny_shakespeare", cache_dir=str(tmp_path))
    corpus = build_corpus(data, TokenizerConfig("characters", end_of_text=False))
    assert corpus.tokenizer.vocab_size == 65
    assert corpus.train.num_tokens == 1_003_854
    assert corpus.validation.num_tokens == 55_770
    assert corpus.tokenizer.decode(corpus.train.tokens[:14]) == "First Citizen:"
