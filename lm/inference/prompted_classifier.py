"""Prompted models: what a language model would answer, as probabilities of classes.

The logits are z = log p(answer | prompt) - log sum over the answers, whatever the model gives to other text; the share
that the answers have of all text, the label mass, is kept beside them: a small one shows that the model expects
something else there.

Axes: N rows, C classes, K priors.
"""

import bisect
import dataclasses
import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np
from scipy import special

from lm.console import QUIET, Console
from lm.data.config import ExamplesConfig
from lm.errors import UserError
from lm.inference.answer_scorers import AnswerScorer, EncodedPrompt, scorer_of
from lm.inference.classifiers import Classification
from lm.inference.language_models import LanguageModel
from lm.inference.masked_language_model import MaskedLanguageModel
from lm.inference.task_model import Measured, Predicted, TaskModel
from lm.models.decoder_lm import DecoderLM
from lm.prompting.answer_scores import AnswerScores, LabelScores, label_scores
from lm.prompting.prompts import Prompt, Prompting, columns_of
from lm.statistics.metrics import SHARE, mean_metric
from lm.tasks.sequence_classification import classification_results
from lm.tasks.supervised import Columns, Row

Scorer = LanguageModel | MaskedLanguageModel

CONTENT_FREE = ("N/A", "[MASK]", "")  # Zhao et al. 2021


