"""Each mistake in the rows, the task or the run to begin from is one line that names it, and leaves nothing behind."""

import json
import shutil
from pathlib import Path

import pytest

from experiments import finetune
from lm.data.config import TokenizerConfig
from lm.data.tokenizers import train_tokenizer
from tests.tiny import command_line
from tests.tiny_tasks import CONFIG, rows_of, write_rows

LONG = " ".join(["the"] * 40)


def changed(kind, row=2, **values):
    """The kind's training rows, one of them changed; None takes a column away."""
    rows = rows_of(kind, "train")
    merged = rows[row] | values
    rows[row] = {name: value for name, value in merged.items() if value is not None}
    return rows


def long_question():
    return changed("question_answering", question=" ".join(["who"] * 20))


# By name: the kind, the training rows if they are others, the flags, and what the line must say.
MISTAKES = {
    "missing column": (
        "classification",
        changed("classification", row=0, label=None),
        (),
        ("bad.jsonl:1 has no column 'label'; it has text", "config.data.columns", "'label=COLUMN'"),
    ),
    "unknown column": (
        "classification",
        None,
        ("--config.data.columns=('sentence=text',)",),
        ("config.data.columns: the task has no column 'sentence'", "text, label"),
    ),
    "empty text": ("classification", changed("classification", text=" "), (), ("bad.jsonl:3: 'text' is empty",)),
    "null": ("classification", changed("classification", label=[1]), (), ("bad.jsonl:3: 'label' must be text",)),
    "unknown label in validation": (
        "classification",
        None,
        ("--config.task.classes=('animal','plant')",),
        ("the label 'colour' is not among the classes animal, plant",),
    ),
    "a class named twice": (
        "classification",
        None,
        ("--config.task.classes=('animal','colour','animal')",),
        ("config.task.classes must be two or more different names",),
    ),
    "one class": (
        "classification",
        [{"text": "the cat", "label": "animal"}],
        (),
        ("the training rows have only the class animal", "at least two are needed"),
    ),
    "tags out of step": ("tagging", changed("tagging", tags=["O"]), (), ("bad.jsonl:3 has 5 words and 1 tags",)),
    "unknown tag": (
        "tagging",
        None,
        ("--config.task.classes=('O','B-animal')",),
        ("train.jsonl:1: the tag 'B-colour' is not among the tags O, B-animal",),
    ),
    "answer elsewhere": (
        "question_answering",
        changed("question_answering", answers=[{"text": "cat", "start": 1}]),
        (),
        ("bad.jsonl:3: the answer 'cat' is not at character 1 of the context",),
    ),
    "no answer": (
        "question_answering",
        changed("question_answering", answers=[]),
        (),
        ("bad.jsonl:3 has no answer: set config.task.unanswerable=True",),
    ),
    "stride": (
        "question_answering",
        changed("question_answering", context=f"{LONG} cat", answers=[{"text": "cat", "start": len(LONG) + 1}]),
        ("--config.task.stride=30",),
        ("bad.jsonl:3: config.task.stride=30 must be less than the number of context tokens in a window, here",),
    ),
    "long question": ("question_answering", long_question(), (), ("bad.jsonl:3: the question has 20 tokens",)),
    "unread pair": (
        "pair",
        None,
        ("--config.task.pair=False",),
        ("train.jsonl:1 has a second text, in the column 'pair'", "set config.task.pair=True"),
    ),
    "unread pair of another name": (
        "classification",
        changed("classification", row=0, hypothesis="x"),
        ("--config.data.columns=('pair=text',)",),
        ("in the column 'text'", "set config.task.pair=True"),
    ),
    "no pair": ("classification", None, ("--config.task.pair=True",), ("train.jsonl:1 has no column 'pair'",)),
    "long text": (
        "classification",
        changed("classification", text=LONG),
        (),
        ("bad.jsonl:3: the text has 42 tokens", "config.model.max_length=32", "config.task.truncate=True"),
    ),
    "long sentence": (
        "tagging",
        changed("tagging", words=LONG.split(), tags=["O"] * 40),
        (),
        ("bad.jsonl:3: the text has 40 tokens", "config.task.truncate=True"),
    ),
    "long source": ("sequence_to_sequence", changed("sequence_to_sequence", source=LONG), (), ("bad.jsonl:3",)),
    "long prompt": ("completion", changed("completion", prompt=LONG), (), ("bad.jsonl:3: the prompt has 40 tokens",)),
    "no room": (
        "completion",
        None,
        ("--config.task.max_target_length=32",),
        ("config.task.max_target_length=32 leaves no room within config.model.max_length=32",),
    ),
    "weights": (
        "classification",
        None,
        ("--config.task.class_weights=1,2,3",),
        ("config.task.class_weights must be none, balanced or 2 positive numbers for animal, colour; got '1,2,3'",),
    ),
    "negative weights": (
        "classification",
        None,
        ("--config.task.class_weights=1,-2",),
        ("config.task.class_weights",),
    ),
    "setting of another task": (
        "completion",
        None,
        ("--config.task.mixup=0.2",),
        ("config.task.mixup has no effect with config.task.name=completion: leave it out",),
    ),
    "classes of an encoder-decoder": (
        "classification",
        None,
        ("--config.model.architecture=encoder_decoder",),
        ("config.model.architecture=encoder_decoder", "choose encoder, decoder, lstm or gru"),
    ),
    "text of a recurrent model": (
        "sequence_to_sequence",
        None,
        ("--config.model.architecture=lstm",),
        ("config.model.architecture=lstm",),
    ),
    "text of an encoder": (
        "sequence_to_sequence",
        None,
        ("--config.model.architecture=encoder",),
        ("config.model.architecture=encoder does not generate text",),
    ),
    "completion by an encoder-decoder": (
        "completion",
        None,
        ("--config.model.architecture=encoder_decoder",),
        ("config.task.name=completion needs config.model.architecture=decoder",),
    ),
    "metric": (
        "classification",
        None,
        ("--config.training.best_metric=bleu",),
        ("config.training.best_metric=bleu is not logged by this run; choose one of accuracy, f1_macro", "loss"),
    ),
    "metric of texts": (
        "sequence_to_sequence",
        None,
        ("--config.training.best_metric=accuracy",),
        ("config.training.best_metric=accuracy is not logged by this run; choose one of bleu", "loss"),
    ),
    "no validation rows": (
        "classification",
        None,
        ("--config.data.validation=", "--config.data.validation_fraction=0.0"),
        ("there are no validation rows", "config.data.validation_fraction"),
    ),
    "data folder": (
        "classification",
        None,
        ("--config.data.train=jsonl:$LM_DATA_DIR/sst2/train.jsonl", "--config.data.validation=", "--config.data.test="),
        ("config.data.train=jsonl:$LM_DATA_DIR/sst2/train.jsonl", "set the environment variable LM_DATA_DIR"),
    ),
    "devices": ("classification", None, ("--config.training.batch_size=12",), ("config.training.batch_size=12",)),
    "word vectors": ("tagging", None, ("--config.word_vectors=nowhere.txt",), ("nowhere.txt",)),
    "narrow word vectors": (
        "tagging",
        None,
        ("--config.word_vectors=narrow.txt",),
        ("vectors of 2 numbers", "config.model.width is 16: set it to 2"),
    ),
    "two embeddings": (
        "tagging",
        None,
        ("--config.word_vectors=narrow.txt", "--config.init_from=x"),
        ("config.word_vectors and config.init_from", "set only one"),
    ),
    "random weights of nothing": ("tagging", None, ("--config.random_weights=True",), ("config.init_from",)),
    "no run to begin from": (
        "classification",
        None,
        ("--config.init_from=nowhere",),
        ("config.init_from=nowhere: nowhere has no run",),
    ),
}


