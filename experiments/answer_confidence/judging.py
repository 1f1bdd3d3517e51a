"""Answers that were written, judged: whether each is right, and how sure the model was of it in every way.

Axes: N rows.
"""

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.answer_confidence.similarity import SimilarityConfig, same_meanings
from lm.calibration.predictions import Predictions, judgements
from lm.evaluation.spans import span_metrics
from lm.inference.whole_answers import WholeAnswer
from lm.prompting.answer_confidence import of_samples, of_writing, stated_confidence
from lm.tasks.supervised import Row

_LITTLE_MASS = 0.1


@dataclasses.dataclass(frozen=True)
class JudgedAnswer:
    """The answer to one row.

    Attributes:
      place: of the row, its id.
      cluster: a digest of its context; empty without one.
      question: of the row.
      accepted: answers.
      answer: that was given.
      right: whether it is.
      tokens: of the answer, the one that ends it included.
      log_confidence: log-probabilities that it is right, by the names of `lm.prompting.answer_confidence.KINDS`.
      label_mass: of the words for yes and no; None without P(True).
      stated: what the model wrote when asked for a percentage; None if it was not.
    """

    place: str
    cluster: str
    question: str
    accepted: tuple[str, ...]
    answer: str
    right: bool
    tokens: int
    log_confidence: Mapping[str, float]
    label_mass: float | None
    stated: str | None


def judged_answers(
    rows: Sequence[Row], answers: Sequence[WholeAnswer], similarity: SimilarityConfig, least_f1: float
) -> list[JudgedAnswer]:
    """Judges the answers to rows.

    Args:
      rows: that were asked.
      answers: to them.
      similarity: which answers mean the same.
      least_f1: as in the experiment's config.

    Raises:
      UserError: if the model of similarity cannot be used.
    """
    chosen = [answer.chosen for answer in answers]
    right_N = is_right([each.answer.text for each in chosen], [row["answer"] for row in rows], least_f1)
    texts = [[each.answer.text, *(judge.text for judge in each.judges)] for each in chosen]
    same = same_meanings(similarity, [row["question"] for row in rows], texts)
    found = []
    for number, (row, answer, each) in enumerate(zip(rows, answers, chosen, strict=True)):
        confidence = of_writing(each.answer) | of_samples(each, same[number] if same else None) | _said(answer)
        found.append(
            JudgedAnswer(
                place=row["place"],
                cluster=_digest(row["context"]) if "context" in row else "",
                question=row["question"],
                accepted=tuple(row["answer"]),
                answer=each.answer.text,
                right=bool(right_N[number]),
                tokens=len(each.answer.log_probs),
                log_confidence=confidence,
                label_mass=answer.label_mass,
                stated=answer.stated,
            )
        )
    return found


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def is_right(answers: Sequence[str], accepted: Sequence[Sequence[str]], least_f1: float) -> np.ndarray:
    """Which answers are right, bool [N].

    They equal an accepted answer after normalization or, unless `least_f1` is 0, have so much F1 of words with one.
    """
    metrics = span_metrics(answers, accepted)
    exact_N, f1_N = (metrics[name].statistics_NK[:, 0] for name in ("exact_match", "f1"))
    return f1_N >= least_f1 if least_f1 else exact_N == 1


def _said(answer: WholeAnswer) -> dict[str, float]:
    """What the model says of its answer; nothing where it was not asked, or said no percentage."""
    found = {} if answer.log_p_true is None else {"p_true": answer.log_p_true}
    stated = None if answer.stated is None else stated_confidence(answer.stated)
    return found if stated is None else found | {"stated": math.log(stated)}


def predictions_of(answers: Sequence[JudgedAnswer], kind: str) -> Predictions | None:
    """One kind of confidence, of the answers that have it; None if none has."""
    having = [answer for answer in answers if kind in answer.log_confidence]
    if not having:
        return None
    return judgements(
        np.array([answer.log_confidence[kind] for answer in having]),
        np.array([answer.right for answer in having]),
        np.array([answer.place for answer in having]),
        np.array([answer.cluster for answer in having]) if all(answer.cluster for answer in having) else None,
    )


def notes_on(answers: Mapping[str, Sequence[JudgedAnswer]]) -> tuple[str, ...]:
    """What limits the confidences, as lines.

    Args:
      answers: by split, "test" among them.
    """
    notes = []
    masses = [answer.label_mass for answer in answers["test"] if answer.label_mass is not None]
    if masses and (mass := float(np.mean(masses))) < _LITTLE_MASS:
        notes.append(
            f"yes and no have {mass:.1%} of the probability after the prompt for P(True), so the model expects other "
            "text: change config.judging"
        )
    for name, some in answers.items():
        asked = [answer for answer in some if answer.stated is not None]
        without = [answer.stated for answer in asked if "stated" not in answer.log_confidence]
        if without:
            notes.append(
                f"{len(without):,} of {len(asked):,} stated confidences of {name} rows are not percentages, such as "
                f"{without[0]!r:.40}; these rows are left out there"
            )
    return tuple(notes)
