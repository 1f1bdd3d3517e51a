"""From log-probabilities of answers to those of classes.

Axes: N rows, C classes.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from lm.configuration import from_config_dict


@dataclasses.dataclass(frozen=True)
class AnswerScores:
    """What a model makes of every answer to one prompt.

    Attributes:
      log_probs: of each answer, summed over its tokens, in nats.
      tokens: number of tokens of each.
      bytes: length of each in UTF-8, without white space around it.
      classes: the number of the class of each.
      before: log-probabilities after the premise alone; empty where the score does not need them.
      is_cut: whether the row was cut to fit.
    """

    log_probs: tuple[float, ...]
    tokens: tuple[int, ...]
    bytes: tuple[int, ...]
    classes: tuple[int, ...]
    before: tuple[float, ...] = ()
    is_cut: bool = False

    def normalized(self, score: str) -> np.ndarray:
        """The log-probabilities as `PromptConfig.score` says.

        Raises:
          ValueError: for "pmi" without `before`.
        """
        log_probs = np.array(self.log_probs)
        if score == "mean":
            return log_probs / np.array(self.tokens)
        if score == "bytes":
            return log_probs / np.array(self.bytes)
        if score == "pmi":
            return log_probs - np.array(self.before)
        return log_probs

    @classmethod
    def from_json(cls, values: dict[str, Any], prefix: str) -> "AnswerScores":
        """From what `dataclasses.asdict` makes.

        Raises:
          UserError: if they are something else.
        """
        return from_config_dict(cls, values, prefix)


class LabelScores(NamedTuple):
    """What a model makes of the classes of each row.

    Attributes:
      logits_NC: log-probabilities of the classes, normalized over them, float32; -inf for what is no option.
      mass_N: the probability that the text goes on with one of the answers.
      is_cut_N: which rows were cut to fit.
    """

    logits_NC: np.ndarray
    mass_N: np.ndarray
    is_cut_N: np.ndarray


def label_scores(answers: Sequence[AnswerScores], classes: int, score: str = "sum") -> LabelScores:
    """The scores of classes, each the sum over its answers.

    Args:
      answers: of the N rows.
      classes: C.
      score: as `PromptConfig.score`.
    """
    scores_NC = np.full((len(answers), classes), -np.inf)
    for scores_C, row in zip(scores_NC, answers, strict=True):
        np.logaddexp.at(scores_C, list(row.classes), row.normalized(score))
    return LabelScores(
        special.log_softmax(scores_NC, axis=1).astype(np.float32),
        np.array([min(np.exp(row.log_probs).sum(), 1.0) for row in answers]),
        np.array([row.is_cut for row in answers], bool),
    )
