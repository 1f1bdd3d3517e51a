"""Models that classify: texts, words, or spans that answer a question.

Axes: N rows, W words, C classes.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from scipy import special

from lm.errors import UserError
from lm.inference.model_in_use import as_list
from lm.inference.task_model import Predicted, TaskModel
from lm.tasks import span_extraction
from lm.tasks.span_extraction import answer_results
from lm.tasks.supervised import Example, Results, Row
from lm.tasks.token_classification import OUTSIDE, word_logits


@dataclasses.dataclass(frozen=True)
class Classification:
    """The class of a text.

    Attributes:
      label: the likeliest class, by calibrated probabilities if there are any.
      confidence: its probability.
      probabilities: of each class, from the model.
      calibrated_probabilities: of each class; None without a calibrator.
    """

    label: str
    confidence: float
    probabilities: dict[str, float]
    calibrated_probabilities: dict[str, float] | None

    def to_json(self) -> dict[str, Any]:
        """By the names that evaluations use."""
        found = {
            "predicted": self.label,
            "confidence": self.confidence,
            "probabilities": self.probabilities,
            "calibrated_probabilities": self.calibrated_probabilities,
        }
        return {name: value for name, value in found.items() if value is not None}


@dataclasses.dataclass(frozen=True)
class Tagging:
    """The tags of a sentence's words. Words that did not fit into the model are tagged "O", with NaN probabilities.

    Attributes:
      words: of the sentence.
      tags: the likeliest tag of each word, by calibrated probabilities if there are any.
      confidence_W: their probabilities.
      probabilities_WC: of each tag, from the model.
      calibrated_probabilities_WC: of each tag; None without a calibrator.
    """

    words: tuple[str, ...]
    tags: tuple[str, ...]
    confidence_W: np.ndarray
    probabilities_WC: np.ndarray
    calibrated_probabilities_WC: np.ndarray | None

    def to_json(self) -> dict[str, Any]:
        """By the names that evaluations use."""
        return {"predicted": list(self.tags), "confidence": self.confidence_W.tolist()}


@dataclasses.dataclass(frozen=True)
class Answer:
    """The answer to a question.

    Attributes:
      text: a span of the context; "" for no answer.
      probability: of this answer among all candidates, from the model.
      calibrated_probability: that the answer is right (an exact match); None without a calibrator.
    """

    text: str
    probability: float
    calibrated_probability: float | None

    @property
    def confidence(self) -> float:
        """The calibrated probability where there is one."""
        return self.probability if self.calibrated_probability is None else self.calibrated_probability

    def to_json(self) -> dict[str, Any]:
        """By the names that evaluations use."""
        found = {"predicted": self.text, "confidence": self.confidence, "probability": self.probability}
        return found if self.calibrated_probability is not None else {k: found[k] for k in ("predicted", "confidence")}


class _Chooser(TaskModel):
    """A model with class probabilities, which a calibrator can change."""

    def _probabilities(self, logits_NC: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Raw and calibrated."""
        raw_NC = special.softmax(logits_NC, axis=-1)
        if self.calibrator is None:
            return raw_NC, None
        return raw_NC, special.softmax(np.asarray(self.calibrator.apply(logits_NC)), axis=-1)


class Classifier(_Chooser):
    """Classifies texts, or pairs of texts."""

    kind: ClassVar[str] = "a classifier"
    uses: ClassVar[tuple[str, ...]] = ("predict", "embed")

    def predict(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, truncate: bool | None = None
    ) -> list[Classification]:
        """The class of each text.

        Args:
          texts: to classify, or the first texts of pairs.
          pairs: the second texts, for a run with `config.task.pair`.
          truncate: truncate texts that are too long for the model; None: as in training.

        Raises:
          UserError: for a text that is too long, or if pairs are missing or unexpected.
        """
        if self.task.config.pair != (pairs is not None):
            wanted = "pairs of texts: predict(texts, pairs)" if pairs is None else "single texts: predict(texts)"
            raise UserError(f"this run classifies {wanted}")
        rows = self._rows("text", text=texts, **({} if pairs is None else {"pair": pairs}))
        return self.predict_rows(rows, truncate).predictions

    def predict_rows(self, rows: Sequence[Row], truncate: bool | None = None) -> Predicted:
        """`Classification`s of rows with `text`, and `pair` if the run has pairs."""
        if not rows:
            return Predicted([], 0)
        encoded = self._encoded(rows, truncate)
        logits_NC = np.stack([output["logits"] for output in self._predicted(encoded)])
        raw_NC, calibrated_NC = self._probabilities(logits_NC)
        best_NC = raw_NC if calibrated_NC is None else calibrated_NC
        found = [
            Classification(
                self.classes[best_NC[n].argmax()],
                float(best_NC[n].max()),
                self._named(raw_NC[n]),
                None if calibrated_NC is None else self._named(calibrated_NC[n]),
            )
            for n in range(len(rows))
        ]
        return Predicted(found, encoded.cut)

    def _named(self, probabilities_C: np.ndarray) -> dict[str, float]:
        return dict(zip(self.classes, probabilities_C.tolist(), strict=True))


