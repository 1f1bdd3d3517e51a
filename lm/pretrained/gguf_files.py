"""GGUF files, which llama.cpp reads, as what Hugging Face's directory of the same model holds."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from lm.errors import UserError
from lm.pretrained.gguf_configs import ROTARY_FACTORS, Metadata, config_of
from lm.pretrained.gguf_header import StoredTensor, read_header
from lm.pretrained.gguf_names import Undo, naming, undo_of
from lm.pretrained.tensors import Tensors, read_array

# By the name of a tensor's type: those that are stored as they are.
_DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F64": np.dtype(np.float64),
}
# So many values are dequantized at a time: it takes several temporary arrays.
_CHUNK = 2**20
# Not a weight: the metadata get its values.
_NO_WEIGHTS = {ROTARY_FACTORS}
# GPT-2's output is its token embedding, of which old converters wrote a copy.
_COPIES = {("gpt2", "output.weight")}


@dataclasses.dataclass(frozen=True)
class GGUFFile:
    """A model in one file.

    Attributes:
      path: the file.
      config: what config.json of the same model holds, with the keys of transformers 4.
      tensors: its weights by transformers' names, without the changes that llama.cpp's converter made.
      tokenizer_metadata: what the file says about its tokenizer, `tokenizer.*`, in plain Python values.
    """

    path: Path
    config: dict[str, Any]
    tensors: Tensors
    tokenizer_metadata: dict[str, Any]


def read_gguf(path: Path) -> GGUFFile:
    """Opens a GGUF file; tensors are read when they are asked for.

    Raises:
      UserError: if the package gguf is missing, or the file cannot be read, is damaged or not of a model that is known.
    """
    gguf = _gguf()
    sizes = {int(kind): size for kind, size in gguf.GGML_QUANT_SIZES.items()}
    header = read_header(path, sizes)
    _check_kinds(path, header.tensors)
    values = dict(header.metadata)
    if ROTARY_FACTORS in header.tensors:
        values[ROTARY_FACTORS] = _read_stored(path, header.tensors[ROTARY_FACTORS]).reshape(-1).tolist()
    shapes = {name: tensor.shape for name, tensor in header.tensors.items()}
    config = config_of(Metadata(path, values, shapes))
    tokenizer = {key: value for key, value in header.metadata.items() if key.startswith("tokenizer.")}
    tensors = _GGUFTensors(path, _weights(path, values, header.tensors))
    return GGUFFile(path, config, tensors, tokenizer)


@dataclasses.dataclass(frozen=True)
class _Weight:
    """A stored tensor and what makes it transformers'."""

    stored: StoredTensor
    undo: Undo | None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape[::-1] if self.undo is np.transpose else self.stored.shape


class _GGUFTensors:
    """The weights of a GGUF file."""

    def __init__(self, path: Path, weights: Mapping[str, _Weight]):
        self.path = path
        self.shapes: Mapping[str, tuple[int, ...]] = {name: weight.shape for name, weight in weights.items()}
        self._weights = weights

    def read(self, name: str) -> np.ndarray:
        """See `Tensors.read`."""
        weight = self._weights[name]
        array = _read_stored(self.path, weight.stored)
        try:
            return weight.undo(array) if weight.undo else array
        except ValueError as error:
            raise UserError(
                f"{self.path}: tensor {name} of shape {array.shape} does not fit the numbers of heads in its metadata"
            ) from error


def _weights(path: Path, values: Mapping[str, Any], stored: Mapping[str, StoredTensor]) -> dict[str, _Weight]:
    """The weights by transformers' names.

    Raises:
      UserError: if a tensor is not of the architecture.
    """
    architecture = values["general.architecture"]
    names = naming(architecture, set(stored))
    heads = values[f"{architecture}.attention.head_count"]
    key_value_heads = values.get(f"{architecture}.attention.head_count_kv", heads)
    weights = {}
    for name, tensor in stored.items():
        if name in _NO_WEIGHTS or (architecture, name) in _COPIES:
            continue
        theirs = names.find(name)
        if theirs is None:
            raise UserError(f"{path}: tensor {name!r:.100} is not one that {architecture} has: give another model")
        weights[theirs] = _Weight(tensor, undo_of(architecture, theirs, heads, key_value_heads))
    return weights


def _gguf() -> Any:
    """The optional package that knows the quantized types."""
    try:
        import gguf
    except ImportError as error:
        raise UserError("GGUF files need the package gguf: pip install 'calibrated-lm[pretrained]'") from error
    return gguf


def _check_kinds(path: Path, tensors: Mapping[str, StoredTensor]) -> None:
    """Checks that each tensor's type can be read.

    Raises:
      UserError: if one cannot.
    """
    gguf = _gguf()
    first = {tensor.kind: name for name, tensor in tensors.items()}
    for number, name in first.items():
        kind = gguf.GGMLQuantizationType(number)
        if kind.name in _DTYPES:
            continue
        try:
            gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
        except (NotImplementedError, ValueError) as error:
            raise UserError(
                f"{path}: tensor {name!r:.100} has type {kind.name}, which gguf does not dequantize; use another file "
                "of the model, such as Q8_0 or F16"
            ) from error


def _read_stored(path: Path, tensor: StoredTensor) -> np.ndarray:
    """A tensor's values: in float32 if they are quantized."""
    gguf = _gguf()
    kind = gguf.GGMLQuantizationType(tensor.kind)
    if kind.name in _DTYPES:
        return read_array(path, tensor.offset, tensor.shape, _DTYPES[kind.name])
    block, block_size = gguf.GGML_QUANT_SIZES[kind]
    blocks, step = tensor.size // block_size, _CHUNK // block
    values = np.empty((blocks, block), np.float32)
    for start in range(0, blocks, step):
        count = min(step, blocks - start)
        # As one row: dequantize goes through the rows in groups of 16, however short.
        stored = read_array(path, tensor.offset + start * block_size, (1, count * block_size), np.dtype(np.uint8))
        values[start : start + count] = gguf.dequantize(stored, kind).reshape(count, block)
    return values.reshape(tensor.shape)
