"""Parameters as a person writes them."""

import math

import pytest

from lm.configuration import from_config_dict
from lm.errors import UserError
from lm.overrides import with_overrides
from lm.runs.config import PretrainConfig
from lm.sweeps.search_space import Parameter, format_values, grid, read_space, space_size, with_values


def test_values_have_the_type_of_the_config():
    texts = (
        "optimizer.learning_rate=1e-4..1e-2 log",
        "model.dropout=0..1",
        "model.layers=2..8",
        "model.width = 64, 128",
        "model.kv_heads=1,2",  # None in the config
        "data.random_offsets=true,false",
        "optimizer.name=adamw,muon",
        "optimizer.weight_decay=0,1",
    )
    learning_rate, dropout, layers, width, kv_heads, offsets, name, decay = read_space(texts, PretrainConfig)
    assert learning_rate == Parameter("optimizer.learning_rate", low=1e-4, high=1e-2, log=True)
    assert type(dropout.low) is type(dropout.high) is float
    assert (layers.low, layers.high, type(layers.low)) == (2, 8, int)
    assert width.choices == (64, 128)
    assert kv_heads.choices == (1, 2)
    assert offsets.choices == (True, False)
    assert name.choices == ("adamw", "muon")
    assert [type(choice) for choice in decay.choices] == [float, float]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "model.layer=1,2",
            "model.layer=1,2.*config.model.layer is not a known config key; did you mean config.model.l",
        ),
        ("model.layers=1,two", "model.layers=1,two.*must be an integer"),
        ("model.layers=1.5..3", "must be an integer"),
        ("model.dropout=0.3..0.1", "0.3 must be less than 0.1"),
        ("model.dropout=0..0.1 log", "must be above 0"),
        ("model.dropout=0..0.1 ln", "a range is LOW..HIGH or LOW..HIGH log"),
        ("model.dropout=0..x", "a range is LOW..HIGH"),
        ("model.dropout=0.1,nan", "a finite number"),
        ("model.dropout=0.1,0.10", "a value twice"),
        ("data.source=1..2", "is not a number"),
        ("model=1,2", "is a group of values"),
        ("model.dropout", "must be KEY=LOW..HIGH"),
        ("=1,2", "must be KEY=LOW..HIGH"),
        ("model.dropout=__import__('os')", "must be a number"),
    ],
)
def test_a_user_error_is_one_line(text, message):
    with pytest.raises(UserError, match=message) as caught:
        read_space((text,), PretrainConfig)
    assert "\n" not in str(caught.value)
    assert "config.parameters" in str(caught.value)


def test_a_key_is_given_once():
    with pytest.raises(UserError, match="names model"):
        read_space(("model.layers=1,2", "model.layers=3,4"), PretrainConfig)


def test_a_grid_is_every_combination_and_needs_lists():
    space = (Parameter("a", (1, 2)), Parameter("b", ("x", "y", "z")))
    points = grid(space)
    assert len(points) == space_size(space) == 6
    assert len({tuple(point.items()) for point in points}) == 6
    with pytest.raises(UserError, match="c=A,B,C"):
        grid((*space, Parameter("c", low=0.0, high=1.0)))


def test_sizes():
    assert space_size((Parameter("a", low=2, high=8), Parameter("b", (True, False)))) == 14
    assert space_size((Parameter("a", low=2.0, high=8.0),)) == math.inf


def test_values_are_set_together_and_validated():
    config = with_values(PretrainConfig(), {"model.width": 30, "model.heads": 3, "seed": 7})
    assert (config.model.width, config.model.heads, config.seed) == (30, 3, 7)  # 30 alone would not fit 4 heads
    with pytest.raises(UserError, match="dropout"):
        with_values(PretrainConfig(), {"model.dropout": 2.0})


def test_what_is_printed_is_read_back():
    values = {"optimizer.learning_rate": 0.1 + 0.2, "data.random_offsets": True, "model.layers": 3}
    texts = dict(pair.split("=", 1) for pair in format_values(values).split())
    config = from_config_dict(PretrainConfig, with_overrides(PretrainConfig, {}, texts))
    assert config.optimizer.learning_rate == 0.1 + 0.2
    assert config.data.random_offsets is True
    assert config.model.layers == 3