class Tagger(_Chooser):
    """Tags the words of sentences."""

    kind: ClassVar[str] = "a tagger"
    uses: ClassVar[tuple[str, ...]] = ("predict", "embed")

    def predict(self, sentences: Sequence[str | Sequence[str]], truncate: bool | None = None) -> list[Tagging]:
        """The tags of each sentence's words.

        Args:
          sentences: lists of words; a text is split at white space.
          truncate: leave out words that do not fit into the model; None: as in training.

        Raises:
          UserError: for a sentence that is too long or has no words.
        """
        words = [
            sentence.split() if isinstance(sentence, str) else list(sentence)
            for sentence in as_list(sentences, "sentences")
        ]
        return self.predict_rows(self._rows("sentence", words=words), truncate).predictions

    def predict_rows(self, rows: Sequence[Row], truncate: bool | None = None) -> Predicted:
        """`Tagging`s of rows with `words`."""
        for row in rows:
            if not row["words"]:
                raise UserError(f"{row['place']} has no words: leave it out")
        if not rows:
            return Predicted([], 0)
        encoded = self._encoded(rows, truncate)
        logits = word_logits(encoded.examples, self._predicted(encoded))
        found = [self._tagging(tuple(row["words"]), each) for row, each in zip(rows, logits, strict=True)]
        return Predicted(found, encoded.cut)

    def _tagging(self, words: tuple[str, ...], logits_WC: np.ndarray) -> Tagging:
        cut = len(words) - len(logits_WC)
        raw_WC, calibrated_WC = self._probabilities(logits_WC)
        best_WC = raw_WC if calibrated_WC is None else calibrated_WC
        tags = [self.classes[number] for number in best_WC.argmax(axis=1)] + [OUTSIDE] * cut

        def whole(array: np.ndarray) -> np.ndarray:
            return np.pad(array, ((0, cut), (0, 0)), constant_values=np.nan)

        confidence_W = whole(best_WC.max(axis=1, keepdims=True))[:, 0]
        calibrated_WC = None if calibrated_WC is None else whole(calibrated_WC)
        return Tagging(words, tuple(tags), confidence_W, whole(raw_WC), calibrated_WC)


class QuestionAnswerer(_Chooser):
    """Answers questions by spans of a context."""

    kind: ClassVar[str] = "a question answerer"
    uses: ClassVar[tuple[str, ...]] = ("predict", "embed")

    @property
    def choices(self) -> int:
        """Two, wrong and right: calibrators are fitted to the correctness of answers."""
        return 2

    def predict(self, questions: Sequence[str], contexts: Sequence[str], truncate: bool | None = None) -> list[Answer]:
        """The answer to each question in its context.

        Args:
          questions: texts.
          contexts: equally many texts, of any length.
          truncate: truncate questions that leave too little room for the context; None: as in training.

        Raises:
          UserError: for a question that is too long, or a context without words.
        """
        return self.predict_rows(self._rows("question", question=questions, context=contexts), truncate).predictions

    def predict_rows(self, rows: Sequence[Row], truncate: bool | None = None) -> Predicted:
        """`Answer`s to rows with `question` and `context`."""
        if not rows:
            return Predicted([], 0)
        encoded = self._encoded(rows, truncate)
        answers = self.task.answers(rows, encoded.examples, self._predicted(encoded))
        right_N = [None] * len(rows) if self.calibrator is None else np.exp(self._calibrated(answers)[:, 1]).tolist()
        found = [
            Answer(answer.text, float(np.exp(answer.log_p)), right)
            for answer, right in zip(answers, right_N, strict=True)
        ]
        return Predicted(found, encoded.cut)

    def _results(self, rows: Sequence[Row], examples: Sequence[Example], outputs: Sequence[dict[str, Any]]) -> Results:
        answers = self.task.answers(rows, examples, outputs)
        if self.calibrator is not None:
            calibrated_N2 = self._calibrated(answers)
            pairs = zip(answers, calibrated_N2, strict=True)
            answers = [answer._replace(log_not_p=wrong, log_p=right) for answer, (wrong, right) in pairs]
        return answer_results(rows, answers)

    def _calibrated(self, answers: Sequence[span_extraction.Answer]) -> np.ndarray:
        """Log-probabilities that each answer is wrong, and right, [N, 2]."""
        assert self.calibrator is not None
        logits_N2 = np.array([(answer.log_not_p, answer.log_p) for answer in answers], np.float32)
        return special.log_softmax(np.asarray(self.calibrator.apply(logits_N2), np.float64), axis=-1)
