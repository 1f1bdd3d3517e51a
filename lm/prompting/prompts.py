"""From rows to prompts and the answers that a model may give to them."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np

from lm.errors import UserError
from lm.prompting.config import PromptConfig
from lm.prompting.templates import LETTERS, Template
from lm.tasks.supervised import Columns, Row

OPTIONS = "options"  # the column of rows that have answers of their own


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What a model reads, up to its answer.

    Attributes:
      before: the text before the answer.
      after: the text after it, for models that read both sides.
      messages: the same as a conversation; empty without a chat template.
      answers: what it may answer, for each class; a class that is no option of the row has none.
    """

    before: str
    after: str
    messages: tuple[Mapping[str, str], ...]
    answers: tuple[tuple[str, ...], ...]

    @property
    def numbered_answers(self) -> list[tuple[int, str]]:
        """Every answer with the number of its class."""
        return [(number, text) for number, texts in enumerate(self.answers) for text in texts]


@dataclasses.dataclass(frozen=True)
class Prompting:
    """A way to prompt.

    Attributes:
      config: its settings.
      classes: names of the C classes; of rows with options of their own, the letters of their places.
      own_options: whether rows have options of their own.
      shots: rows with answers that come first.

    Raises:
      UserError: if settings do not go together.
    """

    config: PromptConfig
    classes: tuple[str, ...]
    own_options: bool = False
    shots: tuple[Row, ...] = ()

    def __post_init__(self):
        if unknown := self.config.words().keys() - set(self.classes):
            raise UserError(
                f"config.prompt.answers names {min(unknown)!r}, which is not among the classes "
                f"{', '.join(self.classes)}"
            )
        if self.own_options and self.config.answers:
            raise UserError("config.prompt.answers is for fixed classes, but the rows have options: leave it empty")
        if self.config.letters and not self.template.lists_options:
            raise UserError("config.prompt.letters needs {options} in config.prompt.item: write where the list comes")
        if self.config.letters and len(self.classes) > len(LETTERS):
            raise UserError(f"config.prompt.letters has {len(LETTERS)} letters for {len(self.classes)} classes")

    @functools.cached_property
    def digest(self) -> str:
        """A digest of everything that determines its prompts."""
        shots = [{name: value for name, value in shot.items() if name != "place"} for shot in self.shots]
        known = [dataclasses.asdict(self.config), self.classes, self.own_options, shots]
        return hashlib.blake2b(json.dumps(known, sort_keys=True).encode(), digest_size=4).hexdigest()

    @functools.cached_property
    def template(self) -> Template:
        """The template of a row."""
        return Template(self.config.item)

    def prompt(self, row: Row) -> Prompt:
        """The prompt of a row, whose label it does not look at."""
        before, after = self._fill(row)
        config = self.config
        answers = tuple(self._answers(row, number) for number in range(len(self.classes)))
        if config.chat:
            return Prompt("", "", (*self._first_messages, {"role": "user", "content": before}), answers)
        texts = [config.instruction] if config.instruction else []
        texts += [self._shot(shot) for shot in self.shots]
        return Prompt(config.separator.join([*texts, before]), after, (), answers)

    def premise(self, row: Row) -> Prompt:
        """What is left of a prompt without its row, and the row's answers."""
        empty = {**row, **dict.fromkeys(self.template.columns, "")}
        text = self.config.premise or self._fill(empty)[0].rstrip("\n").rpartition("\n")[2]
        messages = ({"role": "user", "content": text},) if self.config.chat else ()
        return Prompt("" if messages else text, "", messages, self.prompt(row).answers)

    def label(self, row: Row) -> int:
        """The number of a row's class, or of its right option.

        A label of rows with options is the text of one, or its letter, or its number from 0.

        Raises:
          UserError: if it is none of them.
        """
        label, names = row["label"], row[OPTIONS] if self.own_options else self.classes
        if label in names:
            return list(names).index(label)
        if self.own_options:
            for keys in (LETTERS[: len(names)], [str(number) for number in range(len(names))]):
                if label in keys:
                    return list(keys).index(label)
        what = "options" if self.own_options else "classes"
        raise UserError(f"{row['place']}: the label {label!r} is not among the {what} {', '.join(names)}: fix the row")

    @functools.cached_property
    def _first_messages(self) -> tuple[Mapping[str, str], ...]:
        messages = [{"role": "system", "content": self.config.instruction}] if self.config.instruction else []
        for shot in self.shots:
            messages.append({"role": "user", "content": self._fill(shot)[0]})
            messages.append({"role": "assistant", "content": self._answers(shot, self.label(shot))[0]})
        return tuple(messages)

    def _shot(self, shot: Row) -> str:
        before, after = self._fill(shot)
        return before + self._answers(shot, self.label(shot))[0] + after

    def _fill(self, row: Row) -> tuple[str, str]:
        options = row[OPTIONS] if self.own_options else self.classes
        return self.template.fill(row, options)

    def _answers(self, row: Row, number: int) -> tuple[str, ...]:
        """The answers that stand for a class; none if the row has fewer options."""
        space = "" if self.config.chat or self._ends_in_space else " "
        if self.own_options and number >= len(row[OPTIONS]):
            return ()
        if self.config.letters:
            return (space + LETTERS[number],)
        if self.own_options:
            return (space + row[OPTIONS][number],)
        name = self.classes[number]
        words = self.config.words().get(name, (space + name,))
        return tuple(word.strip() for word in words) if self.config.chat else words

    @functools.cached_property
    def _ends_in_space(self) -> bool:
        """Whether the template has white space before the answer, or nothing but a column."""
        before, _ = self.template.fill(dict.fromkeys(self.template.columns, "x"), ("x",))
        return before[-1:].isspace()


def columns_of(config: PromptConfig, own_options: bool = False) -> Columns:
    """The columns that rows must have, `label` among them."""
    return Columns((*Template(config.item).columns, *([OPTIONS] if own_options else []), "label"))


def domain_texts(texts: Sequence[str], count: int, seed: int) -> list[str]:
    """Texts of random words, as long as texts of the domain are on average (Fei et al. 2023, section 3.2).

    Args:
      texts: of the domain.
      count: how many to make.
      seed: for drawing the words.
    """
    words = [word for text in texts for word in text.split()]
    length = max(1, round(len(words) / max(len(texts), 1)))
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(words, length)) for _ in range(count)]