@dataclasses.dataclass(frozen=True)
class PromptedClassification(Classification):
    """The class of a text, from a prompted model.

    Attributes:
      label_mass: the probability that the text goes on with one of the answers.
    """

    label_mass: float

    def to_json(self) -> dict[str, Any]:
        """By the names that evaluations use."""
        return super().to_json() | {"label_mass": self.label_mass}


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class PromptedClassifier(TaskModel):
    """A language model that is prompted to choose among classes.

    Attributes:
      scorer: the model.
      prompting: how it is prompted.
      prompted_data: how rows were read.
    """

    kind: ClassVar[str] = "a prompted model"
    uses: ClassVar[tuple[str, ...]] = ("predict", "embed")

    scorer: Scorer
    prompting: Prompting
    prompted_data: ExamplesConfig = ExamplesConfig()

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.prompting.classes

    @functools.cached_property
    def digest(self) -> str:
        """A digest of the parameters and of the prompt: a calibrator is for both."""
        return f"{self.scorer.digest}-{self.prompting.digest}"

    @property
    def data(self) -> ExamplesConfig:
        """How rows were read."""
        return self.prompted_data

    @property
    def columns(self) -> Columns:
        """The columns of rows."""
        return columns_of(self.prompting.config, self.prompting.own_options)

    def predict(self, texts: Sequence[str], truncate: bool | None = None) -> list[PromptedClassification]:
        """The class of each text, where the template has one column.

        Args:
          texts: as in the column.
          truncate: cut texts that are too long; None: as the prompt's config says.

        Raises:
          UserError: for a text that is too long, and a template with several columns.
        """
        names = columns_of(self.prompting.config, self.prompting.own_options).needed[:-1]
        if len(names) > 1:
            raise UserError(
                f"the prompt has the columns {', '.join(names)}: use predict_rows, with rows that have them"
            )
        return self.predict_rows(self._rows("text", **{names[0]: texts}), truncate).predictions

    def predict_rows(self, rows: Sequence[Row], truncate: bool | None = None) -> Predicted:
        """`PromptedClassification`s of rows."""
        scores = self.score(rows, truncate)
        raw_NC = np.exp(scores.logits_NC)
        best_NC = raw_NC if self.calibrator is None else special.softmax(self._calibrated(scores.logits_NC), axis=1)
        found = [
            PromptedClassification(
                self.classes[best_C.argmax()],
                float(best_C.max()),
                self._by_name(raw_C),
                None if self.calibrator is None else self._by_name(best_C),
                float(mass),
            )
            for raw_C, best_C, mass in zip(raw_NC, best_NC, scores.mass_N, strict=True)
        ]
        return Predicted(found, int(scores.is_cut_N.sum()))

    def measure(self, rows: Sequence[Row], batch_size: int = 0, console: Console = QUIET) -> Measured:
        """Metrics of rows with labels, the mean label mass among them."""
        return self.measured(rows, self.score(rows, None, console))

    def measured(self, rows: Sequence[Row], scores: LabelScores) -> Measured:
        """The same, of rows that are already scored."""
        logits_NC = scores.logits_NC if self.calibrator is None else self._calibrated(scores.logits_NC)
        named = [{**row, "label": self.classes[self.prompting.label(row)]} for row in rows]
        results = classification_results(named, logits_NC, self.classes)
        assert results.predictions is not None
        mass = mean_metric(scores.mass_N, better="higher", limits=SHARE)
        columns = ("place", *self.prompting.template.columns)
        records = [
            {**{name: row[name] for name in columns}, **record, "label_mass": float(each)}
            for row, record, each in zip(rows, results.records, scores.mass_N, strict=True)
        ]
        results = dataclasses.replace(
            results,
            metrics={**results.metrics, "label_mass": mass},
            records=records,
            predictions=self._signed(results.predictions),
        )
        return Measured(results, int(scores.is_cut_N.sum()))

    def score(self, rows: Sequence[Row], truncate: bool | None = None, console: Console = QUIET) -> LabelScores:
        """The model's own scores of the classes, without a calibrator. Arguments and errors as for `answer_scores`."""
        return self.label_scores(self.answer_scores(rows, truncate, console))

    def label_scores(self, answers: Sequence[AnswerScores]) -> LabelScores:
        """The scores of the classes, from those of answers."""
        return label_scores(answers, len(self.classes), self.prompting.config.score)

    def answer_scores(
        self, rows: Sequence[Row], truncate: bool | None = None, console: Console = QUIET
    ) -> list[AnswerScores]:
        """The model's own scores of the answers to each row.

        Args:
          rows: with the template's columns.
          truncate: cut rows that are too long; None: as the prompt's config says.
          console: for progress.

        Raises:
          UserError: for a row that is too long, and answers that cannot be told apart.
        """
        truncate = self.prompting.config.truncate if truncate is None else truncate
        prompts, is_cut_N = self._read(rows, truncate)
        premises = self._scorer.log_probs(self._premises(rows), QUIET)
        scored = self._scorer.log_probs(prompts, console)
        return [
            # One premise serves all rows that have the same answers.
            _scores_of(prompt, log_probs, premises[number % len(premises)] if premises else (), bool(is_cut))
            for number, (prompt, log_probs, is_cut) in enumerate(zip(prompts, scored, is_cut_N, strict=True))
        ]

    def check(self, rows: Sequence[Row]) -> None:
        """Checks that rows can be scored, without scoring them.

        Raises:
          UserError: as `score` does, and for a label that is no class.
        """
        for row in rows:
            self.prompting.label(row)
        self._read(rows, self.prompting.config.truncate)

    def shown(self, row: Row) -> str:
        """A row's prompt as text, a mark where the answer comes, and the answers."""
        prompt = self.prompting.prompt(row)
        text = prompt.before
        if prompt.messages:
            text = self.tokenizer.decode(self._scorer.encode([prompt])[0].tokens, skip_special_tokens=False)
        answers = " ".join(repr(answer) for _, answer in prompt.numbered_answers)
        return f"{text}|{prompt.after if isinstance(self.scorer, MaskedLanguageModel) else ''}\n{answers}"

    def rows_of_texts(self, texts: Sequence[str]) -> list[Row]:
        """Rows that have each text in all columns, for priors."""
        return [{**dict.fromkeys(self.prompting.template.columns, text), "place": repr(text)} for text in texts]

    def premise_scores(self, rows: Sequence[Row]) -> list[AnswerScores]:
        """Scores of the answers after the premise alone, whatever the template's columns hold."""
        prompts = self._scorer.encode([self.prompting.premise(row) for row in rows])
        return [
            _scores_of(prompt, log_probs, log_probs)
            for prompt, log_probs in zip(prompts, self._scorer.log_probs(prompts, QUIET), strict=True)
        ]

    def _premises(self, rows: Sequence[Row]) -> list[EncodedPrompt]:
        if self.prompting.config.score != "pmi":
            return []
        prompts = [self.prompting.premise(row) for row in (rows if self.prompting.own_options else rows[:1])]
        return self._scorer.encode(prompts)

    def _read(self, rows: Sequence[Row], truncate: bool) -> tuple[list[EncodedPrompt], np.ndarray]:
        """The rows' prompts, and which rows were cut."""
        prompts = [self.prompting.prompt(row) for row in rows]
        encoded = self._scorer.encode(prompts)
        check_answers(prompts, encoded, begins=not self.prompting.own_options and isinstance(self.model, DecoderLM))
        is_cut_N = np.zeros(len(rows), bool)
        for number, (row, each) in enumerate(zip(rows, encoded, strict=True)):
            if each.length > self._scorer.room:
                if not truncate:
                    raise self._too_long(row, each)
                encoded[number], is_cut_N[number] = self._shortened(row), True
        return encoded, is_cut_N

    def _shortened(self, row: Row) -> EncodedPrompt:
        """The prompt of a row whose longest column is cut at its end, as far as needed."""
        columns = self.prompting.template.columns
        longest = max(columns, key=lambda name: len(row[name]))

        def encoded(characters: int) -> EncodedPrompt:
            text = row[longest][:characters].rstrip()
            return self._scorer.encode([self.prompting.prompt({**row, longest: text})])[0]

        # More characters are never fewer tokens, but for a few at the end.
        fitting = bisect.bisect_right(range(len(row[longest])), self._scorer.room, key=lambda n: encoded(n).length)
        if not fitting:
            raise self._too_long(row, encoded(0))
        return encoded(fitting - 1)

    def _too_long(self, row: Row, prompt: EncodedPrompt) -> UserError:
        instead = "use fewer shots" if self.prompting.shots else "shorten it"
        return UserError(
            f"{row['place']}: the prompt has {prompt.length} tokens with its longest answer, and the model reads "
            f"{self._scorer.room}: {instead}, or set config.prompt.truncate=True to cut the row"
        )

    @functools.cached_property
    def _scorer(self) -> AnswerScorer:
        return scorer_of(self.scorer)

    def _calibrated(self, logits_NC: np.ndarray) -> np.ndarray:
        assert self.calibrator is not None
        return np.asarray(self.calibrator.apply(logits_NC))

    def _by_name(self, p_C: np.ndarray) -> dict[str, float]:
        return {name: float(p) for name, p in zip(self.classes, p_C, strict=True)}


