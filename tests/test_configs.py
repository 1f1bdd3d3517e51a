"""Every config builds, and trains two steps at toy size."""

import dataclasses
import re
from pathlib import Path

import pytest

from lm.configuration import from_config_dict
from lm.models.accounting import parameter_count
from lm.training.config import PretrainConfig
from tests.tiny import run, tiny_config

ROOT = Path(__file__).parents[1]
SETTINGS = {"shakespeare_char": ("cpu", "cpu_best", "gpu")}
OF_OTHER_EXPERIMENTS = ("calibrate", "calibrate_quickstart", "guo2017")
CONFIGS = [
    (path.stem, setting)
    for path in sorted((ROOT / "configs").glob("[a-z]*.py"))
    for setting in SETTINGS.get(path.stem, (None,))
]


def load(name: str, setting: str | None) -> PretrainConfig:
    module = {}
    exec(compile((ROOT / "configs" / f"{name}.py").read_text(), name, "exec"), module)
    return from_config_dict(PretrainConfig, module["get_config"](*([setting] if setting else [])))


@pytest.mark.parametrize(("name", "setting"), [pair for pair in CONFIGS if pair[0] not in OF_OTHER_EXPERIMENTS])
def test_a_config_trains_at_toy_size(name, setting, tmp_path):
    config, tiny = load(name, setting), tiny_config(tmp_path, steps=2)
    model = dataclasses.replace(
        config.model,
        vocab_size=None,
        layers=2,
        width=16,
        heads=2,
        kv_heads=None if config.model.kv_heads is None else 1,
        feed_forward_width=24,
        max_length=16,
        dtype="float32",
        attention="explicit",
    )
    objective = dataclasses.replace(config.objective, loss_chunk=min(config.objective.loss_chunk, 24))
    training = dataclasses.replace(tiny.training, micro_batches=1)
    outcome = run(
        dataclasses.replace(tiny, model=model, optimizer=config.optimizer, objective=objective, training=training),
        tmp_path / "run",
    )
    assert int(outcome.state.step) == 2


@pytest.mark.parametrize(("name", "setting"), CONFIGS)
def test_a_header_says_how_to_run_it_and_what_to_expect(name, setting):
    text = (ROOT / "configs" / f"{name}.py").read_text()
    header = text.split('"""')[1]
    assert f"--config=configs/{name}.py" in header
    assert re.search(r"not measured yet|\d\.\d+|tokens/s|\d seconds", header)


def test_shakespeare_recipes_keep_to_nanogpts_sizes():
    laptop, best, gpu = (load("shakespeare_char", setting) for setting in SETTINGS["shakespeare_char"])
    sizes = [parameter_count(dataclasses.replace(config.model, vocab_size=65)) for config in (laptop, best, gpu)]
    assert sizes[0] == 804_096
    assert sizes[1] <= sizes[0]
    assert 10_600_000 < sizes[2] < 10_800_000
    tokens = [config.training.steps * config.training.batch_size * config.model.max_length for config in (laptop, best)]
    assert tokens[0] == 2000 * 12 * 64
    assert tokens[1] <= tokens[0]
