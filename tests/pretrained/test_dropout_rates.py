"""Rates of dropout go from a published config to ours and back, those of attention probabilities apart from others."""

import dataclasses

import pytest

from lm.pretrained.families import FAMILIES
from lm.pretrained.published_config import PublishedConfig

OF_ATTENTION = {"gpt2": "attn_pdrop"} | dict.fromkeys(
    ("bert", "roberta", "xlm-roberta", "camembert", "electra"), "attention_probs_dropout_prob"
)
# T5 has one rate for everything; "gemma3" holds a config of "gemma3_text".
MODEL_TYPES = sorted({name for family in FAMILIES for name in family.model_types} - {"t5", "mt5", "gemma3"})


def family_of(model_type):
    return next(family for family in FAMILIES if model_type in family.model_types)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_attention_dropout_is_read_and_written(model_type):
    name = OF_ATTENTION.get(model_type, "attention_dropout")
    family = family_of(model_type)
    ours = family.to_ours(PublishedConfig({"model_type": model_type, "vocab_size": 64, name: 0.3}, "config.json"))
    assert ours.attention_dropout == 0.3
    assert ours.dropout != 0.3
    theirs = family.to_theirs(dataclasses.replace(ours, attention_dropout=0.25))
    assert theirs[name] == 0.25
    assert 0.3 not in theirs.values()


def test_t5_drops_everything_at_one_rate():
    ours = family_of("t5").to_ours(PublishedConfig({"model_type": "t5", "dropout_rate": 0.3}, "config.json"))
    assert ours.dropout == ours.attention_dropout == 0.3
