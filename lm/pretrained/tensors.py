"""Weights in safetensors files: a directory with `model.safetensors`, or with shards and their index.

A file is 8 bytes that give the length of a header, the header in JSON (data type, shape and place of each tensor), and
the tensors' bytes. Tensors are read and written one at a time, with plain file access: nothing is memory-mapped, so
what was read leaves memory with its array.
"""

import contextlib
import dataclasses
import json
import os
import re
import shlex
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import safetensors

from lm.errors import UserError
from lm.files import read_json, write_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
# Kept free for the header of a file, whose tensors are written before all of them are known; enough for 1,500. What the
# header leaves is spaces, which the format allows.
_HEADER_ROOM = 2**18
_ENTRY_ROOM = 2**10  # more than one tensor takes in the header
_CHUNK = 2**24


class Tensors(Protocol):
    """Named arrays in files, read one at a time."""

    @property
    def path(self) -> Path:
        """The file or directory, for messages."""
        ...

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of each tensor."""
        ...

    def read(self, name: str) -> np.ndarray:
        """Reads one tensor into an array of its own: in its stored type, or in float32 if it is quantized.

        Raises:
          KeyError: if there is none of this name.
          UserError: if the file cannot be read.
        """
        ...


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a tensor's bytes are, and what they are."""

    file: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype


class SafetensorsDirectory:
    """The tensors of one or more safetensors files."""

    def __init__(self, path: Path, places: Mapping[str, _Place]):
        self.path = path
        self.shapes: Mapping[str, tuple[int, ...]] = {name: place.shape for name, place in places.items()}
        self._places = places

    def read(self, name: str) -> np.ndarray:
        """See `Tensors.read`."""
        place = self._places[name]
        return read_array(place.file, place.offset, place.shape, place.dtype)


def read_array(file: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array from its bytes at a place in a file.

    Raises:
      UserError: if the file cannot be read or is too short.
    """
    try:
        array = np.empty(shape, dtype)
    except ValueError as error:  # no bytes, but more than NumPy's dimensions
        raise UserError(f"{file} is damaged: {error}; download it again") from error
    waiting = array.reshape(-1).view(np.uint8).data
    try:
        with file.open("rb", buffering=0) as stream:
            stream.seek(offset)
            while waiting:
                count = stream.readinto(waiting)
                if not count:
                    raise UserError(f"{file} is truncated: download it again")
                waiting = waiting[count:]
    except OSError as error:
        raise unreadable(file, error) from error
    return array


def unreadable(path: Path, error: OSError) -> UserError:
    """What to raise when the system cannot read a file."""
    return UserError(f"cannot read {path}: {error.strerror or error}")


def open_tensors(directory: Path) -> Tensors:
    """The tensors of a Hugging Face directory; only the headers of its files are read.

    Raises:
      UserError: if it has no safetensors files, or they are damaged or contradict their index.
    """
    names = _names_in(directory)
    if SINGLE in names:
        return SafetensorsDirectory(directory, _places_in(directory / SINGLE))
    if INDEX in names:
        return SafetensorsDirectory(directory, _places_by_index(directory))
    raise _no_weights(directory, names)


def _names_in(directory: Path) -> set[str]:
    try:
        return {path.name for path in directory.iterdir()}
    except OSError as error:
        raise unreadable(directory, error) from error


def _places_by_index(directory: Path) -> dict[str, _Place]:
    """The tensors of all shards.

    Raises:
      UserError: if a tensor is not where the index says, or in two shards.
    """
    shard_of = _read_index(directory / INDEX)
    places: dict[str, _Place] = {}
    for shard in sorted(set(shard_of.values())):
        found = _places_in(directory / shard)
        for name, place in found.items():
            if name in places or shard_of.get(name, shard) != shard:
                other = places[name].file.name if name in places else shard_of[name]
                raise UserError(f"{directory}: tensor {name} is in {shard} and in {other}: download the model again")
            places[name] = place
    if missing := sorted(shard_of.keys() - places.keys()):
        raise UserError(
            f"{directory / INDEX} names tensor {missing[0]}, but {shard_of[missing[0]]} does not have it: "
            "download the model again"
        )
    return places


def _read_index(path: Path) -> dict[str, str]:
    """The shard of each tensor.

    Raises:
      UserError: if the index is not one, or names files that are not beside it.
    """
    index = read_json(path)
    shard_of = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shard_of, dict) or not shard_of or not all(isinstance(shard, str) for shard in shard_of.values()):
        raise UserError(f"{path} is damaged: it has no weight_map from tensors to files; download the model again")
    for shard in shard_of.values():
        # A path could lead to any file of the machine.
        if not re.fullmatch(r"[\w][\w.\-]*\.safetensors", shard):
            raise UserError(f"{path} names {shard!r}, which is not the name of a safetensors file beside it")
    return shard_of


def _places_in(file: Path) -> dict[str, _Place]:
    """Where the tensors of one file are.

    Raises:
      UserError: if the file cannot be read, or its header does not fit it.
    """
    try:
        if not file.is_file():  # a named pipe would be waited for
            problem = "is not a file" if file.exists() else "is missing"
            raise UserError(f"{file} {problem}: download the model again")
        # The library checks the header against the file: sizes, types, overlaps and gaps.
        with safetensors.safe_open(file, framework="numpy"):
            pass
        header, start = _read_header(file)
    except OSError as error:
        raise unreadable(file, error) from error
    except (safetensors.SafetensorError, ValueError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{file} is damaged or not a safetensors file ({first[:200]}): download it again") from error
    return {name: _place(file, name, entry, start) for name, entry in header.items() if name != "__metadata__"}


def _read_header(file: Path) -> tuple[dict[str, Any], int]:
    """The header, and where the tensors start."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        return json.loads(stream.read(length), object_pairs_hook=_without_duplicates), 8 + length


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) < len(pairs):
        raise ValueError("a name occurs twice in its header")
    return names


