"""Sample logs of EleutherAI's lm-evaluation-harness, as `--log_samples` writes them: a line for each item.

Multiple choice has log-likelihoods of its options, whose softmax are the probabilities. Tasks that generate text or
score a single continuation have none.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lm.calibration.logs.files import json_lines
from lm.calibration.logs.items import Choice, Log, finite, predictions_of_choices
from lm.errors import UserError, naming

# How options of other lengths are made comparable, and the harness's name for accuracy by it.
NORMALIZATIONS = {
    "sum": "acc",
    "characters": "acc_norm",
    "bytes": "acc_bytes",
    "mutual_information": "acc_mutual_info",
}
_DESCRIPTIONS = {
    "sum": "summed over tokens",
    "characters": "divided by characters",
    "bytes": "divided by bytes",
    "mutual_information": "minus those without context",
}
_UNCONDITIONAL = "acc_mutual_info"  # items with this metric have each option once more, without context


class _Row(NamedTuple):
    """An item.

    Attributes:
      place: in the file, for messages.
      id: unique.
      cluster: its document.
      options: texts of the options.
      log_probs: of the options.
      unconditional: of the options without context, or ().
      target: as logged.
      accuracies: by the harness's names.
    """

    place: str
    id: str
    cluster: str
    options: tuple[str, ...]
    log_probs: tuple[float, ...]
    unconditional: tuple[float, ...]
    target: str
    accuracies: Mapping[str, float]

    @property
    def fills_in(self) -> bool:
        """Whether options differ in their contexts instead of their continuations, as in Winogrande."""
        return len(set(self.options)) == 1


def read_harness_logs(paths: Sequence[Path], normalization: str = "sum") -> Log:
    """Predictions from samples_*.jsonl of one or several tasks.

    Args:
      paths: of the files. Ids are those of documents, with the task's name before them if there are several files;
        clusters are documents, which tasks may share.
      normalization: "sum" of the log-probabilities of an option's tokens, as in acc; divided by its number of
        "characters" (acc_norm) or "bytes" (acc_bytes), without the white space before it; or minus its log-probability
        without context ("mutual_information").

    Raises:
      UserError: if a file is no such log, or has no log-likelihoods of options.
    """
    if normalization not in NORMALIZATIONS:
        raise UserError(f"unknown normalization {normalization!r}; known are {', '.join(NORMALIZATIONS)}")
    items: list[Choice] = []
    notes: list[str] = []
    for path in paths:
        with naming(path):
            rows, filters = _rows(path, f"{_task(path)}/" if len(paths) > 1 else "")
            scores = [_scores(row, normalization) for row in rows]
            labels = _labels(rows)
        items += [
            Choice(row.id, row.cluster, row.options, of_options, label)
            for row, of_options, label in zip(rows, scores, labels, strict=True)
        ]
        notes += [f"{path}: {note}" for note in _notes(rows, scores, labels, normalization, filters)]
    described = f"the options' log-likelihoods, {_DESCRIPTIONS[normalization]}"
    return Log(predictions_of_choices(items), described, notes)


def _task(path: Path) -> str:
    found = re.fullmatch(r"samples_(.+?)(_\d{4}-\d\d-\d\dT[\d.-]+)?", path.stem)
    return found[1] if found else path.stem


# --- a line ---


def _rows(path: Path, prefix: str) -> tuple[list[_Row], list[str]]:
    """The items by the first of the task's filters, and the names of all filters."""
    rows = []
    filters: dict[str, None] = {}
    for place, record in json_lines(path):
        if not isinstance(record, dict) or not {"doc_id", "arguments", "target"} <= record.keys():
            raise UserError(f"{place} has no doc_id, arguments and target: name samples_*.jsonl, of --log_samples")
        filters.setdefault(str(record.get("filter", "none")))
        if len(filters) == 1 or str(record.get("filter", "none")) == next(iter(filters)):
            rows.append(_row(record, place, prefix))
    if not rows:
        raise UserError("it has no lines")
    return rows, list(filters)


