"""Shards on Google Cloud Storage are read in place, by ranges: proven against a server on this machine."""

import dataclasses
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import numpy as np
import pytest

from experiments.tokenize_corpus import tokenize_corpus
from lm.data.config import DataConfig, TokenizerConfig
from lm.data.corpora import open_corpus
from lm.data.sharding import ShardsConfig
from lm.data.windows import TrainBatches
from tests.tiny import write_corpus


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """Serves the files of a folder as a bucket does; returns the folder and the ranges that were asked for."""
    folder, ranges = tmp_path / "bucket", []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            content = (folder / unquote(self.path.partition("?")[0]).rpartition("/")[2]).read_bytes()
            found = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "bytes=0-"))
            if found[1]:
                start, stop = int(found[1]), int(found[2] or len(content) - 1) + 1
            else:
                start, stop = max(0, len(content) - int(found[2])), len(content)
            part = content[start:stop]
            ranges.append(len(part))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            self.wfile.write(part)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    yield folder, ranges
    server.shutdown()
    server.server_close()


def test_batches_from_a_bucket_are_those_of_the_folder(bucket, tmp_path):
    folder, ranges = bucket
    data = DataConfig(source=write_corpus(tmp_path / "texts", 40), validation_fraction=0.2)
    config = ShardsConfig(data=data, tokenizer=TokenizerConfig(kind="bytes"), window=32, shards=2)
    tokenize_corpus(config, str(folder))
    local = open_corpus(DataConfig(source=f"shards:{folder}", cache_dir=str(tmp_path)), config.tokenizer).train
    remote = dataclasses.replace(local, folder="gs://bucket/text")
    ours, theirs = TrainBatches(local, 32, 8, seed=0), TrainBatches(remote, 32, 8, seed=0)
    for step in range(3):
        for name, values in ours[step].items():
            np.testing.assert_array_equal(values, theirs[step][name])
    assert ranges