def _place(file: Path, name: str, entry: Mapping[str, Any], start: int) -> _Place:
    if entry["dtype"] not in _DTYPES:
        raise UserError(
            f"{file}: tensor {name} has type {entry['dtype']}, which cannot be read; use a copy of the model in "
            "float32, float16 or bfloat16"
        )
    return _Place(file, start + entry["data_offsets"][0], tuple(entry["shape"]), _DTYPES[entry["dtype"]])


def _no_weights(directory: Path, names: set[str]) -> UserError:
    """Why a directory has no weights that can be read, and what to do."""
    if others := sorted(name for name in names if name.endswith(".safetensors")):
        return UserError(
            f"{directory} has {others[0]}, but neither {SINGLE} nor {INDEX}: give the directory of a whole model"
        )
    for ending, conversion in _CONVERSIONS.items():
        if found := sorted(name for name in names if name.endswith(ending)):
            # Pickled files run code when they are read.
            return UserError(
                f"{directory / found[0]} is not read here, only safetensors files are: {conversion(directory)}"
            )
    return UserError(f"{directory} has no {SINGLE} and no {INDEX}: give the directory of a Hugging Face model")


def _by_transformers(directory: Path) -> str:
    """The command that converts a PyTorch checkpoint of transformers."""
    with contextlib.suppress(UserError, AttributeError, IndexError, KeyError, TypeError):
        name = read_json(directory / "config.json")["architectures"][0]
        if re.fullmatch(r"[A-Za-z][A-Za-z0-9]*", name):
            code = (
                f'import transformers as t; s = {json.dumps(str(directory.absolute()))}; d = s + "-safetensors"; '
                f"t.{name}.from_pretrained(s).save_pretrained(d); t.AutoTokenizer.from_pretrained(s).save_pretrained(d)"
            )
            return f"convert it with python -c {shlex.quote(code)}"
    return "read it with the class of transformers that it is for, and write it with its save_pretrained"


def _by_old_transformers(argument: str) -> str:
    return f"convert it with transformers 4: from_pretrained(..., {argument}=True), then save_pretrained"


def _by_its_writer(directory: Path) -> str:
    return "read it with the program that wrote it, and write it with safetensors.torch.save_file"


_CONVERSIONS = {
    ".gguf": lambda directory: f"give the file itself, as gguf:{directory}/NAME.gguf",
    ".bin": _by_transformers,
    ".pt": _by_its_writer,
    ".pth": _by_its_writer,
    ".ckpt": _by_its_writer,
    ".msgpack": lambda _: _by_old_transformers("from_flax"),
    ".h5": lambda _: _by_old_transformers("from_tf"),
}


