"""The header of a GGUF file: metadata, and the place of each tensor.

Everything in it is little-endian. After the magic number, a version and two counts come the metadata (key, type,
value), then a record for each tensor (name, dimensions, type, offset), then the tensors, aligned. Lengths are checked
against the size of the file before anything is read or made.
"""

import dataclasses
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lm.errors import UserError
from lm.pretrained.tensors import unreadable

# Of metadata, by number: how one is unpacked.
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_FLOAT32 = 6
# No vocabulary is larger, and a list takes eight bytes for each.
_LONGEST_ARRAY = 2**24
_MOST_DIMENSIONS = 4


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is.

    Attributes:
      kind: number of its type, as in `gguf.GGMLQuantizationType`.
      shape: of its values, slowest axis first.
      offset: of its first byte in the file.
      size: in bytes.
    """

    kind: int
    shape: tuple[int, ...]
    offset: int
    size: int


@dataclasses.dataclass(frozen=True)
class Header:
    """What a GGUF file says about itself.

    Attributes:
      metadata: values by key. Single float32 numbers are the shortest decimals that stand for them: 1e-05.
      tensors: places by name.
    """

    metadata: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]


def read_header(path: Path, type_sizes: Mapping[int, tuple[int, int]]) -> Header:
    """Reads and checks a header.

    Args:
      path: the file.
      type_sizes: by number of a tensor's type, how many values a block has and its bytes.

    Raises:
      UserError: if the file cannot be read, is damaged or not of a kind that can be read.
    """
    try:
        if not path.is_file():
            raise UserError(f"{path} {'is not a file' if path.exists() else 'is missing'}: give a GGUF file")
        with path.open("rb") as stream:
            return _HeaderReader(path, stream, path.stat().st_size).read(type_sizes)
    except OSError as error:
        raise unreadable(path, error) from error


class _HeaderReader:
    """Reads a header from start to end."""

    def __init__(self, path: Path, stream: BinaryIO, size: int):
        self.path = path
        self.stream = stream
        self.size = size
        self.place = 0

    def read(self, type_sizes: Mapping[int, tuple[int, int]]) -> Header:
        self._check_version()
        tensors, entries = self._count(), self._count()
        metadata: dict[str, Any] = {}
        for _ in range(entries):
            key = self._text()
            if key in metadata:
                raise self._damaged(f"{key} occurs twice")
            metadata[key] = self._value(self._number("<I"))
        if metadata.get("split.count", 0) not in (0, 1):
            raise UserError(
                f"{self.path} is one of {metadata['split.count']} parts of a model: join them with "
                "llama-gguf-split --merge"
            )
        stored = self._tensors(tensors, type_sizes)
        return Header(metadata, self._placed(stored, metadata.get("general.alignment", 32)))

    def _check_version(self) -> None:
        if self._bytes(4) != b"GGUF":
            raise UserError(f"{self.path} is not a GGUF file: give one, or the directory of a Hugging Face model")
        version = self._number("<I")
        if version & 0xFFFF == 0 and version:
            raise UserError(
                f"{self.path} is big-endian GGUF, which is not read: convert the model again for this machine"
            )
        if version not in (2, 3):
            raise UserError(
                f"{self.path} is GGUF of version {version}, but 2 and 3 are read: convert the model again with "
                "llama.cpp"
            )

    def _tensors(self, count: int, type_sizes: Mapping[int, tuple[int, int]]) -> dict[str, StoredTensor]:
        """The records, with offsets from where tensors start."""
        found: dict[str, StoredTensor] = {}
        for _ in range(count):
            name = self._text()
            if name in found:
                raise self._damaged(f"tensor {name} occurs twice")
            dimensions = self._number("<I")
            if dimensions > _MOST_DIMENSIONS:
                raise self._damaged(f"tensor {name} has {dimensions} dimensions")
            shape = tuple(self._number("<Q") for _ in range(dimensions))[::-1]
            kind, offset = self._number("<I"), self._number("<Q")
            if kind not in type_sizes:
                raise UserError(f"{self.path}: tensor {name} has type {kind}, which is not known; update gguf")
            block, block_size = type_sizes[kind]
            values = int(np.prod(shape, dtype=object))
            if values % block or (shape and shape[-1] % block):
                raise self._damaged(f"tensor {name} has shape {shape}, which is not whole blocks of {block}")
            found[name] = StoredTensor(kind, shape, offset, values // block * block_size)
        return found

    def _placed(self, tensors: Mapping[str, StoredTensor], alignment: Any) -> dict[str, StoredTensor]:
        """The records with offsets in the file, each of which was checked."""
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise self._damaged(f"general.alignment is {alignment}")
        start = -(-self.place // alignment) * alignment
        placed = {name: dataclasses.replace(tensor, offset=start + tensor.offset) for name, tensor in tensors.items()}
        end, before = start, ""
        for name, tensor in sorted(placed.items(), key=lambda item: item[1].offset):
            if tensor.offset < end:
                raise self._damaged(f"tensors {before} and {name} overlap")
            end, before = tensor.offset + tensor.size, name
            if end > self.size:
                raise self._damaged(f"tensor {name} ends at byte {end:,} of {self.size:,}")
        return placed

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._text()
        if kind == _ARRAY:
            return self._array()
        if kind not in _SCALARS:
            raise self._damaged(f"metadata of type {kind}")
        value = self._number(_SCALARS[kind])
        return float(str(np.float32(value))) if kind == _FLOAT32 else value

    def _array(self) -> list[Any]:
        kind, count = self._number("<I"), self._count()
        if count > _LONGEST_ARRAY:
            raise self._damaged(f"metadata of {count:,} values")
        if kind == _STRING:
            return [self._text() for _ in range(count)]
        if kind not in _SCALARS:
            raise self._damaged(f"an array of type {kind}")
        layout = np.dtype(_SCALARS[kind])
        return np.frombuffer(self._bytes(count * layout.itemsize), layout).tolist()

    def _text(self) -> str:
        content = self._bytes(self._count())
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            raise self._damaged("text that is not UTF-8") from error

    def _count(self) -> int:
        """A number of things that follow, each of at least a byte."""
        count = self._number("<Q")
        if count > self.size - self.place:
            raise self._damaged(f"{count:,} things in {self.size:,} bytes")
        return count

    def _number(self, layout: str) -> Any:
        return struct.unpack(layout, self._bytes(struct.calcsize(layout)))[0]

    def _bytes(self, count: int) -> bytes:
        if count > self.size - self.place:
            raise self._damaged("it ends in its header")
        self.place += count
        content = self.stream.read(count)
        if len(content) < count:
            raise self._damaged("it ends in its header")
        return content

    def _damaged(self, problem: str) -> UserError:
        # What a damaged file calls its tensors may have line breaks.
        shown = problem if problem.isprintable() else ascii(problem)
        return UserError(f"{self.path} is damaged or not a GGUF file ({shown[:200]}): download it again")
