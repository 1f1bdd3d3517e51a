"""A language model that answers questions in its own words, samples other answers, and judges the one it gave."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from lm.configuration import check_seed, from_config_dict
from lm.console import QUIET
from lm.decoding.sampling import SamplingConfig
from lm.errors import UserError
from lm.inference.answer_scorers import WritingScorer
from lm.inference.language_models import GeneratedText, LanguageModel
from lm.inference.prompted_classifier import check_answers
from lm.prompting.answer_confidence import ChosenAnswer, WrittenAnswer, choose_greedy, choose_majority, p_true
from lm.prompting.prompts import Prompt
from lm.prompting.questions import QuestionPrompting
from lm.tasks.supervised import Row

CHOICES = ("greedy", "majority")


@dataclasses.dataclass(frozen=True)
class AnsweringConfig:
    """How answers are chosen and sampled: the `answering` part of a config.

    Attributes:
      choose: "greedy", judged by all samples, or "majority": the most frequent answer of as many further samples
        (Wang et al. 2023).
      samples: that judge.
      temperature: of all samples.
      top_p: of all samples.
      max_new_tokens: of an answer.
      stop: strings at which an answer ends.
      seed: of the samples.
    """

    choose: str = "greedy"
    samples: int = 10
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 16
    stop: tuple[str, ...] = ("\n",)
    seed: int = 0

    def __post_init__(self):
        if self.choose not in CHOICES:
            raise UserError(f"config.answering.choose must be one of {', '.join(CHOICES)}; got {self.choose!r}")
        if self.samples < 2:
            raise UserError(f"config.answering.samples must be at least 2, got {self.samples}: they judge the answer")
        if self.temperature <= 0:
            raise UserError("config.answering.temperature must be positive: greedy samples are all the same")
        check_seed("config.answering.seed", self.seed)
        if isinstance(self.stop, str):
            raise UserError(f"config.answering.stop must be a tuple, got {self.stop!r}: add a trailing comma")
        _ = self.sampling

    @property
    def sampling(self) -> SamplingConfig:
        """Of all samples, those that choose included."""
        return SamplingConfig(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            stop=self.stop,
            samples=self.samples * (2 if self.choose == "majority" else 1),
            seed=self.seed,
        )


@dataclasses.dataclass(frozen=True)
class WholeAnswer:
    """The answer to a question, and what is known of it before anyone says whether it is right.

    Attributes:
      greedy: the greedy answer.
      samples: in the order in which they were drawn; with "majority" the first half of them chose.
      choose: as in `AnsweringConfig`.
      judged: log-probabilities of the words for no and yes, after the prompt for P(True); empty without one.
      stated: what the model wrote when it was asked how sure it is; None without that.
    """

    greedy: WrittenAnswer
    samples: tuple[WrittenAnswer, ...]
    choose: str
    judged: tuple[float, ...] = ()
    stated: str | None = None

    @property
    def chosen(self) -> ChosenAnswer:
        """The answer, and the samples that may judge it."""
        return choose_greedy(self.greedy, self.samples) if self.choose == "greedy" else choose_majority(self.samples)

    @property
    def log_p_true(self) -> float | None:
        """The log-probability of yes among no and yes; None without a prompt for it."""
        return p_true(self.judged[1], self.judged[0]) if self.judged else None

    @property
    def label_mass(self) -> float | None:
        """The probability that the model says no or yes at all."""
        return min(float(np.exp(self.judged).sum()), 1.0) if self.judged else None

    @classmethod
    def from_json(cls, values: dict[str, Any], prefix: str) -> "WholeAnswer":
        """From what `dataclasses.asdict` makes.

        Raises:
          UserError: if they are something else.
        """
        samples = tuple(from_config_dict(WrittenAnswer, each, prefix) for each in values["samples"])
        greedy = from_config_dict(WrittenAnswer, values["greedy"], prefix)
        return cls(greedy, samples, str(values["choose"]), tuple(map(float, values["judged"])), values["stated"])


@dataclasses.dataclass(frozen=True)
class AnswerWriter:
    """A language model that answers questions.

    Attributes:
      model: in use.
      prompting: how it is asked.
      config: how it answers.

    Raises:
      UserError: for a model that does not write.
    """

    model: LanguageModel
    prompting: QuestionPrompting
    config: AnsweringConfig = AnsweringConfig()

    def __post_init__(self):
        if not isinstance(self.model, LanguageModel):
            raise UserError(f"{self.model.kind} cannot write answers: use a model that generates text")

    def check(self, rows: Sequence[Row]) -> None:
        """Checks that the model can read what it will be asked, with an answer of full length.

        Raises:
          UserError: for a prompt that is too long, or words for P(True) that cannot be told apart.
        """
        judging, room = self.prompting.judging, self._scorer.room
        longest = self.config.max_new_tokens
        prompts = {0: [self.prompting.ask(row) for row in rows]}
        if judging.item:
            prompts[1] = [self.prompting.judge(row, "x") for row in rows]
            check_answers(prompts[1][:1], self._scorer.encode(prompts[1][:1]), begins=self.model.continues)
        if judging.stated:
            prompts[2] = [self.prompting.ask_how_sure(row, "x") for row in rows]
        for kind, asked in prompts.items():
            new = longest + (judging.tokens if kind else 0)
            for row, tokens in zip(rows, self._tokens(asked), strict=True):
                if len(tokens) + new > room:
                    raise UserError(
                        f"{row['place']}: the prompt has {len(tokens)} tokens and the answer up to {new}, and the "
                        f"model reads {room}: shorten the row, use fewer shots, or lower "
                        "config.answering.max_new_tokens"
                    )

    def shown(self, row: Row) -> str:
        """A row's prompt as text, which ends at a bar."""
        prompt = self.prompting.ask(row)
        if not prompt.messages:
            return f"{prompt.before}|"
        return f"{self.model.tokenizer.decode(self._tokens([prompt])[0], skip_special_tokens=False)}|"

    def write(self, rows: Sequence[Row], seed: int) -> list[WholeAnswer]:
        """Answers, samples and judgements of rows, which depend on these rows, their order and the seed alone.

        Raises:
          UserError: for a prompt that is too long.
        """
        tokens = self._tokens([self.prompting.ask(row) for row in rows])
        sampling = dataclasses.replace(self.config.sampling, seed=seed)
        greedy = self._written(tokens, dataclasses.replace(sampling, temperature=0.0, top_p=1.0, samples=1))
        drawn = self._written(tokens, sampling)
        count = sampling.samples
        found = [
            WholeAnswer(each, tuple(drawn[count * number : count * (number + 1)]), self.config.choose)
            for number, each in enumerate(greedy)
        ]
        texts = [each.chosen.answer.text for each in found]
        judged = self._judged(rows, texts) if self.prompting.judging.item else [()] * len(rows)
        stated = self._stated(rows, texts) if self.prompting.judging.stated else [None] * len(rows)
        return [
            dataclasses.replace(each, judged=of_words, stated=text)
            for each, of_words, text in zip(found, judged, stated, strict=True)
        ]

    def _judged(self, rows: Sequence[Row], answers: Sequence[str]) -> list[tuple[float, ...]]:
        prompts = [self.prompting.judge(row, answer) for row, answer in zip(rows, answers, strict=True)]
        return [tuple(scores.tolist()) for scores in self._scorer.log_probs(self._scorer.encode(prompts), QUIET)]

    def _stated(self, rows: Sequence[Row], answers: Sequence[str]) -> list[str]:
        prompts = [self.prompting.ask_how_sure(row, answer) for row, answer in zip(rows, answers, strict=True)]
        how = SamplingConfig(max_new_tokens=self.prompting.judging.tokens, temperature=0.0, stop=("\n",))
        return [written.text for written in self._written(self._tokens(prompts), how)]

    def _written(self, tokens: Sequence[Sequence[int]], how: SamplingConfig) -> list[WrittenAnswer]:
        return [_answer(each) for each in self.model.generate_tokens([""] * len(tokens), tokens, how)]

    def _tokens(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        plain = [dataclasses.replace(prompt, answers=()) for prompt in prompts]
        return [list(each.tokens) for each in self._scorer.encode(plain)]

    @property
    def _scorer(self) -> WritingScorer:
        return WritingScorer(self.model)


def _answer(written: GeneratedText) -> WrittenAnswer:
    return WrittenAnswer(written.text.strip(), tuple(round(float(each), 6) for each in written.log_probs))
