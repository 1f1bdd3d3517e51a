"""The answers of a run: written a few rows at a time, so that a run that was stopped goes on where it was."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm.configuration import differences
from lm.console import Console
from lm.errors import UserError
from lm.files import is_unchanged, json_value, read_json_object, with_digest, write_json
from lm.inference.whole_answers import AnswerWriter, WholeAnswer
from lm.tasks.supervised import Row

AT_ONCE = 32  # rows that are asked, and written, together; their samples share one seed


def check_record(path: Path, record: dict[str, Any]) -> None:
    """Checks that a directory holds these answers, or none.

    Args:
      path: of the file that says what was asked.
      record: what will be asked.

    Raises:
      UserError: if it holds others.
    """
    if not path.exists():
        return
    known = read_json_object(path)
    if not is_unchanged(known):
        raise UserError(f"{path} was changed since it was written: use another --workdir")
    del known["digest"]
    if changed := differences(known, json_value(record)):
        listed = "; ".join(f"{name} was {old!r:.60}, is {new!r:.60}" for name, (old, new) in changed.items())
        raise UserError(f"{path.parent} holds other answers ({listed}): delete it, or use another --workdir")


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Says what was asked.

    Raises:
      UserError: if the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, with_digest(json_value(record)))
    except OSError as error:
        raise UserError(f"--workdir={path.parent} cannot be written: {error.strerror}") from error


def answers_of(
    writer: AnswerWriter, rows: Sequence[Row], path: Path, seeds: Sequence[int], console: Console
) -> list[WholeAnswer]:
    """The answers to all rows; those that a file holds are not written again, and others are added to it.

    Args:
      writer: of answers.
      rows: to ask.
      path: of the file.
      seeds: that tell these rows' samples from others.
      console: for progress.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    known = _known(path, rows)
    doing = f"answering {path.stem} rows"
    if known:
        console.print(f"{doing}: {len(known):,} of {len(rows):,} are answered already")
    with console.progress(doing, len(rows)) as advance, open(path, "a", encoding="utf-8") as file:
        advance(len(known))
        for first in range(len(known), len(rows), AT_ONCE):
            part = rows[first : first + AT_ONCE]
            seed = int(np.random.SeedSequence([*seeds, first]).generate_state(1)[0])
            found = writer.write(part, seed)
            for row, answer in zip(part, found, strict=True):
                record = with_digest({"place": row["place"], **dataclasses.asdict(answer)})
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
            file.flush()
            known += found
            advance(len(part))
    return known


def _known(path: Path, rows: Sequence[Row]) -> list[WholeAnswer]:
    """What a run that was stopped has written, in whole parts; what follows is removed."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    found: list[WholeAnswer] = []
    for row, line in zip(rows, lines, strict=False):
        try:
            record = json.loads(line)
            if record["place"] != row["place"] or not (is_unchanged(record) and line.endswith(b"\n")):
                break
            found.append(WholeAnswer.from_json(record, str(path)))
        except (ValueError, KeyError, TypeError, AttributeError, UserError):
            break
    if len(found) < len(rows):
        found = found[: len(found) // AT_ONCE * AT_ONCE]
    if len(found) < len(lines):
        with open(path, "r+b") as file:
            file.truncate(sum(map(len, lines[: len(found)])))
    return found
