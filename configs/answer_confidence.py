"""Confidence in whole answers: probabilities, agreement of samples, P(True), stated percentages.

python -m experiments.answer_confidence --config=answer_confidence --config.model=gguf:FILE --workdir=runs/answers

Rows have `question` and `answer` (a text or a list of accepted ones): set config.data.train, validation and test, and
config.prompt.item if they also have a context. docs/answer_confidence.md says what each confidence is.

Not measured yet.
"""

from ml_collections import ConfigDict

from experiments.answer_confidence.__main__ import AnswerConfidenceConfig
from lm.configuration import to_config_dict


def get_config() -> ConfigDict:
    return to_config_dict(AnswerConfidenceConfig())
