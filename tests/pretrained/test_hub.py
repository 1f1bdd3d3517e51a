"""A model's files: those here are taken, others are downloaded where that is possible, and nothing that runs code."""

import fnmatch
import sys
import types

import pytest

from lm.errors import UserError
from lm.pretrained.hub import resolve, with_kind


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A stand-in for huggingface_hub that records what it is asked for."""
    asked = []

    def snapshot_download(name, revision, allow_patterns):
        asked.append((name, revision, allow_patterns))
        return str(tmp_path)

    module = types.ModuleType("huggingface_hub")
    module.snapshot_download = snapshot_download
    module.asked = asked
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return module


def test_what_is_here_is_not_downloaded(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    directory, file = tmp_path / "owner" / "name", tmp_path / "owner" / "name" / "a.gguf"
    directory.mkdir(parents=True)
    file.write_bytes(b"")
    for source, expected in (
        ("hf:owner/name", directory),
        (f"hf:{directory}", directory),
        ("gguf:owner/name/a.gguf", file),
        (with_kind("owner/name"), directory),
        (with_kind(str(file)), file),
    ):
        assert resolve(source).absolute() == expected
    assert not hub.asked


@pytest.mark.parametrize(
    ("source", "name", "revision"),
    [
        ("hf:Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B", None),
        ("hf:gpt2", "gpt2", None),
        ("hf:owner/name@refs/pr/1", "owner/name", "refs/pr/1"),
    ],
)
def test_a_name_is_downloaded(source, name, revision, hub, tmp_path):
    assert resolve(source) == tmp_path
    assert hub.asked[0][:2] == (name, revision)


def test_one_file_is_downloaded(hub, tmp_path):
    source = "gguf:owner/name-GGUF/model.Q8_0.gguf"
    with pytest.raises(UserError, match=r"owner/name-GGUF has no model\.Q8_0\.gguf"):
        resolve(source)
    (tmp_path / "model.Q8_0.gguf").write_bytes(b"")
    assert resolve(source) == tmp_path / "model.Q8_0.gguf"
    assert hub.asked[-1] == ("owner/name-GGUF", None, ["model.Q8_0.gguf"])


def test_only_weights_and_settings_are_downloaded(hub):
    resolve("hf:owner/name")
    patterns = hub.asked[0][2]

    def wanted(name):
        return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)

    for name in ("config.json", "model.safetensors", "model-00001-of-00002.safetensors", "1_Pooling/config.json"):
        assert wanted(name)
    for name in ("pytorch_model.bin", "modeling.py", "tf_model.h5", "onnx/model.onnx", "consolidated.safetensors"):
        assert not wanted(name)


@pytest.mark.parametrize("source", ["hf:/missing", "hf:../up", "hf:a/b/c", "hf:a b", "hf:", "hf:a/b@", "gguf:a.gguf"])
def test_a_path_that_does_not_exist_is_not_asked_for(source, hub):
    with pytest.raises(UserError, match=r"there is no (directory|file)"):
        resolve(source)
    assert not hub.asked


def test_a_path_without_hf_is_not_asked_for(hub):
    with pytest.raises(UserError, match="for the Hugging Face Hub, write hf:owner/name"):
        with_kind("owner/name")
    assert not hub.asked


@pytest.mark.parametrize("error", [OSError("no route\nto host"), ValueError("bad name"), RuntimeError()])
def test_without_a_network_one_line_says_what_to_do(error, hub):
    def fails(*args, **kwargs):
        raise error

    hub.snapshot_download = fails
    with pytest.raises(UserError, match="hf download owner/name --local-dir DIR") as caught:
        resolve("hf:owner/name")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"hf download owner/name a\.gguf --local-dir DIR and give gguf:DIR/a\.gguf"):
        resolve("gguf:owner/name/a.gguf")


def test_a_file_that_is_taken_for_a_directory_is_named(tmp_path, hub):
    (tmp_path / "a.gguf").write_bytes(b"")
    with pytest.raises(UserError, match=r"for the file write gguf:.*a\.gguf"):
        resolve(f"hf:{tmp_path / 'a.gguf'}")


def test_without_the_package_one_line_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'calibrated-lm\[pretrained\]', or run hf download owner/name"):
        resolve("hf:owner/name")
