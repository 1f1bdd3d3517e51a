"""Fine-tuning through the command line: what it writes, where it begins, and that it may stop at any moment."""

import json
import os
import signal
from pathlib import Path

import chex
import numpy as np
import pytest

from experiments import finetune
from lm.calibration.predictions import Predictions
from lm.console import Console
from lm.data import rows
from lm.data.config import TokenizerConfig
from lm.data.tokenizers import Tokenizer, train_tokenizer
from lm.modules.config import ModelConfig
from lm.objectives.objective import ObjectiveConfig
from lm.runs.trained_run import load_run
from lm.runs.work_directory import WorkDirectory
from lm.training.loop import Trainer
from lm.training.progress import read_metrics
from tests.tiny import command_line, replace, run, tiny_config
from tests.tiny_tasks import ANIMALS, COLOURS, CONFIG, FILLERS, KINDS, PARTS, rows_of, tiny_task_config

CLASSES = {
    "classification": ["animal", "colour"],
    "pair": ["0", "1"],
    "tagging": ["B-animal", "B-colour", "O"],
}
# What a record holds of its row, and the metric that comes first.
RECORDS = {
    "classification": (("text", "label"), "accuracy"),
    "pair": (("text", "pair", "label"), "accuracy"),
    "tagging": (("words", "tags"), "f1"),
    "question_answering": (("question",), "exact_match"),
    "sequence_to_sequence": (("source", "target"), "bleu"),
    "completion": (("prompt", "completion"), "exact_match"),
}


@pytest.fixture(scope="session")
def pretrained(rows_folder):
    """The work directory of an encoder pretrained for three steps."""
    config = tiny_config(rows_folder / "pretraining", steps=3)
    model = ModelConfig(architecture="encoder", layers=1, width=16, heads=2, max_length=32)
    config = replace(config, model=model, objective=ObjectiveConfig(name="masked"))
    run(config, rows_folder / "runs" / "pretrained")
    return Path("runs/pretrained")


def flags(kind, workdir, *more):
    return (f"{CONFIG}:{kind}", f"--workdir={workdir}", *more)


def untrained(kind, workdir, *more):
    """The trainer of a run that is stopped before it compiles anything."""
    made = []

    def stop(trainer, claim):
        claim()
        made.append(trainer)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train", stop)
        assert command_line(finetune.main, finetune.define_flags, *flags(kind, workdir, *more)) == 130
    return made[0]


def finetune_quietly(config, workdir):
    return finetune.finetune(config, WorkDirectory(workdir), Console(quiet=True))


_SLOW = ("pair", "sequence_to_sequence", "completion")


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind in _SLOW)) for kind in KINDS])
def test_a_run_leaves_everything_in_its_directory(kind, finetuned, here):
    directory = WorkDirectory(finetuned(kind))
    assert directory.load_config() == tiny_task_config(kind)
    assert list(directory.load_classes()) == CLASSES.get(kind, [])
    assert directory.tokenizer.is_file()
    assert [line["step"] for line in read_metrics(directory.metrics) if "validation/loss" in line] == [2, 4]
    copied, first_metric = RECORDS[kind]
    for split in ("validation", "test"):
        rows = rows_of(kind, split)
        lines = (directory.predictions / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines]
        assert [{name: record[name] for name in copied} for record in records] == [
            {name: row[name] for name in copied} for row in rows
        ]
        assert all("predicted" in record and "confidence" in record for record in records)
        found = json.loads((directory.predictions / f"{split}.metrics.json").read_text())
        assert found["rows"] == len(rows)
        assert next(iter(found["metrics"])) == first_metric
        figure = found["metrics"][first_metric]
        assert figure["low"] <= figure["value"] <= figure["high"]


@pytest.mark.slow
def test_one_command_reads_its_rows_once(here, monkeypatch):
    read, open_rows = [], rows.open_rows

    def counted(source, key, *arguments):
        read.append(key)
        return open_rows(source, key, *arguments)

    monkeypatch.setattr(rows, "open_rows", counted)
    arguments = flags("classification", "runs/once", "--config.training.steps=1", "--config.buckets=(32,)")
    assert command_line(finetune.main, finetune.define_flags, *arguments) == 0
    assert sorted(read) == sorted(f"config.data.{part}" for part in PARTS)
    assert (WorkDirectory(Path("runs/once")).predictions / "test.metrics.json").exists()


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind in _SLOW)) for kind in CLASSES])
def test_predictions_hold_every_item_with_its_label(kind, finetuned, here):
    predictions = Predictions.load(finetuned(kind) / "predictions" / "test.npz")
    rows = rows_of(kind, "test")
    labels = [label for row in rows for label in (row["tags"] if kind == "tagging" else [row["label"]])]
    assert [predictions.class_names[label] for label in predictions.labels_N] == labels
    assert predictions.logits.shape == (len(labels), len(CLASSES[kind]))


def test_the_last_evaluation_while_training_is_that_of_the_checkpoint(finetuned, here):
    directory = WorkDirectory(finetuned("classification"))
    logged = {line["step"]: line for line in read_metrics(directory.metrics) if "validation/loss" in line}
    found = json.loads((directory.predictions / "validation.metrics.json").read_text())
    best = min(logged, key=lambda step: logged[step]["validation/loss"])
    assert found["checkpoint"] == best
    for name in ("loss", "accuracy", "f1_macro", "confidence", "ece"):
        np.testing.assert_allclose(found["metrics"][name]["value"], logged[best][f"validation/{name}"], rtol=1e-4)


