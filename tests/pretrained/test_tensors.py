"""Safetensors files: what is written is read back, by others too, and what is damaged is refused in one line."""

import json
import os
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from lm.errors import UserError
from lm.pretrained.tensors import INDEX, SINGLE, open_tensors, write_safetensors
from tests.tiny import files_below


def some_arrays() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "embedding": random.standard_normal((8, 6)).astype(np.float32),
        "kernel.transposed": random.standard_normal((4, 6)).astype(np.float32).T,
        "every.second": random.standard_normal((6, 8)).astype(np.float32)[:, ::2],
        "half": random.standard_normal((3, 2, 2)).astype(np.float16),
        "scalar": np.float32(3.5).reshape(()),
        "empty": np.zeros((0, 3), np.float32),
        "positions": np.arange(4)[None],
        "brain": random.standard_normal((5, 3)).astype(ml_dtypes.bfloat16).T,
    }


def read_all(directory: Path) -> dict[str, np.ndarray]:
    tensors = open_tensors(directory)
    return {name: tensors.read(name) for name in tensors.shapes}


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()


@pytest.mark.parametrize("shard_size", [10**9, 300, 1])
def test_what_is_written_is_read_back_bit_for_bit(shard_size, tmp_path):
    arrays = some_arrays()
    write_safetensors(tmp_path, arrays.items(), shard_size)
    assert_same(read_all(tmp_path), arrays)
    assert {name: array.shape for name, array in arrays.items()} == open_tensors(tmp_path).shapes


def test_the_library_reads_what_is_written(tmp_path):
    write_safetensors(tmp_path, some_arrays().items(), 10**9)
    found = {}
    for path in tmp_path.glob("*.safetensors"):
        with safetensors.safe_open(path, framework="numpy") as file:
            assert file.metadata() == {"format": "pt"}
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert_same(found, some_arrays())


def test_torch_reads_what_is_written(tmp_path):
    pytest.importorskip("torch")
    from safetensors.torch import load_file

    write_safetensors(tmp_path, some_arrays().items(), 10**9)
    found = {name: tensor for path in tmp_path.glob("*.safetensors") for name, tensor in load_file(path).items()}
    assert found.keys() == some_arrays().keys()
    for name, array in some_arrays().items():
        np.testing.assert_array_equal(found[name].double().numpy(), array.astype(np.float64))


