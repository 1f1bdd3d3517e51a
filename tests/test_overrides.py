"""What text stands for, by the type of the value."""

import pytest

from experiments.calibrate import CalibrateConfig
from experiments.evaluate import EvaluateConfig
from experiments.predict import PredictConfig
from experiments.self_train import SelfTrainConfig
from experiments.sweep import SweepConfig
from lm.configuration import from_config_dict, type_without_none
from lm.errors import UserError
from lm.overrides import leaves, similar_keys, with_overrides
from lm.runs.config import FinetuneConfig, PretrainConfig


def read(key, text, kind=FinetuneConfig):
    config = from_config_dict(kind, with_overrides(kind, {}, {key: text}))
    for name in key.split("."):
        config = getattr(config, name)
    return config


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("task.classes", "0,1", ("0", "1")),
        ("task.classes", "(0, 1)", ("0", "1")),
        ("task.classes", "01,1.50", ("01", "1.50")),
        ("task.classes", "True,None", ("True", "None")),
        ("task.classes", "neg,pos,", ("neg", "pos")),
        ("task.classes", "['new york', 'a,b']", ("new york", "a,b")),
        ("task.classes", "'[PAD]','[UNK]'", ("[PAD]", "[UNK]")),
        ("task.classes", "", ()),
        ("task.classes", "()", ()),
        ("data.header", "new york", ("new york",)),
        ("buckets", "('16','32')", (16, 32)),
        ("buckets", "16,32", (16, 32)),
        ("buckets", "64", (64,)),
        ("buckets", "1e2,", (100,)),
        ("training.steps", "1e3", 1000),
        ("training.steps", "1_000", 1000),
        ("training.evaluation_batch_size", "None", None),
        ("training.evaluation_batch_size", "", None),
        ("training.evaluation_batch_size", "8", 8),
        ("optimizer.learning_rate", "1", 1.0),
        ("optimizer.decay_embeddings", "False", False),
        ("optimizer.decay_embeddings", "1", True),
        ("optimizer.freeze", "body/.*,head", ("body/.*", "head")),
        ("data.train", "csv:a,b.csv", "csv:a,b.csv"),
    ],
)
def test_values(key, text, value):
    found = read(key, text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(("text", "value"), [("", None), ("()", ()), ("text", ("text",)), ("a,b", ("a", "b"))])
def test_a_list_that_may_be_none(text, value):
    assert read("header", text, PredictConfig) == value


def test_a_setting_that_may_be_none_can_be():
    assert read("data.validation_source", "None", PretrainConfig) is None


@pytest.mark.parametrize(
    ("key", "text", "named"),
    [
        ("buckets", "16,x", "config.buckets must be an integer, got 'x'"),
        ("buckets", "1.5,2", "must be an integer"),
        ("task.classes", "[PAD],[UNK]", "ambiguous: quote each element"),
        ("task.classes", "(a,b)", "ambiguous: quote each element"),
        ("task.classes", "new york,boston", "ambiguous: quote each element"),
        ("task.classes", "a,,b", "ambiguous: quote each element"),
        ("seed", "-1", "config.seed must be"),
        ("seed", "1e99", "config.seed must fit in 64 bits"),
        ("seed", "1e999999999", "finite"),
        ("seed", "nan", "config.seed must be a finite number"),
        ("seed", "None", "config.seed cannot be None"),
        ("init_from", "None", "leave it empty"),
        ("optimizer.learning_rate", "inf", "finite"),
        ("optimizer.learning_rate", "1e999", "finite"),
        ("optimizer.learning_rate", "fast", "must be a number, got 'fast'"),
        ("optimizer.decay_embeddings", "maybe", "must be true or false"),
        ("optimizer", "adam", "config.optimizer is a group of values"),
        ("nothing.like.it.at.all", "1", "known here"),
    ],
)
def test_a_mistake_is_named(key, text, named):
    with pytest.raises(UserError, match=named):
        read(key, text)


NUMBERS = [
    (kind, name)
    for kind in (PretrainConfig, FinetuneConfig, CalibrateConfig, EvaluateConfig, SelfTrainConfig, SweepConfig)
    for name, hint in leaves(kind)
    if type_without_none(hint) in (int, float)
]


@pytest.mark.parametrize(("kind", "name"), NUMBERS, ids=[f"{kind.__name__}.{name}" for kind, name in NUMBERS])
def test_no_number_may_be_endless_or_below_its_range(kind, name):
    base = {"parameters": "model.dropout=0,0.1"} if kind is SweepConfig else {}
    from_config_dict(kind, with_overrides(kind, {}, base))
    for text in ("nan", "inf", "-2", "-2.5"):
        with pytest.raises(UserError):
            from_config_dict(kind, with_overrides(kind, {}, {**base, name: text}))


def test_seeds_that_jax_would_confuse_are_refused():
    assert read("seed", str(2**32 - 1)) == 2**32 - 1
    with pytest.raises(UserError, match=r"config\.seed must be from 0 to 4294967295"):
        read("seed", str(2**32))


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("optimizer.lr", "optimizer.learning_rate"),
        ("lr", "optimizer.learning_rate"),
        ("optimizer.wd", "optimizer.weight_decay"),
        ("optimizer.warmup", "optimizer.warmup_steps"),
        ("optimizer.learning_rat", "optimizer.learning_rate"),
        ("training.lr", "optimizer.learning_rate"),
        ("training.bs", "training.batch_size"),
        ("batch_size", "training.batch_size"),
        ("model.hidden_size", "model.width"),
        ("model.layer", "model.layers"),
        ("modle.layers", "model.layers"),
        ("data.dataset", "data.train"),
        ("optimizer.type", "optimizer.name"),
    ],
)
def test_the_likeliest_key_comes_first(written, meant):
    assert similar_keys(written, [name for name, _ in leaves(FinetuneConfig)])[0] == meant
