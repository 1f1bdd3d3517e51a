"""The record of a checkpoint: JSON beside its arrays, with a digest of itself."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm.files import is_unchanged

# The one item in which checkpoints of earlier versions hold their arrays.
FORMER = "state"


def read_record(folder: Path) -> dict[str, Any]:
    """The record of the checkpoint in a folder.

    Raises:
      ValueError: if it differs from the one that was saved.
      OSError: if it cannot be read.
    """
    record = _read_json(folder / "progress" / "metadata", "record")
    if not isinstance(record, dict) or not is_unchanged(record):
        raise ValueError("its record differs from the one that was saved")
    del record["digest"]
    return record


def read_score(folder: Path) -> float | None:
    """The score of the checkpoint in a folder, or None if it was not evaluated.

    Raises:
      As `read_record`.
    """
    if not (folder / FORMER).exists():
        return read_record(folder)["score"]
    path = folder / "metrics" / "metrics"
    try:
        return float(_read_json(path, "score")["score"]) if path.exists() else None
    except (TypeError, KeyError) as error:
        raise ValueError("its score is damaged") from error


def changed_origin(record: Mapping[str, Any], origin: Mapping[str, Any]) -> list[str]:
    """What a model was made of that is different now, in words; what only one of both versions knows is ignored.

    Args:
      record: of a checkpoint.
      origin: what the model is made of now.
    """
    then = record.get("origin", {})
    changed = [name for name in then if name in origin and then[name] != origin[name]]
    return [
        name if "." in name and name.endswith(".json") else f"config.{name} was {then[name]!r}, is {origin[name]!r}"
        for name in changed
    ]


def _read_json(path: Path, name: str) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ValueError(f"its {name} is missing") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its {name} is damaged") from error
