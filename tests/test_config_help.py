"""Help describes every key, so every key has a description."""

import pytest

from experiments.calibrate import CalibrateConfig
from experiments.evaluate import EvaluateConfig
from experiments.guo2017.__main__ import Guo2017Config
from experiments.self_train import SelfTrainConfig
from experiments.sweep import SweepConfig
from lm.config_help import attributes, describe, type_name
from lm.overrides import leaves
from lm.runs.config import FinetuneConfig, OptimizerConfig, PretrainConfig
from lm.runs.prompted_run import PromptedRunConfig

KINDS = (
    PretrainConfig,
    FinetuneConfig,
    CalibrateConfig,
    EvaluateConfig,
    Guo2017Config,
    SelfTrainConfig,
    SweepConfig,
    PromptedRunConfig,
)


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_is_described(kind):
    lines = describe(kind).splitlines()
    for name, hint in leaves(kind):
        place = next(n for n, line in enumerate(lines) if line.startswith(f"  --config.{name}: {type_name(hint)}"))
        assert lines[place + 1].startswith("      "), name
        assert lines[place].count("(default") == lines[place].endswith(")"), name


def test_a_description_over_two_lines_is_joined():
    assert attributes(OptimizerConfig)["decay_embeddings"].endswith("They never apply to norms and biases.")


def test_types_in_words():
    names = [type_name(hint) for hint in (int, float | None, tuple[str, ...], bool)]
    assert names == ["integer", "number or None", "list of text", "true or false"]