def write_safetensors(directory: Path, arrays: Iterable[tuple[str, np.ndarray]], shard_size: int = 5 * 10**9) -> None:
    """Writes tensors as transformers does: one file, or shards and their index.

    Each array is written as it comes, so that the peak of memory is one of them. The files get their names when all of
    them are written: if anything fails, the directory stays as it was.

    Args:
      directory: an existing one without such files.
      arrays: names and arrays, in any layout of memory.
      shard_size: bytes of tensors after which the next goes into a new file.

    Raises:
      UserError: if the directory has such files already, or cannot be written.
      ValueError: if a name occurs twice, or a type has no name in the format.
    """
    if old := sorted(path.name for path in directory.glob("model*.safetensors*")):
        raise UserError(f"{directory} already has {old[0]}: choose a new directory")
    shards: list[_Shard] = []
    try:
        for name, array in arrays:
            _append(shards, directory, name, array, shard_size)
            del array  # or it would stay until the next one is there
        if not shards:
            raise ValueError("there are no tensors to write")
        shards[-1].close()
        _name_shards(directory, shards)
    except BaseException as error:
        for shard in shards:
            shard.remove()
        if isinstance(error, OSError):
            raise UserError(f"cannot write {directory}: {error.strerror or error}") from error
        raise


def _append(shards: list["_Shard"], directory: Path, name: str, array: np.ndarray, shard_size: int) -> None:
    """Writes a tensor to the last shard, or to a new one if that is full."""
    if any(name in shard.entries for shard in shards):
        raise ValueError(f"two tensors have the name {name}")
    if not shards or not shards[-1].has_room(array, shard_size):
        if shards:
            shards[-1].close()
        shards.append(_Shard(directory / f".model.{uuid.uuid4().hex}.safetensors"))
    shards[-1].write(name, array)


def _name_shards(directory: Path, shards: list["_Shard"]) -> None:
    """Gives finished shards their names. The index is last: until then, they are not taken for a model."""
    if len(shards) == 1:
        shards[0].path = shards[0].path.replace(directory / SINGLE)
        return
    names = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    for shard, name in zip(shards, names, strict=True):
        shard.path = shard.path.replace(directory / name)
    weight_map = {tensor: name for shard, name in zip(shards, names, strict=True) for tensor in shard.entries}
    total = sum(shard.size for shard in shards)
    write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


class _Shard:
    """A safetensors file that is being written."""

    def __init__(self, path: Path):
        self.path = path
        self.entries: dict[str, dict[str, Any]] = {}
        self.size = 0
        self._header_size = 64  # of the metadata
        self._file = path.open("xb")
        self._file.seek(8 + _HEADER_ROOM)

    def has_room(self, array: np.ndarray, shard_size: int) -> bool:
        """Whether one more tensor fits, by its size and in the header."""
        return self.size + array.nbytes <= shard_size and self._header_size <= _HEADER_ROOM - _ENTRY_ROOM

    def write(self, name: str, array: np.ndarray) -> None:
        """Appends a tensor."""
        if array.dtype not in _NAMES:
            raise ValueError(f"tensor {name} has type {array.dtype}, which safetensors has no name for")
        entry = {
            "dtype": _NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [self.size, self.size + array.nbytes],
        }
        self._header_size += len(json.dumps({name: entry}))
        self.entries[name] = entry
        self.size += array.nbytes
        for part in _contiguous_parts(array):
            self._file.write(part.reshape(-1).view(np.uint8).data)

    def close(self) -> None:
        """Writes the header, and all to disk."""
        header = json.dumps({"__metadata__": {"format": "pt"}, **self.entries}, separators=(",", ":")).encode()
        self._file.seek(0)
        self._file.write(_HEADER_ROOM.to_bytes(8, "little") + header.ljust(_HEADER_ROOM))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def remove(self) -> None:
        """Removes the file."""
        with contextlib.suppress(OSError):  # as where the disk is full
            self._file.close()
        self.path.unlink(missing_ok=True)


def _contiguous_parts(array: np.ndarray) -> Iterator[np.ndarray]:
    """An array's values in order, a few megabytes at a time where its memory has another order."""
    if array.flags.c_contiguous:
        yield array
        return
    rows = max(1, _CHUNK * len(array) // array.nbytes)
    for start in range(0, len(array), rows):
        yield np.ascontiguousarray(array[start : start + rows])
