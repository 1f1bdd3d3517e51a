"""How a model is prompted: the `prompt` part of an experiment's config."""

import dataclasses

from lm.configuration import check_seed
from lm.errors import UserError

SCORES = ("sum", "mean", "bytes", "pmi")
ORDERS = ("random", "by_class", "as_drawn")


@dataclasses.dataclass(frozen=True)
class PromptConfig:
    """How a row becomes a prompt, and what its answers are.

    A prompt is the instruction, some rows with their answers ("shots"), and the row itself up to its answer.

    Attributes:
      instruction: comes first, in a chat as the system's message; empty: none.
      item: how a row is written: {COLUMN} stands for a column of the row, {answer} for its answer (without it: at the
        end), {options} for the lettered list of answers. {{ and }} are braces. After {answer}, a model that reads from
        left to right sees the text of shots alone.
      separator: between the instruction, the shots and the row.
      answers: what a model writes for each class, as in "1= Positive". Several, separated by |, are added up.
        Classes that are not listed, all of them if it is empty, are written as their names, after a space where the
        item needs one.
      letters: answers are the letters of {options} instead.
      chat: write the prompt with the model's chat template: rows are the user's messages, answers the model's.
      shots: number of rows with answers that come first, drawn from the training rows; fewer are a subset of more.
      balanced: whether shots are drawn from each class in turn; otherwise from all rows.
      order: of the shots: "random", "by_class" (all of the first class first) or "as_drawn".
      order_seed: for their order.
      score: of an answer: "sum" (its log-probability), "mean" (per token), "bytes" (per byte of UTF-8) or "pmi" (minus
        its log-probability after `premise` alone; Holtzman et al. 2021).
      premise: what is left of a prompt without its row, for "pmi" and the calibrator of this name; empty: the last line
        before the answer.
      truncate: cut the longest column of rows that are too long for the model, and count them; otherwise they are an
        error.
    """

    instruction: str = ""
    item: str = "{text}\n"
    separator: str = "\n\n"
    answers: tuple[str, ...] = ()
    letters: bool = False
    chat: bool = False
    shots: int = 0
    balanced: bool = True
    order: str = "random"
    order_seed: int = 0
    score: str = "sum"
    premise: str = ""
    truncate: bool = False

    def __post_init__(self):
        if self.score not in SCORES:
            raise UserError(f"config.prompt.score must be one of {', '.join(SCORES)}; got {self.score!r}")
        if self.order not in ORDERS:
            raise UserError(f"config.prompt.order must be one of {', '.join(ORDERS)}; got {self.order!r}")
        if self.shots < 0:
            raise UserError(f"config.prompt.shots must not be negative, got {self.shots}")
        if isinstance(self.answers, str):
            raise UserError(f"config.prompt.answers must be a tuple, got {self.answers!r}: add a trailing comma")
        check_seed("config.prompt.order_seed", self.order_seed)
        if self.letters and self.answers:
            raise UserError("config.prompt.letters makes letters the answers: leave config.prompt.answers empty")
        for name in ("instruction", "item", "separator", "premise", "answers"):
            if "\\n" in "".join(getattr(self, name)):
                raise UserError(
                    f"config.prompt.{name} has a backslash and an n where a line break is meant: in a shell, write "
                    "$'...\\n...'"
                )
        self.words()

    def words(self) -> dict[str, tuple[str, ...]]:
        """The answers of each class that is listed.

        Raises:
          UserError: for an answer without a class or without text, and a class that is listed twice.
        """
        found: dict[str, tuple[str, ...]] = {}
        for pair in self.answers:
            name, equals, words = pair.partition("=")
            if not (name and equals and all(word.strip() for word in words.split("|"))):
                raise UserError(f"config.prompt.answers must be pairs such as '1= Positive', got {pair!r}")
            if name in found:
                raise UserError(f"config.prompt.answers names {name!r} twice: separate its answers by |")
            found[name] = tuple(words.split("|"))
        return found
