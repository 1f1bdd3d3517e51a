"""Configs of runs: what a new one refuses, and what an old one may still say."""

import dataclasses
import json

import pytest

from lm.configuration import from_config_dict, to_config_dict
from lm.errors import UserError
from lm.modules.config import ModelConfig
from lm.objectives.objective import ObjectiveConfig
from lm.overrides import with_overrides
from lm.runs.config import FinetuneConfig, PretrainConfig, stored_config
from lm.runs.work_directory import WorkDirectory
from lm.tasks.supervised import TaskConfig


def stored(config, **changes):
    """What a work directory holds, with values changed by "group/name"."""
    values = json.loads(json.dumps(dataclasses.asdict(config)))
    for name, value in changes.items():
        group, key = name.split("__")
        values[group][key] = value
    return values


OLD = [
    (PretrainConfig(), {"objective__mask_rate": 0.3}),
    (PretrainConfig(), {"model__rotary_base": 500.0, "objective__sentinels": 3}),
    (PretrainConfig(objective=ObjectiveConfig(name="masked", mask_rate=0.2)), {"objective__noise_density": 0.5}),
    (
        FinetuneConfig(model=ModelConfig(architecture="lstm")),
        {"model__heads": 2, "model__positions": "rotary", "model__rotary_base": 500.0},
    ),
    (FinetuneConfig(task=TaskConfig(name="tagging")), {"task__stride": 8, "model__decoder_layers": 3}),
]


@pytest.mark.parametrize(("config", "changes"), OLD)
def test_a_stored_config_may_have_settings_without_effect_and_a_new_one_may_not(config, changes):
    assert stored_config(stored(config), "config") == config
    assert stored_config(stored(config, **changes), "config") == config
    for name, value in changes.items():
        group, key = name.split("__")
        with pytest.raises(UserError, match=f"config.{group}.{key} has no effect with config.{group}."):
            dataclasses.replace(config, **{group: dataclasses.replace(getattr(config, group), **{key: value})})


@pytest.mark.parametrize(("config", "changes"), OLD)
def test_a_run_with_settings_without_effect_resumes_when_they_are_left_out(config, changes, tmp_path):
    directory = WorkDirectory(tmp_path)
    directory.config.write_text(json.dumps(stored(config, **changes)))
    directory.check(config)
    with pytest.raises(UserError, match=r"holds a run with another config \(config.seed was 0, is 1\)"):
        directory.check(dataclasses.replace(config, seed=1))


def test_layers_without_a_window_survive_files_and_overrides():
    config = PretrainConfig(model=ModelConfig(layers=6, attention_window=8, global_layers=(2, 5)))
    assert stored_config(stored(config), "config") == config
    typed = with_overrides(PretrainConfig, stored(config), {"model.global_layers": "1,4"})
    assert stored_config(typed, "config").model.global_layers == (1, 4)
    assert from_config_dict(PretrainConfig, to_config_dict(config)) == config
    # An earlier version knew neither.
    old = stored(PretrainConfig())
    del old["model"]["global_layers"], old["model"]["attention_window"]
    assert stored_config(old, "config") == PretrainConfig()


def test_examples_may_be_shorter_than_the_model_and_not_longer():
    model = ModelConfig(architecture="encoder", max_length=100, sequence_length=40)
    assert FinetuneConfig(model=model).lengths == (16, 32, 40)
    longer = dataclasses.replace(model, sequence_length=300)
    for config in (FinetuneConfig, PretrainConfig):
        with pytest.raises(UserError, match=r"sequence_length=300 is longer than the model can process"):
            config(model=longer)
    # With a source, its model counts.
    assert FinetuneConfig(model=longer, init_from="runs/long").lengths == (16, 32, 64, 128, 256, 300)


def test_a_stored_config_keeps_what_its_choice_uses():
    config = PretrainConfig(objective=ObjectiveConfig(name="masked", mask_rate=0.2, masking="span"))
    assert stored_config(stored(config), "config").objective.mask_rate == 0.2
    with pytest.raises(UserError, match=r"config\.objective\.name must be one of"):
        stored_config(stored(config, objective__name="bert"), "DIR")
