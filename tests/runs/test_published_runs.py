"""Which objective a published encoder's run has."""

import types

import pytest

from lm.data.special_tokens import SpecialTokens
from lm.data.tokenizers import Tokenizer
from lm.modules.config import ModelConfig
from lm.objectives.objective import ObjectiveConfig
from lm.pretrained.sentence_encoders import SentenceEncoding
from lm.runs.published_runs import published_config
from tests.data.published_files import make_backend

FIRST = SentenceEncoding("first", normalize=True, sequence_length=5)
ROLES = {"cls": "<s>", "sep": "</s>", "mask": "<mask>"}


@pytest.mark.parametrize(
    ("parts", "sentences", "objective"),
    [
        ((), None, ObjectiveConfig(name="none")),
        (("pooler",), None, ObjectiveConfig(name="none", pooler=True)),
        (("prediction_head",), None, ObjectiveConfig(name="masked")),
        (("pooler", "prediction_head"), None, ObjectiveConfig(name="masked")),
        (("pooler", "prediction_head", "next_sentence_head"), None, ObjectiveConfig(name="masked_next_sentence")),
        # What it says of sentences is kept, whatever else it has.
        (("prediction_head",), FIRST, ObjectiveConfig(name="none", pooling="first", normalize=True)),
    ],
)
def test_the_objective_is_that_of_the_parts_and_of_the_sentences(parts, sentences, objective):
    published = types.SimpleNamespace(
        config=ModelConfig(architecture="encoder", max_length=8),
        parts=parts,
        sentences=sentences,
        tokenizer=Tokenizer(make_backend(), published=SpecialTokens(ROLES)),
        task="",
        model_type="bert",
    )
    config = published_config("hf:here", published)
    assert config.objective == objective
    assert config.model.sequence_length == (None if sentences is None else 5)
