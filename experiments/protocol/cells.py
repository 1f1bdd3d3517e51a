"""Cells of the protocol table: one method in one setting, under one way to score answers.

Axes: N test items, M items to fit to, C classes.
"""

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np
from scipy import special

from experiments.protocol.settings import Setting
from lm.calibration.binning import Binning
from lm.calibration.calibrators import fit
from lm.calibration.inputs import InputError
from lm.calibration.outcomes import outcomes
from lm.calibration.predictions import Predictions
from lm.calibration.priors import PRIORS
from lm.errors import UserError
from lm.prompting.answer_scores import AnswerScores, label_scores
from lm.prompting.score_files import read_scores
from lm.runs.work_directory import WorkDirectory

SCORES = ("sum", "mean", "bytes")
UNCALIBRATED = "none"
METHODS = (
    UNCALIBRATED,
    "contextual",
    "domain_context",
    "pmi",
    "batch_probabilities",
    "shift",
    "prototypical",
)
# The same method through the links that were published for it.
PUBLISHED = {
    "difference": {
        "contextual": "contextual_difference",
        "domain_context": "domain_context_difference",
        "batch_probabilities": "batch_difference",
    },
    "ratio": {"contextual": "contextual_ratio", "domain_context": "domain_context_ratio"},
}
AFTER = ("", "temperature", "temperature_bias")
BINNING = Binning(15)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
      setting: how the model was prompted.
      method: a calibrator that needs no labels, or `UNCALIBRATED`.
      score: of an answer.
      link: "" for the one link; otherwise a key of `PUBLISHED`.
      after: the calibrator that is fitted to labels after the method; "" for none.
    """

    setting: Setting
    method: str
    score: str = "sum"
    link: str = ""
    after: str = ""


@dataclasses.dataclass(frozen=True)
class Measured:
    """The test items of a cell, [N] each.

    Attributes:
      confidence_N: of the predicted class.
      correct_N: whether it is right.
      nll_N: negative log-likelihood of the label, in nats.
      brier_N: the Brier score.
    """

    confidence_N: np.ndarray
    correct_N: np.ndarray
    nll_N: np.ndarray
    brier_N: np.ndarray

    @property
    def accuracy(self) -> float:
        """Share that is right."""
        return float(self.correct_N.mean())

    @property
    def nll(self) -> float:
        """Mean, in nats."""
        return float(self.nll_N.mean())


class Cells:
    """Computes cells from the scores of runs, and remembers them."""

    def __init__(self, runs: Mapping[Setting, WorkDirectory]):
        """Nothing is read yet."""
        self.runs = runs
        self.notes: list[str] = []
        self.measured = functools.cache(self._measure)
        self.calibrated = functools.cache(self._calibrate)
        self.scored = functools.cache(self._score)
        self.answers = functools.cache(self._read_answers)
        self._predictions = functools.cache(self._read_predictions)

    def _measure(self, cell: Cell) -> Measured | None:
        """The test items of a cell; None if the method cannot be used there, which is noted."""
        method = PUBLISHED[cell.link][cell.method] if cell.link else cell.method
        try:
            fit_part, test_part = self.calibrated(cell.setting, cell.score, method)
            if cell.after:
                fitted = fit(cell.after, fit_part.logits, fit_part.labels_N)
                test_part = dataclasses.replace(test_part, logits=np.asarray(fitted.apply(test_part.logits)))
        except InputError as error:
            self.notes.append(f"{cell.setting.name}, {cell.score}, {method}: left out, since {error}")
            return None
        found = outcomes(test_part.labels_N, logits=test_part.logits)
        return Measured(*(np.asarray(getattr(found, field.name), np.float64) for field in dataclasses.fields(Measured)))

    def _calibrate(self, setting: Setting, score: str, method: str) -> tuple[Predictions, Predictions]:
        """The items to fit to and the test items after a method that needs no labels."""
        fit_part, test_part = self.scored(setting, score)
        if method == UNCALIBRATED:
            return fit_part, test_part
        fitted = fit(method, fit_part.logits, priors=fit_part.priors)
        return tuple(
            dataclasses.replace(part, logits=np.asarray(fitted.apply(part.logits))) for part in (fit_part, test_part)
        )

    def _score(self, setting: Setting, score: str) -> tuple[Predictions, Predictions]:
        """The items to fit to and the test items with the classes' log-probabilities under a way to score."""
        directory = self.runs[setting]
        priors = {
            name: label_scores(list(found.values()), self._classes(setting), score).logits_NC
            for name in PRIORS
            if (found := read_scores(directory.scores(f"prior_{name}")))
        }
        parts = []
        for split in ("validation", "test"):
            known, scores = self._predictions(setting, split), self.answers(setting, split)
            logits_NC = label_scores(scores, known.logits.shape[1], score).logits_NC
            parts.append(dataclasses.replace(known, logits=logits_NC, priors=priors))
        return parts[0], parts[1]

    def unnormalized(self, setting: Setting) -> Measured:
        """The test items with the probability of the answer as it is, not renormalized over the answers."""
        scores, known = self.answers(setting, "test"), self._predictions(setting, "test")
        p_NC = np.zeros(known.logits.shape)
        for p_C, each in zip(p_NC, scores, strict=True):
            np.add.at(p_C, list(each.classes), np.exp(each.log_probs))
        p_NC = np.minimum(p_NC, 1)
        labels_N = known.labels_N
        of_label_N = np.take_along_axis(p_NC, labels_N[:, None], axis=1)[:, 0]
        return Measured(
            p_NC.max(axis=1),
            (p_NC.argmax(axis=1) == labels_N).astype(np.float64),
            -special.log1p(of_label_N - 1),
            np.square(p_NC).sum(axis=1) - 2 * of_label_N + 1,
        )

    def _read_answers(self, setting: Setting, split: str) -> list[AnswerScores]:
        """What the model makes of the answers to each row, in the order of the predictions.

        Raises:
          UserError: if scores are missing.
        """
        path = self.runs[setting].scores(split)
        found = read_scores(path)
        items = len(self._predictions(setting, split))
        if len(found) != items:
            raise UserError(f"{path} holds {len(found)} of {items} rows: delete the run's folder and run again")
        return list(found.values())

    def _read_predictions(self, setting: Setting, split: str) -> Predictions:
        return Predictions.load(self.runs[setting].predictions / f"{split}.npz")

    def _classes(self, setting: Setting) -> int:
        return self._predictions(setting, "test").logits.shape[1]
