"""Every config builds, and trains two steps at toy size."""

import dataclasses
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.answer_confidence.config import AnswerConfidenceConfig
from experiments.calibrate import CalibrateConfig
from experiments.entropy_rate.ladder import EntropyRateConfig
from experiments.finetune import finetune
from experiments.guo2017.__main__ import Guo2017Config
from experiments.next_token_sets.__main__ import NextTokenSetsConfig
from experiments.protocol.settings import ProtocolConfig
from experiments.self_train import SelfTrainConfig
from experiments.sweep import SweepConfig
from lm.configuration import from_config_dict
from lm.console import Console
from lm.data.sharding import ShardsConfig
from lm.errors import UserError
from lm.models.accounting import parameter_count
from lm.modules.config import TRANSFORMERS
from lm.runs.config import FinetuneConfig, PretrainConfig
from lm.runs.prompted_run import PromptedRunConfig
from lm.runs.work_directory import WorkDirectory
from lm.tasks.registry import TASKS
from tests.tiny import run, tiny_config
from tests.tiny_tasks import ANIMALS, COLOURS, FILLERS, rows_of, write_rows

ROOT = Path(__file__).parents[1]
SETTINGS = {
    "shakespeare_char": ("cpu", "cpu_best", "gpu"),
    "lstm_sst2": ("random", "vectors"),
    "next_token_sets": ("sotu", "ag_news", "own"),
    "prompt": (None, "sst2", "ag_news", "trec", "sick", "sst5", "reviews"),
    "answer_confidence": (None, "xquad"),
    "published_encoder": ("sst2", "trec", "ag_news", "ag_news_all"),
    "sick_nli": ("random", "vectors"),
    "trec": ("random", "vectors"),
    "wnut17_ner": ("random", "vectors"),
}
# Of the other experiments; all the rest are of experiments.pretrain.
KINDS = {
    "answer_confidence": AnswerConfidenceConfig,
    "calibrate": CalibrateConfig,
    "calibrate_prompt": CalibrateConfig,
    "calibrate_quickstart": CalibrateConfig,
    "entropy_rate": EntropyRateConfig,
    "guo2017": Guo2017Config,
    "next_token_sets": NextTokenSetsConfig,
    "protocol": ProtocolConfig,
    "self_training": SelfTrainConfig,
    "shards": ShardsConfig,
    "sweep_quickstart": SweepConfig,
    "ag_news": FinetuneConfig,
    "classify": FinetuneConfig,
    "tag": FinetuneConfig,
    "translate": FinetuneConfig,
    "dialogsum": FinetuneConfig,
    "lstm_sst2": FinetuneConfig,
    "multi30k_translation": FinetuneConfig,
    "published_decoder": FinetuneConfig,
    "published_encoder": FinetuneConfig,
    "prompt": PromptedRunConfig,
    "sick_nli": FinetuneConfig,
    "sst2": FinetuneConfig,
    "trec": FinetuneConfig,
    "wnut17_ner": FinetuneConfig,
    "xquad_qa": FinetuneConfig,
}
CONFIGS = [
    (path.stem, setting)
    for path in sorted((ROOT / "configs").glob("[a-z]*.py"))
    for setting in SETTINGS.get(path.stem, (None,))
]
SMALLEST_VOCABULARY = {"bpe": 300, "wordpiece": 300, "words": 64}


def of_kind(kind: type) -> list[tuple[str, str | None]]:
    return [pair for pair in CONFIGS if KINDS.get(pair[0], PretrainConfig) is kind]


def load(name: str, setting: str | None):
    module = {}
    exec(compile((ROOT / "configs" / f"{name}.py").read_text(), name, "exec"), module)
    kind = KINDS.get(name, PretrainConfig)
    return from_config_dict(kind, module["get_config"](*([setting] if setting else [])))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "setting"), of_kind(PretrainConfig))