def _row(record: Mapping[str, Any], place: str, prefix: str) -> _Row:
    pairs = _pairs(record["arguments"], place)
    log_probs = _log_probs(record, len(pairs), place)
    accuracies = {name: float(record[name]) for name in NORMALIZATIONS.values() if record.get(name) in (0, 1)}
    count = len(pairs)
    if _UNCONDITIONAL in accuracies and count % 2 == 0 and all(context == "" for context, _ in pairs[count // 2 :]):
        count //= 2
    if count < 2:
        raise UserError(f"{place} scores a single continuation: confidence needs a choice of at least two")
    id_ = f"{prefix}{record['doc_id']}"
    options = tuple(continuation.strip() or continuation for _, continuation in pairs[:count])
    document = str(record.get("doc_hash", id_))
    target = str(record["target"])
    return _Row(place, id_, document, options, log_probs[:count], log_probs[count:], target, accuracies)


def _pairs(arguments: Any, place: str) -> list[tuple[str, str]]:
    """The contexts and continuations of a line's requests; older versions wrote them as lists."""
    if isinstance(arguments, dict):
        arguments = [list(each.values()) if isinstance(each, dict) else each for each in arguments.values()]
    if not isinstance(arguments, list) or not all(isinstance(each, list | tuple) for each in arguments):
        raise UserError(f"{place}: arguments must be lists of a context and a continuation")
    for each in arguments:
        if len(each) < 2 or not all(isinstance(text, str) for text in each[:2]):
            raise UserError(f"{place} has no options with log-likelihoods: its task generates or scores whole texts")
    return [(each[0], each[1]) for each in arguments]


def _log_probs(record: Mapping[str, Any], count: int, place: str) -> tuple[float, ...]:
    """The log-likelihood of each request, from pairs of it and whether it is greedy."""
    responses = record.get("filtered_resps")
    if not isinstance(responses, list) or not all(isinstance(each, list | tuple) and each for each in responses):
        raise UserError(f"{place} has no log-likelihoods in filtered_resps: write the log again with --log_samples")
    if len(responses) != count:
        raise UserError(f"{place} has {len(responses)} log-likelihoods for {count} options: write the log again")
    found = tuple(finite(each[0], place, "a log-likelihood") for each in responses)
    if max(found) == -np.inf:
        raise UserError(f"{place}: all its options have probability 0")
    return found


# --- scores and labels ---


def _scores(row: _Row, normalization: str) -> tuple[float, ...]:
    if normalization == "sum":
        return row.log_probs
    if normalization == "mutual_information":
        if not row.unconditional:
            raise UserError(f"{row.place} has no options without context: add acc_mutual_info to the task's metrics")
        return tuple(np.subtract(row.log_probs, row.unconditional).tolist())
    lengths = [len(option if normalization == "characters" else option.encode()) for option in row.options]
    if not all(lengths):
        raise UserError(f"{row.place} has an empty option, which has no {normalization}: use the sum")
    return tuple(np.divide(row.log_probs, lengths).tolist())


def _labels(rows: Sequence[_Row]) -> list[int]:
    """The right option of each item.

    A log writes a target as text, be it the number of an option or one of the options, which may be numbers too. Of two
    readings the one is taken that agrees with the accuracies.
    """
    readings = [[reading(row) for row in rows] for reading in _READINGS]
    best = min(readings, key=lambda labels: (labels.count(None), _disagreements(rows, labels)))
    if None in best:
        row = rows[best.index(None)]
        if re.fullmatch(r"\[.*,.*\]", row.target):
            raise UserError(f"{row.place}: {row.target} are several right options, and predictions have one label")
        options = ", ".join(row.options)
        raise UserError(f"{row.place}: its target {row.target[:60]!r} is not one of its options {options[:200]}")
    return [label for label in best if label is not None]


def _by_number(row: _Row) -> int | None:
    is_number = row.target.isdecimal() and len(row.target) < 10 and not row.fills_in
    return int(row.target) if is_number and int(row.target) < len(row.options) else None


def _by_text(row: _Row) -> int | None:
    text = row.target.strip()
    return row.options.index(text) if text in row.options and not row.fills_in else None


def _by_accuracy(row: _Row) -> int | None:
    """For contexts that are filled in: the log names no right one, but of two, accuracy tells which it is."""
    if not row.fills_in or len(row.options) != 2 or "acc" not in row.accuracies:
        return None
    predicted = int(np.argmax(row.log_probs))
    return predicted if row.accuracies["acc"] else 1 - predicted


_READINGS: tuple[Callable[[_Row], int | None], ...] = (_by_number, _by_text, _by_accuracy)


def _disagreements(rows: Sequence[_Row], labels: Sequence[int | None], metric: str = "acc") -> int:
    pairs = [(row, label) for row, label in zip(rows, labels, strict=True) if metric in row.accuracies]
    return sum((np.argmax(row.log_probs) == label) != row.accuracies[metric] for row, label in pairs)


def _notes(
    rows: Sequence[_Row],
    scores: Sequence[tuple[float, ...]],
    labels: Sequence[int],
    normalization: str,
    filters: Sequence[str],
) -> list[str]:
    notes = []
    metric = NORMALIZATIONS[normalization]
    rescored = [row._replace(log_probs=of_options) for row, of_options in zip(rows, scores, strict=True)]
    if differing := _disagreements(rescored, labels, metric):
        notes.append(
            f"the log's {metric} differs in {differing} of {len(rows)} items: its task has rules of its own for what "
            "is right, or for the length of an option"
        )
    if len(filters) > 1:
        notes.append(f"there are {len(filters)} filters; only items of {filters[0]} are used")
    return notes
