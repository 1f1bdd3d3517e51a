"""Shards: the same batches as a stream, whoever makes them and reads them, and noticed damage."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import fsspec
import numpy as np
import pytest

from experiments.tokenize_corpus import parse_part, tokenize_corpus
from lm.data.config import DataConfig, TokenizerConfig
from lm.data.corpora import open_corpus
from lm.data.sharding import Job, ShardsConfig
from lm.data.shards import ShardedText
from lm.data.store import build_corpus
from lm.data.windows import TrainBatches, window
from lm.errors import UserError
from lm.files import with_digest

WINDOW = 32


def write_texts(folder, files=4, documents=60, seed=0):
    """JSON Lines of documents of different lengths."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        texts = (" ".join(map(str, random.integers(1000, size=size))) for size in random.integers(1, 40, documents))
        lines = [json.dumps({"text": text}) + "\n" for text in texts]
        (folder / f"{number}.jsonl").write_text("".join(lines))
    return f"jsonl:{folder}/*.jsonl"


def config_of(source, **changes):
    tokenizer = TokenizerConfig(kind="bytes", end_of_text=changes.pop("end_of_text", True))
    data = DataConfig(source=source, validation_fraction=0.1)
    return ShardsConfig(**{"data": data, "tokenizer": tokenizer, "window": WINDOW} | changes)


def data_of(folder, cache):
    return DataConfig(source=f"shards:{folder}", cache_dir=str(cache))


def opened(folder, cache, kept=None):
    return open_corpus(data_of(folder, cache), TokenizerConfig(kind="bytes"), kept)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_equal(one, two):
    assert one.keys() == two.keys()
    for name in one:
        assert one[name].dtype == two[name].dtype
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """A folder of four shards."""
    root = tmp_path_factory.mktemp("shards")
    source = write_texts(root / "texts")
    tokenize_corpus(config_of(source), str(root / "out"))
    return root


@pytest.mark.parametrize("end_of_text", [True, False])
@pytest.mark.parametrize("parts", [1, 4])
def test_windows_are_those_of_a_stream(tmp_path, end_of_text, parts):
    source = write_texts(tmp_path / "texts", files=1)
    config = config_of(source, end_of_text=end_of_text)
    tokenize_corpus(config, str(tmp_path / "out"))
    data = DataConfig(source=source, validation_fraction=0.1, cache_dir=str(tmp_path / "cache"))
    stream = build_corpus(data, config.tokenizer)
    found = opened(tmp_path / "out", tmp_path / "cache")
    length = WINDOW // parts
    count = found.train.num_windows * parts
    rows = TrainBatches(found.train, length, count, seed=0)[0]
    expected = {}
    for number in range(count):
        row = window(stream.train, number * length, length)
        expected[row["tokens"].tobytes(), row["segments"].tobytes()] = row
    assert count == (stream.train.num_tokens - 1) // WINDOW * parts
    for number in range(count):
        row = {name: values[number] for name, values in rows.items()}
        assert_equal(row, expected[row["tokens"].tobytes(), row["segments"].tobytes()])
    np.testing.assert_array_equal(found.validation.tokens, stream.validation.tokens)
    np.testing.assert_array_equal(found.validation.document_starts, stream.validation.document_starts)
    assert found.validation.num_bytes == stream.validation.num_bytes
    assert found.train.num_bytes == stream.train.num_bytes
    np.testing.assert_array_equal(found.train.beginning, stream.train.tokens[: len(found.train.beginning)])
    assert len(found.train.beginning) >= stream.train.num_tokens - 1
    assert found.train.num_documents == stream.train.num_documents


def test_what_all_shards_held_out_is_what_a_stream_holds_out(shards, tmp_path):
    data = DataConfig(source=f"jsonl:{shards}/texts/*.jsonl", validation_fraction=0.1, cache_dir=str(tmp_path))
    expected = build_corpus(data, TokenizerConfig(kind="bytes")).validation
    found = opened(shards / "out", tmp_path).validation
    assert (found.num_bytes, found.end_of_text) == (expected.num_bytes, expected.end_of_text)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.document_starts, expected.document_starts)