def _scores_of(
    prompt: EncodedPrompt, log_probs: Iterable[float], before: Iterable[float], is_cut: bool = False
) -> AnswerScores:
    return AnswerScores(
        tuple(map(float, log_probs)),
        tuple(map(len, prompt.answers)),
        prompt.bytes,
        prompt.classes,
        tuple(map(float, before)),
        is_cut,
    )


def check_answers(prompts: Sequence[Prompt], encoded: Sequence[EncodedPrompt], begins: bool) -> None:
    """Checks that the answers of each prompt exclude each other.

    Args:
      prompts: with their answers.
      encoded: the same as tokens.
      begins: whether an answer that begins another one includes it.

    Raises:
      UserError: if one has no tokens, two are the same, or one begins another.
    """
    for texts, tokens in dict.fromkeys(
        (tuple(text for _, text in prompt.numbered_answers), each.answers)
        for prompt, each in zip(prompts, encoded, strict=True)
    ):
        _check_answers(texts, tokens, begins)


def _check_answers(texts: Sequence[str], tokens: Sequence[tuple[int, ...]], begins: bool) -> None:
    for text, ids in zip(texts, tokens, strict=True):
        if not ids:
            raise UserError(f"config.prompt.answers: the tokenizer makes no tokens of {text!r}: use another answer")
    for (one, ids), (other, longer) in itertools.permutations(zip(texts, tokens, strict=True), 2):
        if ids == longer:
            raise UserError(f"config.prompt.answers: {one!r} and {other!r} are the same tokens: change one")
        if begins and ids == longer[: len(ids)]:
            raise UserError(
                f"config.prompt.answers: {one!r} begins {other!r}, so its probability includes that of the other: use "
                f"other words, or end them all alike, as in {one + chr(10)!r}"
            )