def test_a_pretraining_config_trains_at_toy_size(name, setting, tmp_path):
    config, tiny = load(name, setting), tiny_config(tmp_path, steps=2)
    model = dataclasses.replace(
        config.model,
        vocab_size=None,
        layers=1,
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


def write_split(config: FinetuneConfig, folder: Path) -> dict[str, str]:
    """Tiny rows of the config's kind, with its names of columns, in place of its sources."""
    kind = "pair" if config.task.pair else config.task.name
    names = config.data.column_names
    sources = {}
    for part in ("train", "validation"):
        rows = [{names.get(name, name): value for name, value in row.items()} for row in rows_of(kind, part)]
        sources[part] = write_rows(folder / f"{part}.jsonl", rows)
    return sources


def write_vectors(path: Path, width: int) -> str:
    """Word vectors of nearly all words of the rows."""
    rng = np.random.default_rng(0)
    lines = [f"{word} {' '.join(map(str, rng.normal(size=width)))}\n" for word in (*ANIMALS, *COLOURS, *FILLERS[1:])]
    path.write_text("".join(lines))
    return str(path)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "setting"), of_kind(FinetuneConfig))
def test_a_fine_tuning_config_trains_at_toy_size(name, setting, tmp_path):
    config = load(name, setting)
    width = config.model.width if setting == "vectors" else 16
    model = dataclasses.replace(
        config.model,
        layers=1,
        width=width,
        recurrent_width=config.model.recurrent_width and 8,
        heads=2 if config.model.architecture in TRANSFORMERS else config.model.heads,
        max_length=64,
    )
    task = config.task
    if "max_target_length" in TASKS[task.name].settings:
        task = dataclasses.replace(task, max_target_length=min(task.max_target_length, 16))
    vocabulary = SMALLEST_VOCABULARY[config.tokenizer.kind]
    config = dataclasses.replace(
        config,
        epochs=0,
        buckets=(64,),
        model=model,
        task=task,
        data=dataclasses.replace(config.data, **write_split(config, tmp_path), test="", train_rows=0),
        tokenizer=dataclasses.replace(config.tokenizer, vocab_size=vocabulary),
        training=dataclasses.replace(config.training, steps=2, batch_size=8, evaluation_batch_size=16),
        word_vectors=write_vectors(tmp_path / "vectors.txt", width) if setting == "vectors" else "",
    )
    outcome = finetune(config, WorkDirectory(tmp_path / "run"), Console(quiet=True))
    assert int(outcome.state.step) == 2
    assert f"validation/{config.training.best_metric}" in outcome.validation
    moved = jax.tree.leaves(outcome.state.params)
    assert all(np.isfinite(leaf).all() for leaf in moved)


@pytest.mark.parametrize(("name", "setting"), CONFIGS)
def test_a_config_builds_and_its_header_says_how_to_run_it_and_what_to_expect(name, setting):
    load(name, setting)
    text = (ROOT / "configs" / f"{name}.py").read_text()
    header = text.split('"""')[1]
    assert f"--config=configs/{name}.py" in header
    assert re.search(r"not measured yet|Not measured yet|\d\.\d+|tokens/s|\d seconds", header)


@pytest.mark.parametrize("name", SETTINGS)
def test_an_unknown_setting_is_refused_by_those_that_there_are(name):
    with pytest.raises(UserError, match=f"configs/{name}.py has the settings .*; got 'nothing'"):
        load(name, "nothing")


def test_shakespeare_recipes_keep_to_nanogpts_sizes():
    laptop, best, gpu = (load("shakespeare_char", setting) for setting in SETTINGS["shakespeare_char"])
    sizes = [parameter_count(dataclasses.replace(config.model, vocab_size=65)) for config in (laptop, best, gpu)]
    assert sizes[0] == 804_096
    assert sizes[1] <= sizes[0]
    assert 10_600_000 < sizes[2] < 10_800_000
    tokens = [config.training.steps * config.training.batch_size * config.model.max_length for config in (laptop, best)]
    assert tokens[0] == 2000 * 12 * 64
    assert tokens[1] <= tokens[0]
