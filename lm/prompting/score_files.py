"""Files with the scores of answers, a line of JSON for each row. A run that was stopped continues them."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from lm.errors import UserError
from lm.files import is_unchanged, with_digest
from lm.prompting.answer_scores import AnswerScores
from lm.tasks.supervised import Row


def read_scores(path: Path) -> dict[str, AnswerScores]:
    """The scores in a file by the places of their rows, up to a line that is not whole."""
    return {place: scores for place, scores, _ in _lines(path)}


def continue_scores(path: Path, rows: Sequence[Row]) -> list[AnswerScores]:
    """The scores of the first rows, as far as a file holds them; what follows is removed from it."""
    found, end = [], 0
    for row, (place, scores, bytes_so_far) in zip(rows, _lines(path), strict=False):
        if place != row["place"]:
            break
        found.append(scores)
        end = bytes_so_far
    if path.exists() and end < path.stat().st_size:
        with open(path, "r+b") as file:
            file.truncate(end)
    return found


def add_scores(file: TextIO, rows: Sequence[Row], scores: Sequence[AnswerScores]) -> None:
    """Writes a line for each row."""
    for row, each in zip(rows, scores, strict=True):
        record = with_digest({"place": row["place"], **dataclasses.asdict(each)})
        file.write(json.dumps(record, ensure_ascii=False) + "\n")
    file.flush()


def _lines(path: Path) -> list[tuple[str, AnswerScores, int]]:
    """The place of each line's row, its scores, and where the line ends; up to a line that is not whole."""
    found, end = [], 0
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        end += len(line)
        try:
            record = json.loads(line)
            place = record["place"]
            if not (is_unchanged(record) and line.endswith(b"\n")):
                break
            del record["place"], record["digest"]
            found.append((place, AnswerScores.from_json(record, str(path)), end))
        except (ValueError, KeyError, TypeError, AttributeError, UserError):
            break
    return found
