"""Which answers to a question mean the same, by a sentence encoder or by a classifier of entailment.

Axes: A texts, D width of a vector.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from lm.errors import UserError
from lm.inference.classifiers import Classifier
from lm.inference.load import load
from lm.inference.model_in_use import ModelInUse
from lm.prompting.answer_confidence import SameMeaning, same_by_entailment, same_vector


@dataclasses.dataclass(frozen=True)
class SimilarityConfig:
    """How it is decided that two answers mean the same: the `similarity` part of a config.

    Attributes:
      model: a sentence encoder, whose vectors are compared, or a classifier of pairs, for entailment in both
        directions; empty: only the same words count.
      least_cosine: of the vectors of two answers that mean the same.
      entailment: the class that says that the first text entails the second.
      with_question: whether texts are the question and an answer; otherwise the answer alone.
    """

    model: str = ""
    least_cosine: float = 0.8
    entailment: str = "entailment"
    with_question: bool = False

    def __post_init__(self):
        if not -1 <= self.least_cosine <= 1:
            raise UserError(f"config.similarity.least_cosine must be in [-1, 1], got {self.least_cosine}")


def same_meanings(
    config: SimilarityConfig, questions: Sequence[str], answers: Sequence[Sequence[str]]
) -> list[SameMeaning] | None:
    """What decides for each question which answers mean the same; None without a model.

    Args:
      config: how.
      questions: as text.
      answers: to each of them, all that will be compared.

    Raises:
      UserError: if the model cannot be loaded, or neither embeds texts nor classifies pairs.
    """
    if not config.model:
        return None
    try:
        model = load(config.model)
    except UserError as error:
        raise UserError(f"config.similarity.model={config.model}: {error}") from error
    before = [f"{question} " if config.with_question else "" for question in questions]
    if isinstance(model, Classifier):
        entails = _entailment(config, model)
        return [functools.partial(_entailed, start, entails) for start in before]
    texts = list(dict.fromkeys(start + text for start, of in zip(before, answers, strict=True) for text in of if text))
    vectors = dict(zip(texts, model.embed(texts, truncate=True), strict=True))
    return [functools.partial(_close, start, vectors, config.least_cosine) for start in before]


def _close(before: str, vectors: dict[str, np.ndarray], least_cosine: float, texts: Sequence[str]) -> np.ndarray:
    """An empty answer is like another empty one alone."""
    width = next(iter(vectors.values())).size if vectors else 1
    nothing_A = np.array([not text for text in texts])
    vectors_AD = np.stack([vectors[before + text] if text else np.zeros(width) for text in texts])
    return np.where(
        nothing_A[:, None] | nothing_A, nothing_A[:, None] & nothing_A, same_vector(vectors_AD, least_cosine)
    )


def _entailed(before: str, entails: Callable, texts: Sequence[str]) -> np.ndarray:
    return same_by_entailment([before + text for text in texts], entails)


def _entailment(config: SimilarityConfig, model: ModelInUse) -> Callable[[Sequence[tuple[str, str]]], list[bool]]:
    if config.entailment not in model.classes:
        raise UserError(
            f"config.similarity.entailment={config.entailment!r} is not among the classes of {config.model}: "
            f"{', '.join(model.classes)}"
        )
    return lambda pairs: [
        found.label == config.entailment
        for found in model.predict([one for one, _ in pairs], [other for _, other in pairs], truncate=True)
    ]
