"""Prepared sets of tensorflow-datasets, read without TensorFlow."""

import contextlib
import importlib.util
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from lm.data.config import DataConfig, Split
from lm.data.files import decode
from lm.data.readers import no_field
from lm.errors import UserError


class TfdsReader:
    """A prepared tensorflow-datasets set (array_record), read row by row without TensorFlow."""

    has_splits = True

    def __init__(self, name: str, config: DataConfig):
        self._name = name
        self._field = config.field
        self._expressions = {"train": config.train_split, "validation": config.validation_split}
        self._builder = tfds_builder(name)
        self.files = sorted(file for file in map(Path, self._builder.data_path.iterdir()) if file.is_file())

    def documents(self, split: Split) -> Iterator[str]:
        """Yields the texts of the rows that the split expression selects."""
        rows = self._rows(split)
        for i in range(len(rows)):
            place = f"row {i} of tfds:{self._name}"
            row = read_row(rows, i, place)
            text = row.get(self._field)
            if not isinstance(text, bytes | str):
                raise UserError(no_field(f"tfds:{self._name}", self._field, row))
            yield decode(text, place) if isinstance(text, bytes) else text

    def _rows(self, split: Split) -> Sequence[dict]:
        return tfds_rows(self._builder, self._name, self._expressions[split], f"config.data.{split}_split")


def tfds_rows(builder, name: str, split: str, key: str) -> Sequence[dict]:
    """Rows of a set that a split expression such as "train[:90%]" selects.

    Raises:
      UserError: naming `key`, if the set has no such split.
    """
    try:
        if not builder.info.splits[split].num_examples:
            return ()  # as_data_source fails on an empty slice
        return builder.as_data_source(split=split)
    except (ValueError, KeyError) as error:
        known = ", ".join(builder.info.splits)
        raise UserError(f"{key}: tfds:{name} has no split {split!r}; it has {known}") from error


def read_row(rows: Sequence[dict], index: int, place: str) -> dict:
    """A row.

    Raises:
      UserError: if it is damaged.
    """
    try:
        return rows[index]
    except Exception as error:  # from array_record's own kinds to those of decoding a feature
        raise UserError(f"{place} cannot be read ({_first_line(error)}): prepare the set again") from error


def tfds_builder(name: str):
    """The set's builder; prepares the set if TensorFlow is installed.

    Raises:
      UserError: if there is no such set, it cannot be read, or it is not prepared in a format that can be read without
        TensorFlow.
    """
    if ":" in name and not re.fullmatch(r"[^:]+:\d+\.\d+\.\d+", name):
        raise UserError(f"tfds:{name}: sets of other collections, such as huggingface:, are not read")
    with _own_features_only():
        return _prepared(name)


def _prepared(name: str):
    import tensorflow_datasets as tfds  # takes a second, and only this source needs it

    # Read here because the library reads the environment only once, when it is imported.
    data_dir = os.environ.get("TFDS_DATA_DIR")
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"tfds:{name} is damaged, its features.json perhaps ({error}): prepare it again") from error
    except (ValueError, ImportError) as error:
        raise UserError(
            f"tensorflow-datasets has no set {name!r}, or the set needs a configuration, as in glue/sst2: "
            "see https://www.tensorflow.org/datasets/catalog"
        ) from error
    except UserError:
        raise
    except Exception as error:  # a damaged dataset_info.json or features.json
        raise UserError(f"tfds:{name} cannot be opened ({_first_line(error)}): prepare it again") from error
    if builder.is_prepared():
        return _array_record(builder, name)
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            f"tfds:{name} is not prepared in {builder.data_dir}: set TFDS_DATA_DIR to the folder that has it, "
            "or pip install 'calibrated-lm[tfds]' and run again"
        )
    builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    try:
        builder.download_and_prepare()
    except Exception as error:  # from a lost connection to a missing checksum
        raise UserError(f"tfds:{name} could not be prepared in {builder.data_dir}: {_first_line(error)}") from error
    return builder


@contextlib.contextmanager
def _own_features_only() -> Iterator[None]:
    """Lets the library read features.json without importing modules that it names, other than the library's own."""
    from tensorflow_datasets.core.features.feature import FeatureConnector

    original = FeatureConnector.__dict__["cls_from_name"]

    def cls_from_name(cls, python_class_name: str):
        if not python_class_name.startswith("tensorflow_datasets."):
            raise UserError(
                f"a features.json below TFDS_DATA_DIR names {python_class_name!r:.80}, which is code from elsewhere: "
                "use sets with the features of tensorflow-datasets alone"
            )
        return original.__func__(cls, python_class_name)

    FeatureConnector.cls_from_name = classmethod(cls_from_name)
    try:
        yield
    finally:
        FeatureConnector.cls_from_name = original


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__


def _array_record(builder, name: str):
    file_format = builder.info.file_format.value
    if file_format not in ("array_record", "parquet"):
        raise UserError(
            f"tfds:{name} in {builder.data_dir} is prepared as {file_format}, which only TensorFlow reads: prepare it "
            f"again with tfds.builder({name!r}, file_format='array_record').download_and_prepare()"
        )
    return builder
