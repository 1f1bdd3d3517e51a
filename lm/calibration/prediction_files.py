"""Arrays by name from a file of predictions: npz, npy, csv, tsv, json, jsonl or parquet.

Sizes are checked before anything is allocated, pickles are never read, and whatever is wrong is one `UserError`.

Axes: N items, C classes.
"""

import csv
import json
import math
import re
import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from lm.calibration.inputs import is_missing, repeated_name
from lm.errors import UserError

SCORES = ("logits", "log_probs", "probabilities")
# The names of arrays, which a table may give one row at a time.
_SINGULAR = {
    **{"logit": "logits", "log_prob": "log_probs", "probability": "probabilities", "label": "labels"},
    **{"id": "ids", "cluster": "clusters", "weight": "weights"},
}
_NUMBERS = (*SCORES, "hidden", "output", "weights")
_ORIGIN = ("checkpoint", "model")  # one value each
_PACKED = 200  # times that a compressed array may be smaller in the file than in memory
_SMALL = 2**26  # bytes below which it may be smaller still


def read_arrays(
    path: Path, known: Collection[str], besides: Collection[str] = ()
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Reads the arrays with known names.

    A table (csv, tsv, jsonl, parquet, or a list of objects in json) has a row for each item, and columns `label`, `id`,
    `cluster`, `weight`, and the scores: a list for each item in `probabilities` (or `logits`, `log_probs`), a number in
    `probability` for class 1 of two, or columns such as `probability_cat`, `probability_dog` that name the classes.

    Args:
      path: of the file.
      known: names of arrays.
      besides: names of arrays that are not of the items, for which only npz files have a place.

    Returns:
      The arrays, and the names of what was not used.

    Raises:
      UserError: if the file is missing, is of another kind, is damaged, or holds pickled objects.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such predictions file")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: predictions are read from files that end in {', '.join(_READERS)}")
    try:
        arrays, unused = reader(path, (*known, *besides) if reader is _read_npz else known)
        # Bytes are how C and HDF5 hold text.
        return {name: np.char.decode(a, "utf-8") if a.dtype.kind == "S" else a for name, a in arrays.items()}, unused
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not in UTF-8: save it as UTF-8 ({error.reason} at byte {error.start})") from error
    except Exception as error:  # damage comes to light anywhere in a reader
        reason = (str(error) or type(error).__name__).splitlines()[0]
        kind = path.suffix.lower().removeprefix(".")
        raise UserError(f"{path} is not {_ARTICLES.get(kind, 'a')} {kind} file of plain arrays: {reason}") from error


_ARTICLES = {"npz": "an", "npy": "an"}


# --- NumPy's files ---


