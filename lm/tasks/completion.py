"""Completion of prompts by a decoder, such as answers to instructions: only the completion counts for the loss.

Axes: B batch, T positions, N rows, K statistics.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from lm.calibration.predictions import judgements
from lm.decoding.beam_search import BeamSearchConfig
from lm.errors import UserError
from lm.models.decoder_lm import DecoderLM
from lm.tasks.sequence_to_sequence import SequenceToSequence
from lm.tasks.supervised import Example, Results, Row
from lm.tasks.target_models import TargetModel, target_model


@dataclasses.dataclass(frozen=True)
class Completion(SequenceToSequence):
    """A completion follows its prompt directly; a long prompt keeps its end.

    Completions are generated greedily. A model is calibrated if its completions are right, word for word, as often as
    it finds them probable.

    Attributes:
      model: a decoder.
      config: of the task.
      tokenizer: has an end-of-text token, which precedes each prompt and follows each completion.
    """

    settings: ClassVar[tuple[str, ...]] = ("truncate", "label_smoothing", "max_target_length", "metric_tokenizer")
    continues: ClassVar[bool] = True
    text_columns: ClassVar[tuple[str, str]] = ("prompt", "completion")
    first_metrics: ClassVar[tuple[str, ...]] = ("exact_match", "perplexity")

    def __post_init__(self):
        if not isinstance(self.model, DecoderLM):
            raise UserError(
                "config.task.name=completion needs config.model.architecture=decoder, got "
                f"{self.model.config.architecture}: change it, or choose config.task.name=sequence_to_sequence"
            )
        super().__post_init__()

    @functools.cached_property
    def _target_model(self) -> TargetModel:
        return target_model(self.model, self.tokenizer, separate=False)

    def results(self, rows: Sequence[Row], examples: Sequence[Example], outputs: Sequence[dict[str, Any]]) -> Results:
        """As `SequenceToSequence.results`, with predictions that judge how probable each completion is to be right.

        That is the probability of the whole completion, its end included.
        """
        results = super().results(rows, examples, outputs)
        log_p_N = np.array([output["log_probs"][: output["lengths"]].sum(dtype=np.float64) for output in outputs])
        right_N = results.metrics["exact_match"].statistics_NK[:, 0]
        predictions = judgements(log_p_N, right_N, np.array([row["place"] for row in rows]))
        return dataclasses.replace(results, predictions=predictions)

    @property
    def search(self) -> BeamSearchConfig:
        """Greedy."""
        return BeamSearchConfig(beams=1, max_new_tokens=self.config.max_target_length)

    def _sources(self, rows: Sequence[Row]) -> list[str]:
        return [row["prompt"] for row in rows]

    def _cut_source(self, source: list[int], room: int) -> list[int]:
        return source[-room:]
