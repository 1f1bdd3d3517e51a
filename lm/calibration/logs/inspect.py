"""Logs of the UK AI Security Institute's Inspect: .eval, an archive of JSON, or .json.

An item's confidence is, as far as the log has it, the probabilities of the options' letters, the probability of the
letter that was answered, or what the model said.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from lm.calibration.logits import whole
from lm.calibration.logs.files import json_file, json_members
from lm.calibration.logs.items import (
    Choice,
    Judgement,
    Log,
    finite,
    predictions_of_choices,
    predictions_of_judgements,
)
from lm.calibration.predictions import Predictions
from lm.errors import UserError, naming

_VALUES = {"C": True, "I": False, "N": False}  # correct, incorrect, no answer
_ROUNDING = 1e-3  # nats by which a log-probability may be positive
# What may surround a letter in a token: "(A)", "**A**", and how some tokenizers write a space.
_AROUND = " \t\r\n().:*`\"'[]▁Ġ"


class _Missing(Exception):
    """A sample lacks what a kind of confidence needs."""


class _Sample(NamedTuple):
    """A sample of a log.

    Attributes:
      place: file and place in it, for messages.
      id: unique.
      cluster: its question, in whatever epoch.
      record: as logged.
      score: of the scorer that counts.
      stated: name of a confidence that the model stated.
    """

    place: str
    id: str
    cluster: str
    record: Mapping[str, Any]
    score: Mapping[str, Any]
    stated: str


def read_inspect_logs(
    paths: Sequence[Path], confidence: str = "auto", scorer: str = "", stated: str = "confidence"
) -> Log:
    """Predictions from logs of one or several tasks.

    Args:
      paths: of the files. Ids are those of samples, with the epoch if there are several, and the file's name before
        them if there are several files; clusters are samples, in whatever epoch.
      confidence: "options": probabilities of the options' letters, from the `top_logprobs` of the token that answers;
        "answer": the probability of that token, as a judgement (wrong or right) of the answer; "stated": what the
        scorer, or a solver, found the model to say, likewise; "auto": the first of these that all samples have.
      scorer: name of the one that says what is right; needed where there are several.
      stated: name of the stated confidence, in the metadata of score or sample, or in the store; from 0 to 1.

    Raises:
      UserError: if a file is no such log, or lacks scores or confidence.
    """
    if confidence not in ("auto", *CONFIDENCES):
        raise UserError(f"unknown confidence {confidence!r}; known are auto, {', '.join(CONFIDENCES)}")
    samples: list[_Sample] = []
    notes: list[str] = []
    for path in paths:
        with naming(path):
            of_path, dropped = _samples(path, scorer, stated, f"{path.stem}/" if len(paths) > 1 else "")
        samples += of_path
        if dropped:
            notes.append(f"{path}: {dropped} samples ended with an error and are left out")
    kind, predictions = _predictions(samples, tuple(CONFIDENCES) if confidence == "auto" else (confidence,))
    return Log(predictions, _DESCRIPTIONS[kind], [*notes, *_notes(predictions)])


def _predictions(samples: Sequence[_Sample], kinds: Sequence[str]) -> tuple[str, Predictions]:
    """Predictions by the first kind of confidence that all samples have."""
    reasons = []
    for kind in kinds:
        of_sample, of_items = CONFIDENCES[kind]
        try:
            return kind, of_items([of_sample(sample) for sample in samples])
        except _Missing as missing:
            reasons.append(str(missing))
    raise UserError(f"no probabilities: {'; '.join(dict.fromkeys(reasons))}")


def _notes(predictions: Predictions) -> list[str]:
    logits_NC, labels_N1 = whole(predictions.logits), predictions.labels_N[:, None]
    certain = int(np.isneginf(np.take_along_axis(np.asarray(logits_NC), labels_N1, axis=1)).sum())
    if not certain:
        return []
    measure = '--config.calibrators="()"'
    return [f"{certain} items are certain and wrong, which no calibrator can correct: measure them with {measure}"]


# --- samples ---


def _samples(path: Path, scorer: str, stated: str, prefix: str) -> tuple[list[_Sample], int]:
    """The samples that were scored, and the number of those that ended with an error."""
    found = []
    dropped = 0
    records = list(_records(path))
    several = len({record["epoch"] for _, record in records}) > 1
    for place, record in records:
        if record.get("error") is not None:
            dropped += 1
            continue
        cluster = f"{prefix}{record['id']}"
        id_ = f"{cluster}/epoch {record['epoch']}" if several else cluster
        score = _score(record, scorer, place)
        found.append(_Sample(f"{path}: {place}", id_, cluster, record, score, stated))
    if not found:
        raise UserError("it has no samples: they may have failed, or been left out with --no-log-samples")
    return found, dropped


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """A name for the place and what is needed of each sample, not its messages and events."""
    needed = ("id", "epoch", "choices", "target", "output", "scores", "metadata", "store", "error")
    for place, record in json_members(path, "samples/") if path.suffix == ".eval" else _of_json(path):
        names = isinstance(record, dict) and isinstance(record.get("id"), int | str)
        if not names or not isinstance(record.get("epoch"), int):
            raise UserError(f"{place} is not a sample with id and epoch: it is not a log of Inspect")
        yield place, {name: record[name] for name in needed if name in record}


def _of_json(path: Path) -> Iterator[tuple[str, Any]]:
    content = json_file(path)
    if not isinstance(content, dict) or "eval" not in content:
        instead = " (it seems to be lm-evaluation-harness's: name samples_*.jsonl)" if "results" in content else ""
        raise UserError(f"it is not a log of Inspect, an object with eval and samples{instead}")
    for number, record in enumerate(content.get("samples") or ()):
        yield f"sample {number}", record


def _score(record: Mapping[str, Any], scorer: str, place: str) -> Mapping[str, Any]:
    scores = record.get("scores")
    if not isinstance(scores, dict) or not scores:
        raise UserError(f"{place} has no scores: score the log first, with inspect score")
    if not scorer and len(scores) > 1:
        raise UserError(f"{place} has the scores {', '.join(scores)}: choose one with --scorer")
    name = scorer or next(iter(scores))
    if not isinstance(scores.get(name), dict):
        raise UserError(f"{place} has no score {name}, only {', '.join(scores)}")
    return scores[name]


# --- kinds of confidence ---


def _of_options(sample: _Sample) -> Choice:
    options, target = sample.record.get("choices"), sample.record.get("target")
    if not isinstance(options, list) or len(options) < 2:
        raise _Missing(f"{sample.place} has no choices")
    letters = [chr(ord("A") + number) for number in range(len(options))]
    target = target[0] if isinstance(target, list) and len(target) == 1 else target
    if target not in letters:
        raise _Missing(f"{sample.place} has no single letter as target")
    scores = [_log_prob_of(letter, _answer_token(sample).get("top_logprobs"), sample.place) for letter in letters]
    if -math.inf in scores:
        missing = letters[scores.index(-math.inf)]
        raise _Missing(f"{sample.place} has no probability of {missing} among the top_logprobs of its answer")
    return Choice(sample.id, sample.cluster, tuple(map(str, options)), tuple(scores), letters.index(target))


def _of_answer(sample: _Sample) -> Judgement:
    log_prob = _checked_log_prob(_answer_token(sample).get("logprob"), sample.place)
    return Judgement(sample.id, sample.cluster, log_prob, _is_correct(sample))


def _of_statement(sample: _Sample) -> Judgement:
    places = (sample.score.get("metadata"), sample.record.get("metadata"), sample.record.get("store"))
    found = [place[sample.stated] for place in places if isinstance(place, dict) and sample.stated in place]
    if not found:
        raise _Missing(f"{sample.place} has no {sample.stated} in the metadata of its score")
    value = finite(found[0], sample.place, sample.stated)
    if not 0 <= value <= 1:
        raise UserError(f"{sample.place}: {sample.stated} is {value:g}, not from 0 to 1: divide percentages by 100")
    return Judgement(sample.id, sample.cluster, math.log(value) if value else -math.inf, _is_correct(sample))


def _is_correct(sample: _Sample) -> bool:
    value = sample.score.get("value")
    if isinstance(value, str) and value in _VALUES:
        return _VALUES[value]
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    raise UserError(f"{sample.place}: its score is {str(value)[:40]!r}, neither right (C, 1) nor wrong (I, 0)")


def _answer_token(sample: _Sample) -> Mapping[str, Any]:
    """The last token of the output that is the letter of the answer, with its log-probabilities."""
    answer = sample.score.get("answer")
    if not isinstance(answer, str) or len(answer) != 1:
        raise _Missing(f"{sample.place} has no letter as answer of its score")
    try:
        tokens = sample.record["output"]["choices"][0]["logprobs"]["content"]
        matching = [token for token in tokens if token["token"].strip(_AROUND) == answer]
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise _Missing(f"{sample.place} has no logprobs in its output: evaluate with --logprobs") from error
    if not matching:
        # As where a solver shuffles the options, so that the letter that was written is another one.
        raise _Missing(f"{sample.place} has no token {answer}, its answer, among the logprobs of its output")
    return matching[-1]


def _log_prob_of(letter: str, top: Any, place: str) -> float:
    """The log-probability of all tokens that are this letter; -inf without any."""
    if not isinstance(top, list) or not all(isinstance(token, dict) for token in top):
        return -math.inf
    found = [token.get("logprob") for token in top if str(token.get("token")).strip(_AROUND) == letter]
    return float(special.logsumexp([_checked_log_prob(each, place) for each in found])) if found else -math.inf


def _checked_log_prob(value: Any, place: str) -> float:
    log_prob = finite(value, place, "a logprob")
    if log_prob > _ROUNDING:
        raise UserError(f"{place}: a logprob is {log_prob:g}; the logarithm of a probability is at most 0")
    return min(log_prob, 0.0)


CONFIDENCES: Mapping[str, tuple[Callable[[_Sample], Any], Callable[[Sequence[Any]], Predictions]]] = {
    "options": (_of_options, predictions_of_choices),
    "answer": (_of_answer, predictions_of_judgements),
    "stated": (_of_statement, predictions_of_judgements),
}
_DESCRIPTIONS = {
    "options": "the options' letters",
    "answer": "the letter that was answered, as a judgement of the answer",
    "stated": "the model's statement, as a judgement of the answer",
}