def own_rows(source, kind):
    """Flags for other training rows beside the validation and test rows of the config file."""
    others = [f"--config.data.{part}=jsonl:rows/{kind}/{part}.jsonl" for part in ("validation", "test")]
    return (f"--config.data.train={source}", *others)


def refused(capsys, *flags):
    """The one line with which a command is refused."""
    capsys.readouterr()
    assert command_line(finetune.main, finetune.define_flags, *flags) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(mistake, here, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("LM_DATA_DIR", raising=False)
    kind, rows, flags, parts = MISTAKES[mistake]
    Path("narrow.txt").write_text("the 1 2\ncat 3 4\n")
    if rows is not None:
        flags = (*own_rows(write_rows(tmp_path / "bad.jsonl", rows), kind), *flags)
    line = refused(capsys, f"{CONFIG}:{kind}", f"--workdir={tmp_path / 'run'}", *flags)
    for part in parts:
        assert part in line, line
    assert not (tmp_path / "run").exists()


@pytest.fixture
def beginning(finetuned, here, tmp_path):
    """A copy of a run to begin from, and the flags of one that would."""
    source = tmp_path / "source"
    shutil.copytree(finetuned("classification"), source)
    return source, (f"{CONFIG}:classification", f"--workdir={tmp_path / 'run'}", f"--config.init_from={source}")


def test_another_vocabulary_than_that_of_the_run_to_begin_from(beginning, tmp_path, capsys):
    other = tmp_path / "bytes.json"
    train_tokenizer(TokenizerConfig(kind="bytes"), lambda split: []).save(other)
    flags = ("--config.tokenizer.kind=file", f"--config.tokenizer.path={other}")
    line = refused(capsys, *beginning[1], *flags)
    assert f"config.tokenizer.path={other} is another vocabulary" in line
    assert f"config.init_from={beginning[0]}" in line
    assert not (tmp_path / "run").exists()


def damage(name):
    def write(folder):
        (folder / name).write_text("{broken")

    return write


def lose_checkpoints(folder):
    shutil.rmtree(folder / "checkpoints")


def spoil_checkpoints(folder):
    for path in (folder / "checkpoints").rglob("manifest.ocdbt"):
        path.write_bytes(b"damaged")


def deepen(folder):
    """The config says that there is another layer than those in the checkpoint."""
    values = json.loads((folder / "config.json").read_text())
    values["model"]["layers"] = 2
    (folder / "config.json").write_text(json.dumps(values))


def of_another_kind(folder):
    values = json.loads((folder / "config.json").read_text())
    values["model"]["architecture"] = "encoder_decoder"
    (folder / "config.json").write_text(json.dumps(values))


DAMAGES = {
    "config": (damage("config.json"), "config.json is not JSON"),
    "tokenizer": (damage("tokenizer.json"), "tokenizer.json is not a tokenizer.json"),
    "no checkpoint": (lose_checkpoints, "has no checkpoint yet"),
    "arrays": (spoil_checkpoints, "cannot be read"),
    "layers": (deepen, "is of a model with other files: config.model.layers was 1, is 2"),
    "architecture": (of_another_kind, "config.model.architecture=encoder_decoder"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_run_to_begin_from_that_is_damaged(kind, beginning, tmp_path, capsys):
    source, flags = beginning
    change, part = DAMAGES[kind]
    change(source)
    line = refused(capsys, *flags)
    assert part in line
    assert f"config.init_from={source}: " in line
    assert not (tmp_path / "run").exists()
