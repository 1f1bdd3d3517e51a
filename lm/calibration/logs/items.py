"""What logs say of single items, put together as predictions.

Axes: N items, C options.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lm.calibration.inputs import repeated_name
from lm.calibration.predictions import JUDGEMENTS, Predictions
from lm.errors import UserError


class Choice(NamedTuple):
    """A choice among options.

    Attributes:
      id: unique.
      cluster: the document or question, which other items may share.
      options: their texts.
      scores: a log-probability for each option, up to a constant.
      label: the number of the right one.
    """

    id: str
    cluster: str
    options: tuple[str, ...]
    scores: tuple[float, ...]
    label: int


class Judgement(NamedTuple):
    """An answer that was given.

    Attributes:
      id: unique.
      cluster: the question, which other items may share.
      log_confidence: log-probability of being right.
      correct: whether it is.
    """

    id: str
    cluster: str
    log_confidence: float
    correct: bool


class Log(NamedTuple):
    """A log that was read.

    Attributes:
      predictions: of its items.
      confidence: what their probabilities are of.
      notes: what a reader of results should know, one sentence each.
    """

    predictions: Predictions
    confidence: str
    notes: list[str]


def predictions_of_choices(items: Sequence[Choice]) -> Predictions:
    """Predictions of items with any numbers of options; options that an item lacks have logit -inf.

    Classes have names if all items have the same options.

    Raises:
      UserError: if there are no items, or two have the same id.
    """
    ids = _checked_ids(items)
    most = max(len(item.options) for item in items)
    logits_NC = np.full((len(items), most), -np.inf, np.float32)
    for number, item in enumerate(items):
        # In float32, sums of log-probabilities of long options would tie; their differences don't.
        logits_NC[number, : len(item.scores)] = np.array(item.scores) - max(item.scores)
    names = items[0].options
    # "wrong" and "right" as options would be taken for a judgement.
    named = len(set(names)) == len(names) and names != JUDGEMENTS and all(item.options == names for item in items)
    return Predictions(
        logits_NC,
        np.array([item.label for item in items], np.int32),
        np.array(ids),
        np.array([item.cluster for item in items]),
        names if named else None,
    )


def predictions_of_judgements(items: Sequence[Judgement]) -> Predictions:
    """Predictions of the classes "wrong" and "right" for answers that were given.

    Raises:
      UserError: if there are no items, or two have the same id.
    """
    ids = _checked_ids(items)
    log_right_N = np.array([item.log_confidence for item in items])
    with np.errstate(divide="ignore"):
        log_wrong_N = np.log(-np.expm1(log_right_N))
    return Predictions(
        np.stack([log_wrong_N, log_right_N], axis=1),
        np.array([item.correct for item in items], np.int32),
        np.array(ids),
        np.array([item.cluster for item in items]),
        JUDGEMENTS,
    )


def finite(value: object, place: str, name: str) -> float:
    """A number, or the text of one, that may be -inf.

    Raises:
      UserError: for anything else.
    """
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]  # whatever a log has
    except (TypeError, ValueError):
        number = math.nan
    if math.isnan(number) or number == math.inf:
        raise UserError(f"{place}: {name} must be a number, not {str(value)[:40]!r}")
    return number


def _checked_ids(items: Sequence[Choice] | Sequence[Judgement]) -> list[str]:
    if not items:
        raise UserError("it has no items")
    ids = [item.id for item in items]
    if (repeated := repeated_name(ids)) is not None:
        raise UserError(f"the item {repeated} is there twice: name each log once, and logs of one task one by one")
    return ids
