"""The config of `experiments.answer_confidence`."""

import dataclasses

from experiments.answer_confidence.similarity import SimilarityConfig
from lm.calibration.calibrators import CALIBRATORS
from lm.calibration.results import Settings
from lm.configuration import check_seed
from lm.data.config import ExamplesConfig
from lm.errors import UserError
from lm.inference.whole_answers import AnsweringConfig
from lm.prompting.config import PromptConfig
from lm.prompting.questions import JudgingConfig

# What may change without asking again.
FREE_TO_CHANGE = ("least_f1", "similarity", "risk", "assurance", "calibrator", "settings")


@dataclasses.dataclass(frozen=True)
class AnswerConfidenceConfig:
    """A model, asked questions.

    Attributes:
      seed: for drawing shots.
      model: work directory of a run, or a published model (hf:DIRECTORY, hf:owner/name or gguf:FILE).
      checkpoint: of a run: "best", "last" or a step.
      dtype: of a published model: "float32", "bfloat16" or "float16".
      data: the rows. Shots are drawn from those for training; calibrators and thresholds come from those for
        validation.
      prompt: for an answer.
      judging: the prompts about an answer.
      answering: how answers are chosen and sampled.
      validation_rows: how many validation rows to ask, drawn with `data.split_seed`; 0: all.
      test_rows: how many test rows; 0: all.
      least_f1: an answer is right if its F1 of words is at least this (the best of several accepted answers); 0: if it
        is equal to one after normalization.
      similarity: which answers mean the same.
      risk: the error rate that a threshold is to guarantee.
      assurance: the probability that it does.
      calibrator: that the table also shows each confidence after; see `lm.calibration.calibrators`.
      settings: bins, resamples, level of intervals, seed.
    """

    seed: int = 0
    model: str = ""
    checkpoint: str = "best"
    dtype: str = "float32"
    data: ExamplesConfig = ExamplesConfig()
    prompt: PromptConfig = PromptConfig(item="Question: {question}\nAnswer:")
    judging: JudgingConfig = JudgingConfig()
    answering: AnsweringConfig = AnsweringConfig()
    validation_rows: int = 200
    test_rows: int = 0
    least_f1: float = 0.0
    similarity: SimilarityConfig = SimilarityConfig()
    risk: float = 0.3
    assurance: float = 0.95
    calibrator: str = "temperature_bias"
    settings: Settings = Settings()

    def __post_init__(self):
        for name in ("validation_rows", "test_rows"):
            if getattr(self, name) < 0:
                raise UserError(f"config.{name} must not be negative, got {getattr(self, name)}")
        check_seed("config.seed", self.seed)
        if not 0 <= self.least_f1 <= 1:
            raise UserError(f"config.least_f1 must be in [0, 1], got {self.least_f1}")
        for name in ("risk", "assurance"):
            if not 0 < getattr(self, name) < 1:
                raise UserError(f"config.{name} must be between 0 and 1, got {getattr(self, name)}")
        if self.calibrator not in CALIBRATORS:
            raise UserError(f"config.calibrator={self.calibrator!r} is unknown; known are {', '.join(CALIBRATORS)}")