def test_epochs_become_steps_with_an_evaluation_each(here, capsys):
    trainer = untrained("classification", "runs/epochs", "--config.epochs=2", "--config.buckets=(32,)")
    steps_per_epoch = PARTS["train"] // 8
    assert trainer._config.training.steps == 2 * steps_per_epoch
    assert trainer._config.training.evaluate_every == trainer._config.training.checkpoint_every == steps_per_epoch
    assert "6 steps, 3 per epoch" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_begins_from_a_pretrained_one(pretrained, here, capsys):
    first_loss = {}
    for name, more in {"pretrained": (), "random": ("--config.random_weights=True",)}.items():
        settings = (f"--config.init_from={pretrained}", "--config.training.steps=2", "--config.data.test=", *more)
        arguments = flags("classification", f"runs/from_{name}", *settings)
        assert command_line(finetune.main, finetune.define_flags, *arguments) == 0
        said = capsys.readouterr().err
        told = f"parameters from {pretrained}, step 3:" in said
        assert told == (name == "pretrained")
        if told:
            assert "head/kernel" in said.split("new ")[1]
            assert "body/token_embedding/embedding" in said.split("loaded ")[1].split("new ")[0]
            assert "prediction_head" in said.split("unused ")[1]
        line = read_metrics(Path(f"runs/from_{name}/metrics.jsonl"))[0]
        first_loss[name] = line["train/loss"]
        assert Path(f"runs/from_{name}/tokenizer.json").read_bytes() == (pretrained / "tokenizer.json").read_bytes()
    assert first_loss["pretrained"] != first_loss["random"]


def test_word_vectors_become_the_embedding(here, capsys):
    words = [*FILLERS, *ANIMALS, *COLOURS]
    vectors = np.random.default_rng(0).normal(size=(len(words), 16)).round(3)
    lines = [f"{word} {' '.join(map(str, vector))}\n" for word, vector in zip(words, vectors, strict=True)]
    Path("vectors.txt").write_text("".join(lines))
    trainer = untrained("tagging", "runs/vectors", "--config.word_vectors=vectors.txt")
    said = capsys.readouterr().err
    assert "100.0% of running tokens" in said
    tokenizer = Tokenizer.load(Path("runs/vectors/tokenizer.json"))
    table = trainer._problem.initial_params["body"]["token_embedding"]["embedding"]
    for word, vector in zip(words, vectors, strict=True):
        np.testing.assert_allclose(table[tokenizer.encode(word)[0]], vector, rtol=1e-6)


@pytest.mark.parametrize("at", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_signal_saves_and_the_same_command_resumes_exactly(at, finetuned, here, monkeypatch):
    whole, cut = finetuned("tagging"), Path(f"runs/cut_{at}")
    count = Trainer._count

    def interrupt(trainer, step, sums):
        count(trainer, step, sums)
        if step == at:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_count", interrupt)
        assert command_line(finetune.main, finetune.define_flags, *flags("tagging", cut)) == 128 + signal.SIGTERM
    assert not (cut / "predictions").exists()
    assert command_line(finetune.main, finetune.define_flags, *flags("tagging", cut)) == 0
    assert (cut / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    chex.assert_trees_all_equal(load_run(WorkDirectory(cut)).params, load_run(WorkDirectory(whole)).params)
    for name in ("test.jsonl", "test.metrics.json"):
        assert (cut / "predictions" / name).read_bytes() == (whole / "predictions" / name).read_bytes()


@pytest.mark.slow
def test_dying_in_an_evaluation_loses_nothing(finetuned, here):
    whole, cut = finetuned("classification"), Path("runs/died")

    def die(step, metrics):
        if step == 4:
            raise KeyboardInterrupt

    config = tiny_task_config("classification")
    with pytest.raises(KeyboardInterrupt):
        finetune.finetune(config, WorkDirectory(cut), Console(quiet=True), on_evaluation=die)
    finetune_quietly(config, cut)
    assert (cut / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_long_texts_are_cut_and_counted_where_that_is_allowed(here, capsys):
    trainer = untrained("classification", "runs/short", "--config.model.max_length=4", "--config.task.truncate=True")
    assert "truncated to 4 tokens: 24 rows for training, 16 for validation" in capsys.readouterr().err
    assert trainer._problem.train_batches[0]["tokens"].shape == (8, 4)


def test_each_split_is_printed_with_its_source(here, capsys):
    untrained("classification", "runs/sources", "--config.data.validation=", "--config.data.validation_fraction=0.5")
    printed = capsys.readouterr().err
    assert "training: 11 rows of jsonl:rows/classification/train.jsonl\n" in printed
    assert "validation: 13 rows held out of jsonl:rows/classification/train.jsonl\n" in printed
    assert "rows of jsonl:rows/classification/test.jsonl\n" in printed


def test_ones_own_training_rows_are_not_judged_by_the_rows_of_the_config(here, capsys):
    arguments = flags("classification", "runs/own", "--config.data.train=csv:own.csv", "--config.data.test=")
    assert command_line(finetune.main, finetune.define_flags, *arguments) == 2
    assert "config.data.validation=jsonl:rows/classification/validation.jsonl is the config file's" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(("texts", "noted"), [(("แมวน่ารัก", "หมาดุร้าย"), True), (("the cat", "the dog"), False)])
def test_text_that_the_tokenizer_does_not_know_is_noted(texts, noted):
    tokenizer = train_tokenizer(TokenizerConfig(kind="words", vocab_size=64), [f"{texts[0]} the dog"])
    note = finetune.unknown_note(tokenizer, [texts[1]])
    assert note.startswith("100% of the tokens are unknown") == noted == bool(note)
    assert "config.tokenizer.kind=bpe" in note or not noted


def test_test_rows_that_are_known_from_training_are_counted(here, capsys):
    untrained("classification", "runs/known", "--config.data.test=jsonl:rows/classification/train.jsonl")
    assert "24 test rows are also in the training rows" in capsys.readouterr().err