def test_shards_are_cut_by_size_and_named_as_transformers_does(tmp_path):
    write_safetensors(tmp_path, [(name, np.zeros(100, np.float32)) for name in "abc"], shard_size=800)
    assert files_below(tmp_path) == {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", INDEX}
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == 1200
    assert index["weight_map"] == {name: f"model-0000{1 + (name == 'c')}-of-00002.safetensors" for name in "abc"}


def test_a_full_header_begins_a_new_file(tmp_path):
    arrays = {f"model.layers.{number}.a_rather_long_name.weight": np.full(2, number) for number in range(4000)}
    write_safetensors(tmp_path, arrays.items())
    assert len(files_below(tmp_path)) == 3
    assert_same(read_all(tmp_path), arrays)


def test_tensors_are_written_one_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("lm.pretrained.tensors._CHUNK", 2**20)
    arrays = ((f"transposed.{number}", np.ones((1000, 4000), np.float32).T) for number in range(4))  # 16 MB each
    tracemalloc.start()
    write_safetensors(tmp_path, arrays)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.3 * 16e6


@pytest.mark.parametrize("step", ["os.fsync", "lm.pretrained.tensors.write_json"])
def test_a_full_disk_leaves_nothing(step, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(step, full)
    with pytest.raises(UserError, match=r"cannot write .*: No space left on device"):
        write_safetensors(tmp_path, [("a", np.zeros(3)), ("b", np.zeros(3))], shard_size=24)
    assert not files_below(tmp_path)


def test_a_failed_write_leaves_nothing(tmp_path):
    def arrays():
        yield "a", np.zeros(3)
        yield "b", np.zeros(3)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_safetensors(tmp_path, arrays(), shard_size=24)
    with pytest.raises(ValueError, match="two tensors"):
        write_safetensors(tmp_path, [("a", np.zeros(3)), ("a", np.zeros(3))])
    with pytest.raises(ValueError, match="type complex128"):
        write_safetensors(tmp_path, [("a", np.zeros(3, complex))])
    assert not files_below(tmp_path)


def test_weights_are_not_written_over_others(tmp_path):
    write_safetensors(tmp_path, [("a", np.zeros(3))])
    with pytest.raises(UserError, match=r"already has model\.safetensors: choose a new directory"):
        write_safetensors(tmp_path, [("a", np.ones(3))])
    assert not read_all(tmp_path)["a"].any()


def test_links_to_files_elsewhere_are_followed(tmp_path):
    """As in the cache of huggingface_hub."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    write_safetensors(blobs, some_arrays().items(), shard_size=300)
    for number, path in enumerate(sorted(blobs.iterdir())):
        blob = path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(os.path.relpath(blob, snapshot))
    assert_same(read_all(snapshot), some_arrays())


def safetensors_bytes(header: dict | str, data: bytes = b"") -> bytes:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(shape=(2,), offsets=(0, 8), dtype="F32") -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


DAMAGED = {
    "empty": b"",
    "a header of terabytes": (2**42).to_bytes(8, "little") + b"{}",
    "a header beyond the file": (1000).to_bytes(8, "little") + b"{}",
    "no JSON": safetensors_bytes("{{"),
    "deep JSON": safetensors_bytes("[" * 100_000),
    "tensors beyond the file": safetensors_bytes({"a": entry((2**40,), (0, 2**42))}, bytes(8)),
    "more numbers than 64 bits count": safetensors_bytes({"a": entry((2**40, 2**40), (0, 8))}, bytes(8)),
    "a shape that is not the size": safetensors_bytes({"a": entry((3,))}, bytes(8)),
    "a shape of NaN": safetensors_bytes('{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', bytes(8)),
    "a negative shape": safetensors_bytes({"a": entry((-2,))}, bytes(8)),
    "overlap": safetensors_bytes({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)),
    "a gap": safetensors_bytes({"a": entry(), "b": entry(offsets=(12, 20))}, bytes(20)),
    "truncated": safetensors_bytes({"a": entry()}, bytes(7)),
    "more data than tensors": safetensors_bytes({"a": entry()}, bytes(9)),
    "unknown type": safetensors_bytes({"a": entry(dtype="F33")}, bytes(8)),
    "a type that is not read": safetensors_bytes({"a": entry((16,), dtype="F4")}, bytes(8)),
    "a name twice": safetensors_bytes(f'{{"a":{json.dumps(entry())},"a":{json.dumps(entry())}}}', bytes(8)),
    "more dimensions than NumPy has": safetensors_bytes({"a": entry([1] * 70 + [2])}, bytes(8)),
    "no bytes, too many numbers": safetensors_bytes({"a": entry((0, 2**62, 8), (0, 0))}),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
def test_damaged_files_are_refused_in_one_line(content, tmp_path):
    (tmp_path / SINGLE).write_bytes(content)
    tracemalloc.start()
    with pytest.raises(UserError) as error:
        read_all(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert str(tmp_path / SINGLE) in str(error.value)
    assert "\n" not in str(error.value)
    assert peak < 1e6


def test_a_damaged_file_gives_the_same_shapes_or_an_error(tmp_path):
    """What changes values cannot be seen, but nothing else may come of it."""
    path = tmp_path / SINGLE
    safetensors.numpy.save_file({"a": np.arange(6.0).reshape(2, 3), "b": np.arange(4)}, path)
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    errors = 0
    for _ in range(500):
        content = bytearray(whole)
        for place in random.integers(len(content), size=random.integers(1, 4)):
            content[place] = random.integers(256)
        path.write_bytes(content[: random.integers(len(content))] if random.random() < 0.2 else content)
        try:
            arrays = read_all(tmp_path)
        except UserError:
            errors += 1
        else:
            assert sum(array.nbytes for array in arrays.values()) == 80
    assert 150 < errors < 500


def sharded(directory: Path) -> dict:
    write_safetensors(directory, [("a", np.zeros(3)), ("b", np.ones(3))], shard_size=24)
    return json.loads((directory / INDEX).read_text())["weight_map"]


@pytest.mark.parametrize(
    "name",
    [
        "../model.safetensors",
        "/etc/passwd",
        "a/b.safetensors",
        "",
        "..",
        "a\\b.safetensors",
        "a\0.safetensors",
        "a.bin",
    ],
)
def test_an_index_names_only_files_beside_it(name, tmp_path):
    weight_map = sharded(tmp_path)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {**weight_map, "b": name}}))
    with pytest.raises(UserError, match="which is not the name of a safetensors file beside it"):
        open_tensors(tmp_path)


@pytest.mark.parametrize("index", [[], {}, {"weight_map": []}, {"weight_map": {}}, {"weight_map": {"a": 3}}])
def test_an_index_must_be_one(index, tmp_path):
    sharded(tmp_path)
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError, match="has no weight_map"):
        open_tensors(tmp_path)


def test_an_index_that_contradicts_its_shards_is_refused(tmp_path):
    weight_map = sharded(tmp_path)
    first, second = weight_map.values()
    for changed, message in (
        ({**weight_map, "c": second}, f"names tensor c, but {second} does not have it"),
        ({"a": second, "b": first}, "tensor a is in"),
        ({**weight_map, "b": "other.safetensors"}, r"other\.safetensors is missing"),
    ):
        (tmp_path / INDEX).write_text(json.dumps({"weight_map": changed}))
        with pytest.raises(UserError, match=message):
            open_tensors(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    first, second = sharded(tmp_path).values()
    safetensors.numpy.save_file({"b": np.ones(3), "c": np.ones(3)}, tmp_path / first)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"c": first, "b": second}}))
    with pytest.raises(UserError, match=f"tensor b is in {first} and in {second}"):
        open_tensors(tmp_path)


def test_a_missing_shard_is_named(tmp_path):
    first, _ = sharded(tmp_path).values()
    (tmp_path / first).unlink()
    with pytest.raises(UserError, match=rf"{first} is missing: download the model again"):
        open_tensors(tmp_path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["pytorch_model.bin"],
            r"convert it with python -c 'import transformers as t; .*t\.BertModel\.from_",
        ),
        (["consolidated.00.pth"], "write it with safetensors.torch.save_file"),
        (["model.ckpt"], "write it with safetensors.torch.save_file"),
        (["flax_model.msgpack"], "from_flax=True"),
        (["tf_model.h5"], "from_tf=True"),
        (["model.Q8_0.gguf"], "give the file itself, as gguf:"),
        (["adapter_model.safetensors", "training_args.bin"], "has adapter_model.safetensors, but neither"),
        ([], "give the directory of a Hugging Face model"),
    ],
)
def test_other_formats_are_refused_with_what_to_do(names, message, tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')
    for name in names:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=message) as error:
        open_tensors(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("config", ["", "[]", "{}", '{"architectures": []}', '{"architectures": ["x; import os"]}'])
def test_a_strange_config_does_not_get_into_the_command(config, tmp_path):
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match="read it with the class of transformers"):
        open_tensors(tmp_path)


def test_what_cannot_be_read_is_named(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"cannot read .*missing: No such file or directory"):
        open_tensors(tmp_path / "missing")
    (tmp_path / SINGLE).mkdir()
    with pytest.raises(UserError, match="is not a file"):
        open_tensors(tmp_path)
    (tmp_path / SINGLE).rmdir()
    os.mkfifo(tmp_path / SINGLE)
    with pytest.raises(UserError, match="is not a file"):
        open_tensors(tmp_path)
    (tmp_path / SINGLE).unlink()
    write_safetensors(tmp_path, [("a", np.zeros(3))])
    tensors = open_tensors(tmp_path)

    def denied(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(UserError, match=r"cannot read .*model\.safetensors: Permission denied"):
        tensors.read("a")
    with pytest.raises(UserError, match=r"cannot read .*: Permission denied"):
        open_tensors(tmp_path)
