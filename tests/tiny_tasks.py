"""Tiny rows for each task with examples, and configs that learn from them.

It is a config file too: `--config=tests/tiny_tasks.py:tagging`, with sources that `write_all` writes.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from lm.configuration import to_config_dict
from lm.data.config import ExamplesConfig, TokenizerConfig
from lm.modules.config import ModelConfig
from lm.runs.config import FinetuneConfig, OptimizerConfig, TrainingConfig
from lm.tasks.supervised import TaskConfig

CONFIG = f"--config={Path(__file__).absolute()}"
PARTS = {"train": 24, "validation": 16, "test": 16}

ANIMALS, COLOURS, FILLERS = ("cat", "dog", "owl"), ("red", "blue", "green"), ("the", "a", "one", "my", "this")
SAYS = {word: number for number, word in enumerate(("eins", "zwei", "drei", "vier"))}
ENGLISH = ("one", "two", "three", "four")

Random = np.random.Generator
Row = dict[str, Any]


def _text(rng: Random, words: Sequence[str]) -> str:
    return " ".join([*rng.choice(FILLERS, 2), rng.choice(words)])


def _classification(rng: Random) -> Row:
    label = rng.choice(["animal", "animal", "colour"])  # the first class is twice as frequent
    return {"text": _text(rng, ANIMALS if label == "animal" else COLOURS), "label": str(label)}


def _pair(rng: Random) -> Row:
    first, second = (("animal", ANIMALS), ("colour", COLOURS))[rng.integers(2)], ANIMALS
    return {"text": _text(rng, first[1]), "pair": _text(rng, second), "label": str(int(first[0] == "animal"))}


def _tagging(rng: Random) -> Row:
    words = [*rng.choice(FILLERS, 2), rng.choice(ANIMALS), rng.choice(FILLERS), rng.choice(COLOURS)]
    return {"words": [str(word) for word in words], "tags": ["O", "O", "B-animal", "O", "B-colour"]}


def _question_answering(rng: Random) -> Row:
    animal = str(rng.choice(ANIMALS))
    context = f"{_text(rng, COLOURS)} {animal}"
    return {"context": context, "question": "who", "answers": [{"text": animal, "start": context.rindex(animal)}]}


def _sequence_to_sequence(rng: Random) -> Row:
    words = [str(word) for word in rng.choice(list(SAYS), 2)]
    return {"source": " ".join(words), "target": " ".join(ENGLISH[SAYS[word]] for word in words)}


def _completion(rng: Random) -> Row:
    row = _sequence_to_sequence(rng)
    return {"prompt": f"{row['source']}:", "completion": f" {row['target']}"}


# By kind: how to draw a row, and what the config has besides what all have.
KINDS: dict[str, tuple[Callable[[Random], Row], dict[str, Any]]] = {
    "classification": (_classification, {"task": {"name": "classification"}}),
    "pair": (_pair, {"task": {"name": "classification", "pair": True}}),
    "tagging": (_tagging, {"task": {"name": "tagging"}, "model": {"architecture": "lstm"}, "best_metric": "f1"}),
    "question_answering": (_question_answering, {"task": {"name": "question_answering", "stride": 2}}),
    "sequence_to_sequence": (
        _sequence_to_sequence,
        {"task": {"name": "sequence_to_sequence"}, "model": {"architecture": "encoder_decoder"}},
    ),
    "completion": (_completion, {"task": {"name": "completion"}, "model": {"architecture": "decoder"}}),
}
WRITES_TEXT = {
    "sequence_to_sequence": {"beams": 2, "max_target_length": 6},
    "completion": {"max_target_length": 6},
}


def rows_of(kind: str, part: str) -> list[Row]:
    """The rows of a part, the same each time."""
    rng = np.random.default_rng((list(KINDS).index(kind), list(PARTS).index(part)))
    return [KINDS[kind][0](rng) for _ in range(PARTS[part])]


def write_rows(path: Path, rows: Sequence[Row]) -> str:
    """Writes JSON Lines and returns their source."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return f"jsonl:{path}"


def write_all(folder: Path) -> None:
    """Writes all parts of all kinds, where the configs look for them when `folder` is the current one."""
    for kind in KINDS:
        for part in PARTS:
            write_rows(folder / "rows" / kind / f"{part}.jsonl", rows_of(kind, part))


def tiny_task_config(kind: str) -> FinetuneConfig:
    """Four steps for a model of one layer; all kinds have batches of the same shape where they can."""
    values = KINDS[kind][1]
    model = {"architecture": "encoder", "layers": 1, "width": 16, "max_length": 32, "dropout": 0.1}
    model |= values.get("model", {})
    if model["architecture"] != "lstm":
        model["heads"] = 2
    return FinetuneConfig(
        buckets=(16, 32),
        model=ModelConfig(**model),
        data=ExamplesConfig(**{part: f"jsonl:rows/{kind}/{part}.jsonl" for part in PARTS}),
        tokenizer=TokenizerConfig(kind="words", vocab_size=64),
        task=TaskConfig(**values["task"] | WRITES_TEXT.get(kind, {})),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=1),
        training=TrainingConfig(
            steps=4,
            batch_size=8,
            evaluate_every=2,
            checkpoint_every=2,
            log_every=1,
            best_metric=values.get("best_metric", "loss"),
        ),
    )


def get_config(kind: str) -> ConfigDict:
    """The config of a kind."""
    return to_config_dict(tiny_task_config(kind))