def _read_npz(path: Path, known: Collection[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    arrays: dict[str, np.ndarray] = {}
    unused: list[str] = []
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if sum(member.compress_size for member in members) > path.stat().st_size:
            raise UserError("its arrays claim to be larger than the file; it is damaged, so write it again")
        for member in members:
            name = member.filename.removesuffix(".npy")
            if name not in known:
                archive.open(member).close()  # which finds damage to the name
                unused.append(name)
                continue
            if name in arrays:
                raise UserError(f"the array `{name}` is there twice; write the file again")
            _check_member(member, name)
            with archive.open(member) as file:
                arrays[name] = _read_npy_from(file, member.file_size, name)
    return arrays, unused


def _check_member(member: zipfile.ZipInfo, name: str) -> None:
    if member.flag_bits & 1:
        raise UserError(f"the array `{name}` is encrypted; save it without a password, as np.savez does")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UserError(f"the array `{name}` is compressed in an unknown way; save it with np.savez")
    if member.file_size > max(_SMALL, _PACKED * member.compress_size):
        raise UserError(
            f"the array `{name}` would unpack from {member.compress_size:,} to {member.file_size:,} bytes; if it is "
            "real, save it without compression, with np.savez"
        )


def _read_npy(path: Path, known: Collection[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    with path.open("rb") as file:
        array = _read_npy_from(file, path.stat().st_size, "array")
    if array.dtype.names is None:
        raise UserError(
            f"it is one array, {array.dtype} {array.shape}, but scores and labels are needed: save both with "
            "np.savez('predictions.npz', probabilities=..., labels=...)"
        )
    columns = {name: array[name] for name in array.dtype.names}
    return _of_columns(columns, known)


def _read_npy_from(file: IO[bytes], size: int, name: str) -> np.ndarray:
    """One array from a stream of `size` bytes, which must be exactly as long as the array's header says."""
    version = npy.read_magic(file)
    if version not in _HEADERS:
        advice = "give its fields Latin names" if version == (3, 0) else "save it again with NumPy"
        raise UserError(f"the array `{name}` has format version {version}, which is not read: {advice}")
    shape, fortran_order, dtype = _HEADERS[version](file)
    if dtype.hasobject:
        raise UserError(f"the array `{name}` holds pickled objects, which are not read: it is not one of plain arrays")
    count = math.prod(shape)
    length = count * dtype.itemsize
    if any(n < 0 for n in shape) or (count and not dtype.itemsize) or length > size:
        raise UserError(
            f"the array `{name}` claims shape {shape}, which does not fit its {size:,} bytes; it is damaged"
        )
    content = file.read(length)
    if len(content) != length or file.read(1):  # reading on to the end also checks the sum
        raise UserError(f"the array `{name}` is cut short or too long; write the file again")
    flat = np.frombuffer(content, dtype)
    return flat.reshape(shape[::-1]).T if fortran_order else flat.reshape(shape)


_HEADERS: dict[tuple[int, int], Callable[[IO[bytes]], tuple[tuple[int, ...], bool, np.dtype]]] = {
    (1, 0): npy.read_array_header_1_0,
    (2, 0): npy.read_array_header_2_0,
}


# --- tables ---


def _read_csv(path: Path, known: Collection[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8-sig", newline="") as file:
        first = file.readline()
        file.seek(0)
        # Names of classes may hold a delimiter, so the one that finds the most columns is right.
        delimiter = max(",;\t", key=lambda each: sum(map(bool, map(_array_of, _cells(first, each)))))
        rows = csv.reader(file, delimiter=delimiter, strict=True)
        names = [name.strip() for name in next(rows, [])]
        _check_header(names)
        columns: list[list[str]] = [[] for _ in names]
        for row in rows:
            if not row:
                continue
            if len(row) != len(names):
                raise UserError(f"line {rows.line_num} has {len(row)} fields, the header {len(names)}")
            for column, value in zip(columns, row, strict=True):
                column.append(value.strip())
    return _of_columns(dict(zip(names, columns, strict=True)), known)


def _cells(line: str, delimiter: str) -> list[str]:
    return [name.strip() for name in next(csv.reader([line], delimiter=delimiter), [])]


def _check_header(names: list[str], what: str = "its first line") -> None:
    if repeated := repeated_name(names):
        raise UserError(f"the column `{repeated}` is there twice; rename one")
    if names and not any(_array_of(name) for name in names):
        raise UserError(
            f"{what}, {', '.join(names)[:80]}, must name the columns, such as label,probability_cat,probability_dog"
        )


def _read_json(path: Path, known: Collection[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_unique)
    if isinstance(content, list):
        return _of_records(content, known)
    if not isinstance(content, dict):
        raise UserError(f"it must hold an object of arrays or a list of objects, not a {type(content).__name__}")
    return _of_columns(content, known)


def _read_json_lines(path: Path, known: Collection[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    records = []
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    records.append(json.loads(line, object_pairs_hook=_unique))
                except ValueError as error:
                    raise UserError(f"line {number} is not JSON: {error}") from error
    return _of_records(records, known)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if repeated := repeated_name([name for name, _ in pairs]):
        raise UserError(f"`{repeated}` is there twice; remove one")
    return dict(pairs)


def _of_records(records: list[Any], known: Collection[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    if not records:
        raise UserError("it has no rows")
    for number, record in enumerate(records):
        if not isinstance(record, dict) or record.keys() != records[0].keys():
            raise UserError(f"row {number} must be an object with the same keys as row 0")
    return _of_columns({name: [record[name] for record in records] for name in records[0]}, known)


def _read_parquet(path: Path, known: Collection[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise UserError("reading parquet needs a package: pip install pyarrow") from error
    file = parquet.ParquetFile(path)
    names = file.schema_arrow.names
    _check_header(names, "its schema")
    metadata = file.metadata
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    values = sum(group.column(number).num_values for group in groups for number in range(group.num_columns))
    if 8 * values > max(_SMALL, _PACKED * path.stat().st_size):
        raise UserError(
            f"its {path.stat().st_size:,} bytes claim {values:,} values; if they are real, save them as npz"
        )
    table = file.read([name for name in names if (_array_of(name) or (name,))[0] in known])
    unused = [name for name in names if name not in table.column_names]
    arrays, others = _of_columns({name: table[name].to_pylist() for name in table.column_names}, known)
    return arrays, [*others, *unused]


def _of_columns(columns: Mapping[str, Any], known: Collection[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Arrays from columns: renamed, with the columns of classes put side by side, and text made numbers."""
    arrays: dict[str, np.ndarray] = {}
    classes: dict[str, dict[str, Any]] = {}
    unused = []
    labels = None
    for name, values in columns.items():
        array, class_name = _array_of(name) or (name, "")
        if array not in known:
            unused.append(name)
        elif array in _ORIGIN and values is None:
            continue
        elif class_name:
            classes.setdefault(array, {})[class_name] = _column(values, name, array)
        elif array in arrays:
            raise UserError(f"`{array}` is there twice, also as `{name}`; rename one")
        else:
            arrays[array] = _column(values, name, array)
            labels = values if array == "labels" else labels
    names = arrays["class_names"].tolist() if "class_names" in arrays else None
    of_columns = None
    for array, by_class in classes.items():
        if array in arrays:
            raise UserError(f"`{array}` is there twice: as one column, and with a column for each class")
        arrays[array], of_columns = _side_by_side(by_class, array)
        if of_columns is not None:
            arrays.setdefault("class_names", np.array(of_columns))
    if isinstance(labels, list):
        texts = [str(label) for label in labels]
        # Names such as 1 and -1 look like numbers of classes.
        may_be_names = of_columns is not None or all(isinstance(label, str) for label in labels)
        if may_be_names and set(texts) <= set(of_columns or names or ()):
            arrays["labels"] = np.array(texts)
    return arrays, unused


def _array_of(name: str) -> tuple[str, str] | None:
    """The array that a column belongs to, and the class if it is for one; None for other columns."""
    name = _SINGULAR.get(name, name)
    if name in (*SCORES, *_SINGULAR.values(), "class_names"):
        return name, ""
    for prefix in (*_SINGULAR, *SCORES):
        array = _SINGULAR.get(prefix, prefix)
        if array in SCORES and name.startswith(f"{prefix}_"):
            return array, name.removeprefix(f"{prefix}_")
    return None


def _side_by_side(by_class: dict[str, np.ndarray], array: str) -> tuple[np.ndarray, list[str] | None]:
    """Scores [N, C], and the classes' names unless they are numbers."""
    names = list(by_class)
    if len(names) == 1:
        raise UserError(
            f"`{array}` has a column for class {names[0]} alone: add the other classes, or name the column without a "
            "class if it is for class 1 of two"
        )
    if all(name.isdecimal() for name in names):
        numbers = sorted(int(name) for name in names)
        if numbers != list(range(len(names))):
            raise UserError(
                f"the columns of `{array}` are numbered {str(numbers)[:80]}; number classes and labels from 0, with no "
                "gaps"
            )
        names = sorted(names, key=int)
        return np.stack([by_class[name] for name in names], axis=1), None
    return np.stack([by_class[name] for name in names], axis=1), names


def _column(values: Any, name: str, array: str) -> np.ndarray:
    """An array from a column of text, numbers or lists."""
    if isinstance(values, np.ndarray):
        return values
    if array in _ORIGIN and not isinstance(values, list):
        return np.array(values)
    if not isinstance(values, list):
        raise UserError(f"`{name}` must be a list with an entry for each item, not a {type(values).__name__}")
    missing = [item for item, value in enumerate(values) if value == "" or (is_missing(value) and array not in SCORES)]
    missing = missing or [item for item, value in enumerate(values) if value is None]
    if missing:
        raise UserError(f"`{name}` of item {missing[0]} is missing ({len(missing)} in all): fill it or drop the item")
    if array in _NUMBERS:
        return _as_numbers(values, name)
    if any(isinstance(value, list | dict) for value in values):
        raise UserError(f"`{name}` must hold one value for each item, not lists")
    if array == "labels":
        return _as_labels(values)
    return np.array([str(value) for value in values])


def _as_numbers(values: list[Any], name: str) -> np.ndarray:
    if values and isinstance(values[0], list):
        lengths = {len(row) if isinstance(row, list) else 0 for row in values}
        if len(lengths) > 1:
            raise UserError(f"`{name}` must have equally many numbers for each item, not {sorted(lengths)[:5]}")
        return np.array([[_number(value, name, item) for value in row] for item, row in enumerate(values)])
    return np.array([_number(value, name, item) for item, value in enumerate(values)])


def _number(value: Any, name: str, item: int) -> float:
    try:
        if isinstance(value, bool) or "_" in str(value):  # which Python allows in numbers
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        is_comma = isinstance(value, str) and re.fullmatch(r"-?\d*,\d+", value)
        advice = ": write decimals with a point" if is_comma else ""
        raise UserError(f"`{name}` of item {item} is {str(value)[:40]!r}, not a number{advice}") from error


def _as_labels(values: list[Any]) -> np.ndarray:
    """Numbers of classes, or their names."""
    bools = sum(isinstance(value, bool) for value in values)
    if 0 < bools < len(values):
        raise UserError("some `labels` are true or false and others are not: use one of them")
    if all(isinstance(value, int | float) for value in values):
        numbers = np.array(values)
        # pandas writes whole numbers as 2.0 where a column once had gaps.
        is_whole = numbers.dtype.kind == "f" and (np.abs(numbers) < 2**53).all() and (numbers % 1 == 0).all()
        return numbers.astype(np.int64) if is_whole else numbers
    texts = [str(value) for value in values]
    if {text.lower() for text in texts} <= {"true", "false"}:
        return np.array([text.lower() == "true" for text in texts])
    if all(re.fullmatch(r"[+-]?\d+(\.0)?", text) for text in texts):
        return np.array([int(text.removesuffix(".0")) for text in texts])
    return np.array(texts)


_READERS = {
    ".npz": _read_npz,
    ".npy": _read_npy,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".json": _read_json,
    ".jsonl": _read_json_lines,
    ".parquet": _read_parquet,
}