def test_an_epoch_has_each_window_once_for_any_number_of_hosts(shards, tmp_path):
    text = opened(shards / "out", tmp_path).train
    size = 12
    whole = TrainBatches(text, WINDOW, size, seed=1)
    steps = -(-2 * text.num_windows // size)
    rows = [row.tobytes() for step in range(steps) for row in whole[step]["tokens"]]
    one, two = rows[: text.num_windows], rows[text.num_windows : 2 * text.num_windows]
    in_order = [row.tobytes() for row in text.windows(np.arange(text.num_windows))[0][:, :-1].astype(np.int32)]
    assert sorted(one) == sorted(two) == sorted(in_order)
    assert one != two
    assert one != in_order
    for hosts in (2, 3):
        parts = [TrainBatches(text, WINDOW, size, 1, host=host, hosts=hosts)[steps - 1] for host in range(hosts)]
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        assert_equal(joined, whole[steps - 1])


def command(source, output, part):
    code = (
        "import sys\nfrom experiments.tokenize_corpus import tokenize_corpus\n"
        "from tests.data.test_shards import config_of\n"
        "source, output, part = sys.argv[1:]\ntokenize_corpus(config_of(source), output, int(part), 2)"
    )
    return [sys.executable, "-c", code, source, str(output), str(part)]


def test_two_processes_make_what_one_makes(shards, tmp_path):
    source = f"jsonl:{shards}/texts/*.jsonl"
    Job.of(config_of(source), str(tmp_path / "out")).with_tokenizer()
    processes = [subprocess.Popen(command(source, tmp_path / "out", part)) for part in range(2)]
    assert [process.wait(120) for process in processes] == [0, 0]
    assert contents(tmp_path / "out") == contents(shards / "out")


def test_a_killed_process_is_resumed(shards, tmp_path):
    source = write_texts(tmp_path / "texts", files=12, documents=400)
    out = tmp_path / "out"
    process = subprocess.Popen(command(source, out, 0))
    until = time.monotonic() + 120
    while len(list(out.glob("*.array_record.json"))) < 2 and time.monotonic() < until and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = {path: os.stat(path).st_mtime_ns for path in out.glob("*.array_record.json")}
    with pytest.raises(UserError, match=r"index\.json is missing"):
        opened(out, tmp_path)
    tokenize_corpus(config_of(source), str(out))
    assert kept.items() <= {path: os.stat(path).st_mtime_ns for path in out.glob("*.array_record.json")}.items()
    tokenize_corpus(config_of(source), str(tmp_path / "again"))
    assert contents(out) == contents(tmp_path / "again")


def copy_of(shards, tmp_path):
    shutil.copytree(shards / "out", tmp_path / "out")
    return tmp_path / "out"


def test_damage_is_noticed_and_made_good(shards, tmp_path):
    out = copy_of(shards, tmp_path)
    shard = out / "train-00001-of-00004.array_record"
    whole = shard.read_bytes()
    damaged = bytearray(whole)
    damaged[100:-100] = bytes(255 - value for value in damaged[100:-100])
    shard.write_bytes(damaged)
    text = opened(out, tmp_path / "cache").train
    with pytest.raises(UserError, match=r"run experiments\.tokenize_corpus again"):
        text.windows(np.arange(text.num_windows))
    tokenize_corpus(config_of(f"jsonl:{shards}/texts/*.jsonl"), str(out))
    assert contents(out) == contents(shards / "out")
    shard.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=r"train-00001.*another size"):
        opened(out, tmp_path / "cache")
    shard.unlink()
    with pytest.raises(UserError, match=r"train-00001.*is missing"):
        opened(out, tmp_path / "cache")
    tokenize_corpus(config_of(f"jsonl:{shards}/texts/*.jsonl"), str(out))
    assert contents(out) == contents(shards / "out")
    (out / "index.json").write_text((out / "index.json").read_text().replace('"windows": ', '"windows": 1', 1))
    with pytest.raises(UserError, match=r"index\.json is damaged"):
        opened(out, tmp_path / "cache")


