"""From rows with questions to prompts: for an answer, for whether a proposed one is right, and for how sure that is."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

from lm.errors import UserError
from lm.prompting.config import PromptConfig
from lm.prompting.prompts import Prompt
from lm.prompting.templates import Template
from lm.tasks.supervised import Columns, Row

ANSWER = "answer"  # the column of accepted answers
PROPOSED = "proposed"  # where a judged answer stands
_FOR_CLASSES = ("answers", "letters", "score", "premise", "truncate")


@dataclasses.dataclass(frozen=True)
class JudgingConfig:
    """How a model is asked about an answer that was given: the `judging` part of a config.

    Attributes:
      item: asks whether an answer is right, as `PromptConfig.item`, with {proposed} for the answer; empty: no P(True).
      true: what the model writes if it is.
      false: what it writes if not.
      stated: asks for a percentage; empty: no stated confidence.
      tokens: of a stated confidence, at most.
    """

    item: str = "Question: {question}\nProposed answer: {proposed}\nIs the proposed answer true or false?\nIt is"
    true: str = " true"
    false: str = " false"
    stated: str = (
        "Question: {question}\nProposed answer: {proposed}\n"
        "How likely is it that the proposed answer is right, from 0% to 100%?\nProbability:"
    )
    tokens: int = 8

    def __post_init__(self):
        if not (self.true.strip() and self.false.strip()) or self.true.strip() == self.false.strip():
            raise UserError("config.judging.true and config.judging.false must be two different words")
        if self.tokens < 1:
            raise UserError(f"config.judging.tokens must be at least 1, got {self.tokens}")
        for name in ("item", "stated"):
            text = getattr(self, name)
            if text and PROPOSED not in Template(text).columns:
                raise UserError(f"config.judging.{name} has no {{{PROPOSED}}}: write where the answer to judge comes")


@dataclasses.dataclass(frozen=True)
class QuestionPrompting:
    """A way to ask questions.

    Attributes:
      config: of the prompt for an answer.
      judging: of those about an answer.
      shots: rows with answers that come first; their first accepted answer is shown.

    Raises:
      UserError: for settings that are about classes.
    """

    config: PromptConfig
    judging: JudgingConfig = JudgingConfig()
    shots: tuple[Row, ...] = ()

    def __post_init__(self):
        for field in dataclasses.fields(PromptConfig):
            if field.name in _FOR_CLASSES and getattr(self.config, field.name) != field.default:
                raise UserError(f"config.prompt.{field.name} is for prompts with classes to choose from: leave it out")
        if self._template.lists_options:
            raise UserError("config.prompt.item has {options}, but a question has none here: leave it out")

    @property
    def columns(self) -> Columns:
        """The columns that rows must have."""
        texts = (self.judging.item, self.judging.stated)
        names = [name for text in texts if text for name in Template(text).columns if name != PROPOSED]
        return Columns(tuple(dict.fromkeys((*self._template.columns, *names, ANSWER))))

    def ask(self, row: Row) -> Prompt:
        """The prompt for an answer to a row's question, of which it does not look at the accepted answers."""
        turns = [(self._filled(shot), self._answer(shot[ANSWER][0])) for shot in self.shots]
        return self._prompt([self.config.instruction], turns, self._filled(row))

    def judge(self, row: Row, answer: str) -> Prompt:
        """The prompt for whether an answer is right; its classes are the words for no and yes.

        Shots come with their own answer, which is right, and that of the next one, which is not, in turn.
        """
        words = tuple((self._answer(word),) for word in (self.judging.false, self.judging.true))
        turns = []
        for number, shot in enumerate(self.shots):
            is_right = number % 2 == 0 or len(self.shots) == 1
            source = shot if is_right else self.shots[(number + 1) % len(self.shots)]
            turns.append((self._proposing(self.judging.item, shot, source[ANSWER][0]), words[int(is_right)][0]))
        prompt = self._prompt([], turns, self._proposing(self.judging.item, row, answer))
        return dataclasses.replace(prompt, answers=words)

    def ask_how_sure(self, row: Row, answer: str) -> Prompt:
        """The prompt for a percentage; without shots, whose confidences nobody knows."""
        return self._prompt([], [], self._proposing(self.judging.stated, row, answer))

    @functools.cached_property
    def _template(self) -> Template:
        return Template(self.config.item)

    def _filled(self, row: Row) -> str:
        return self._template.fill(row)[0]

    def _proposing(self, item: str, row: Row, answer: str) -> str:
        return Template(item).fill({**row, PROPOSED: answer})[0]

    def _answer(self, text: str) -> str:
        """As it is written after a prompt: white space before it is part of it."""
        return text.strip() if self.config.chat else f" {text.strip()}"

    def _prompt(self, instructions: Sequence[str], turns: Sequence[tuple[str, str]], last: str) -> Prompt:
        instructions = [text for text in instructions if text]
        if not self.config.chat:
            texts = [*instructions, *(asked + answer for asked, answer in turns), last]
            return Prompt(self.config.separator.join(texts), "", (), ())
        messages: list[Mapping[str, str]] = [{"role": "system", "content": text} for text in instructions]
        for asked, answer in turns:
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        return Prompt("", "", (*messages, {"role": "user", "content": last}), ())
