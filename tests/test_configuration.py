"""Configs survive every change of form, and every mistake in one is named."""

import dataclasses
import json

import pytest

from lm.configuration import differences, flatten, from_config_dict, to_config_dict
from lm.data.config import DataConfig
from lm.errors import UserError
from lm.modules.config import ModelConfig
from lm.runs.config import PretrainConfig


def test_round_trip_through_config_dict_and_json():
    config = PretrainConfig(
        model=ModelConfig(vocab_size=7, positions="rotary", rotary_base=5.0),
        data=DataConfig(cleaning=("nfc", "whitespace")),
    )
    assert from_config_dict(PretrainConfig, to_config_dict(config)) == config
    assert from_config_dict(PretrainConfig, json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_a_config_dict_is_locked_and_typed():
    config = to_config_dict(PretrainConfig())
    with pytest.raises(AttributeError):
        config.model.layrs = 3
    with pytest.raises(TypeError):
        config.model.layers = "three"
    config.model.kv_heads = 2  # None so far, but an int it must be
    with pytest.raises(TypeError):
        config.model.head_width = "wide"


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"model": {"layrs": 3}}, "config.model.layrs"),
        ({"model": {"layers": "three"}}, "config.model.layers"),
        ({"model": {"layers": 1.5}}, "config.model.layers"),
        ({"model": {"bias": 1}}, "config.model.bias"),
        ({"model": 3}, "config.model"),
        ({"model": {"heads": 3, "width": 16}}, "config.model.heads"),
        ({"training": {"batch_size": 10, "micro_batches": 3}}, "config.training.micro_batches"),
    ],
)
def test_a_mistake_is_named(values, named):
    with pytest.raises(UserError) as error:
        from_config_dict(PretrainConfig, values)
    assert named in str(error.value)
    assert "\n" not in str(error.value)


def test_differences_are_those_there_are():
    one, other = PretrainConfig(), PretrainConfig(seed=3, data=DataConfig(cleaning=("nfc",)))
    assert differences(one, other) == {"seed": (0, 3), "data.cleaning": ([], ["nfc"])}
    as_json = json.loads(json.dumps(dataclasses.asdict(other)))
    assert differences(as_json, other) == {}
    del as_json["seed"]
    assert differences(as_json, other) == {"seed": (None, 3)}


def test_flatten_names_every_leaf():
    flat = flatten(PretrainConfig())
    assert flat["model.layers"] == 4
    assert flat["samples.sampling.top_p"] == 1.0