def test_other_text_or_settings_are_refused(shards, tmp_path, monkeypatch):
    out = copy_of(shards, tmp_path)
    with pytest.raises(UserError, match="other text or settings: choose another --output"):
        tokenize_corpus(config_of(f"jsonl:{shards}/texts/*.jsonl", window=16), str(out))
    assert contents(out) == contents(shards / "out")
    with pytest.raises(UserError, match=r"config\.shards=5.*4 files"):
        tokenize_corpus(config_of(f"jsonl:{shards}/texts/*.jsonl", shards=5), str(tmp_path / "new"))
    with pytest.raises(UserError, match="part 0 makes"):
        tokenize_corpus(config_of(f"jsonl:{shards}/texts/*.jsonl"), str(tmp_path / "new"), 1, 2)
    assert not (tmp_path / "new").exists()
    with pytest.raises(UserError, match="I/N"):
        parse_part("3/3")
    with pytest.raises(UserError, match="python:stdlib"):
        tokenize_corpus(config_of("python:other"), str(tmp_path / "new"))
    with pytest.raises(UserError, match="validation_fraction must be between"):
        ShardsConfig(data=DataConfig(validation_fraction=0))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"calibrated-lm\[beam\]"):
        tokenize_corpus(config_of(f"jsonl:{shards}/texts/*.jsonl"), str(tmp_path / "new"), beam_options=[])
    assert not (tmp_path / "new").exists()


def test_reading_refuses_what_does_not_fit(shards, tmp_path):
    corpus = opened(shards / "out", tmp_path)
    with pytest.raises(UserError, match=r"sequence_length=24 does not divide"):
        TrainBatches(corpus.train, 24, 2, 0)
    with pytest.raises(UserError, match="random_offsets"):
        TrainBatches(corpus.train, WINDOW, 2, 0, random_offsets=True)
    other = build_corpus(
        DataConfig(source=f"jsonl:{shards}/texts/*.jsonl", cache_dir=str(tmp_path)), TokenizerConfig(kind="characters")
    ).tokenizer
    with pytest.raises(UserError, match="another tokenizer"):
        opened(shards / "out", tmp_path, other)
    with pytest.raises(UserError, match=r"index\.json is missing"):
        opened(shards / "texts", tmp_path)


def test_remote_folders(shards, tmp_path):
    memory = fsspec.filesystem("memory")
    for file in (shards / "texts").iterdir():
        memory.pipe_file(f"/texts/{file.name}", file.read_bytes())
    tokenize_corpus(config_of("jsonl:memory://texts/*.jsonl"), "memory://out")
    local, remote = opened(shards / "out", tmp_path), opened("memory://out", tmp_path)
    assert_equal(
        *(TrainBatches(each.train, WINDOW, 8, 0)[3] for each in (local, remote)),
    )
    np.testing.assert_array_equal(local.validation.tokens, remote.validation.tokens)
    memory.pipe_file("/texts/0.jsonl", b'{"text": 1}\n')
    with pytest.raises(UserError, match=r"memory://.*texts/0\.jsonl:1: the field 'text' is not text"):
        tokenize_corpus(config_of("jsonl:memory://texts/*.jsonl"), "memory://other")
    with pytest.raises(UserError, match="matches no file"):
        tokenize_corpus(config_of("jsonl:memory://nothing/*.jsonl"), "memory://other")
    text = DataConfig(source="jsonl:gs://bucket/*.jsonl", cache_dir=str(tmp_path))
    with pytest.raises(UserError, match="make shards of it"):
        open_corpus(text, TokenizerConfig())


def test_an_index_of_a_trillion_tokens_is_small_and_opens_at_once():
    shard = {
        "windows": 48_829,
        "documents": 100_000,
        "tokens": 10**8,
        "text_bytes": 4 * 10**8,
        "file": {"bytes": 2 * 10**8, "crc32": 1},
    }
    listed = [{"name": f"train-{number:05d}-of-10000.array_record"} | shard for number in range(10_000)]
    index = with_digest({"window": 2048, "dtype": "uint16", "end_of_text": 0, "shards": listed})
    before = time.process_time()
    text = ShardedText.of_index("/nowhere", index, np.zeros(0, np.uint16))
    assert text.num_tokens > 10**12
    rows = text.shuffled(2048, 0, False)
    with pytest.raises(UserError, match="cannot read the shards"):  # they are not there
        rows(np.arange(8))
    assert time.process_time() - before < 10
    assert text.ends.nbytes == 80_000


@pytest.mark.slow
def test_beam_makes_the_same(shards, tmp_path):
    pytest.importorskip("apache_beam")
    source = f"jsonl:{shards}/texts/*.jsonl"
    options = ["--direct_num_workers=2", "--direct_running_mode=multi_processing"]
    tokenize_corpus(config_of(source), str(tmp_path / "out"), beam_options=options)
    assert contents(tmp_path / "out") == contents(shards / "out")
