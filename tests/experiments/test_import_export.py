"""Models go out as Hugging Face directories and come back the same, with their calibrators."""

import dataclasses
import errno
import json
import shutil
from pathlib import Path

import chex
import numpy as np
import pytest

import lm
from experiments import calibrate, embed, evaluate, export_model, finetune, import_model, predict, pretrain
from lm.decoding.sampling import SamplingConfig
from lm.errors import UserError
from lm.models.parameter_paths import by_path
from lm.modules.config import ModelConfig
from lm.pretrained.sentence_encoders import SentenceEncoding, write_sentence_encoding
from lm.pretrained.tensors import open_tensors, write_safetensors
from lm.runs.checkpoints import Checkpoints
from lm.runs.config import FinetuneConfig, PretrainConfig
from lm.runs.model_card import suggested_calibrator
from lm.runs.sources import load_source, with_model_of_source
from lm.runs.work_directory import WorkDirectory
from tests.tiny import command_line, files_below, replace, run, tiny_config
from tests.tiny_tasks import CONFIG

GREEDY = SamplingConfig(max_new_tokens=6, temperature=0.0)
BERT = [
    f"--config.model.{setting}"
    for setting in (
        "bias=True",
        "normalization_place=after",
        "normalize_embeddings=True",
        "segment_types=2",
        "activation=gelu",
        "normalization_epsilon=1e-12",
    )
]


def export(workdir, output, *flags):
    return command_line(
        export_model.main, export_model.define_flags, f"--workdir={workdir}", f"--output={output}", *flags
    )


def bring_in(source, workdir, *flags):
    return command_line(
        import_model.main, import_model.define_flags, f"--source={source}", f"--workdir={workdir}", *flags
    )


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    """A tiny run with GPT-2's shape, and its export."""
    folder = tmp_path_factory.mktemp("writer")
    run(replace(tiny_config(folder, prompts=(), steps=2), model={"bias": True, "dropout": 0.0}), folder / "run")
    assert export(folder / "run", folder / "out") == 0
    return folder / "run", folder / "out"


@pytest.fixture(scope="module")
def classifier(finetuned, rows_folder):
    """A calibrated classifier with BERT's shape, and its export."""
    workdir = rows_folder / finetuned("classification", *BERT)
    copy = rows_folder / "exported_classifier"
    shutil.copytree(workdir, copy)
    flags = [f"--workdir={copy}", "--config.calibrators=temperature", "--config.predictions="]
    assert command_line(calibrate.main, calibrate.define_flags, "--config=configs/calibrate.py", *flags) == 0
    assert export(copy, rows_folder / "out") == 0
    return copy, rows_folder / "out"


def test_a_decoder_comes_back_bit_for_bit(writer, tmp_path):
    workdir, output = writer
    assert bring_in(output, tmp_path / "back") == 0
    before, exported, back = lm.load(workdir), lm.load(f"hf:{output}"), lm.load(tmp_path / "back")
    for model in (exported, back):
        chex.assert_trees_all_equal(model.params, before.params)
        assert model.digest == before.digest
    # The same tokens in, the same text out.
    other, third = (model.generate(["the model"], GREEDY)[0] for model in (exported, back))
    assert other.text == third.text
    np.testing.assert_array_equal(other.log_probs, third.log_probs)
    assert json.loads((output / "config.json").read_text())["model_type"] == "gpt2"
    assert (tmp_path / "back" / "checkpoints" / "0").is_dir()


def test_an_export_can_be_in_another_dtype(writer, tmp_path):
    workdir, _ = writer
    assert export(workdir, tmp_path / "half", "--config.dtype=bfloat16") == 0
    whole, half = lm.load(workdir), lm.load(f"hf:{tmp_path / 'half'}", dtype="bfloat16")
    for name, leaf in by_path(half.params).items():
        assert leaf.dtype == "bfloat16"
        np.testing.assert_array_equal(leaf, by_path(whole.params)[name].astype("bfloat16"))


def test_layers_can_be_stacked_at_import(writer, tmp_path):
    _, output = writer
    assert bring_in(output, tmp_path / "scanned", "--config.scan_layers=True") == 0
    unrolled, scanned = lm.load(f"hf:{output}"), lm.load(tmp_path / "scanned")
    np.testing.assert_allclose(
        unrolled.log_probs(["the "], ["model"])[0].log_probs,
        scanned.log_probs(["the "], ["model"])[0].log_probs,
        rtol=1e-5,
    )


@pytest.mark.parametrize("kind", [pytest.param(PretrainConfig, marks=pytest.mark.slow), FinetuneConfig])
def test_training_starts_with_the_shape_of_a_published_model(writer, tmp_path, kind):
    workdir, output = writer
    assert bring_in(output, tmp_path / "held") == 0
    shape = lm.load(f"hf:{output}").config.model
    own = ModelConfig(layers=4, dropout=0.3, dtype="bfloat16", sequence_length=8)
    for source in (f"hf:{output}", str(tmp_path / "held")):
        found = with_model_of_source(kind(init_from=source, model=own)).model
        assert found == shape.executed_as(own)
    config = with_model_of_source(kind(init_from=f"hf:{output}", model=ModelConfig(scan_layers=True)))
    assert config.model.scan_layers
    # The stacked parameters are the source's.
    for path, leaf in by_path(load_source(config).params).items():
        if path.startswith("decoder/layers/"):
            alone = by_path(lm.load(workdir).params)[path.replace("layers", "layer_1")]
            np.testing.assert_array_equal(leaf[1], alone)
    from_run = kind(init_from=str(workdir), model=own)
    assert (with_model_of_source(from_run) == from_run) == (kind is PretrainConfig)


@pytest.mark.slow
def test_a_published_model_is_fine_tuned_as_the_run_that_holds_it(writer, here, tmp_path):
    _, output = writer
    assert bring_in(output, tmp_path / "held") == 0
    results = []
    for number, source in enumerate((f"hf:{output}", tmp_path / "held")):
        workdir = tmp_path / f"tuned_{number}"
        flags = [f"{CONFIG}:completion", f"--workdir={workdir}", f"--config.init_from={source}"]
        assert command_line(finetune.main, finetune.define_flags, *flags, "--config.task.truncate=True") == 0
        results.append(lm.load(workdir))
    chex.assert_trees_all_equal(results[0].params, results[1].params)


def test_a_classifier_travels_with_its_calibrator(classifier, tmp_path):
    workdir, output = classifier
    texts = ["the my cat", "this one blue"]
    assert bring_in(output, tmp_path / "back") == 0
    expected = lm.load(workdir, calibrator="temperature").predict(texts)
    assert lm.load(f"hf:{output}", calibrator="temperature").predict(texts) == expected
    assert lm.load(tmp_path / "back", calibrator=output / "calibration" / "temperature.json").predict(texts) == expected
    values = json.loads((output / "config.json").read_text())
    assert values["architectures"] == ["BertForSequenceClassification"]
    assert values["id2label"] == {"0": "animal", "1": "colour"}
    flags = [f"--workdir={tmp_path / 'back'}", "--text=the my cat", f"--output={tmp_path / 'found.jsonl'}"]
    assert command_line(predict.main, predict.define_flags, *flags) == 0
    assert json.loads((tmp_path / "found.jsonl").read_text())["predicted"] == expected[0].label
    assert export(tmp_path / "back", tmp_path / "again") == 0
    assert f"The published model {output.name}, unchanged." in (tmp_path / "again" / "README.md").read_text()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"problem_type": "multi_label_classification"}, "problem_type='multi_label_classification' is not supported"),
        ({"id2label": {"0": "LABEL_0"}}, "a model with 1 label scores texts, which is not supported"),
        ({"id2label": {"0": "a", "2": "b"}}, "id2label must give classes 0, 1, ... different names"),
        ({"id2label": {"0": "a", "1": "b", "2": "c"}}, r"classifier.bias is \(2,\), and config.json says \(3,\)"),
    ],
)
def test_other_outputs_than_classes_are_refused(classifier, tmp_path, values, words):
    _, output = classifier
    shutil.copytree(output, tmp_path / "copy")
    with_config(**values)(tmp_path / "copy")
    with pytest.raises(UserError, match=words):
        lm.load(f"hf:{tmp_path / 'copy'}")


def test_the_card_says_what_was_trained_and_how_calibrated_it_is(classifier):
    _, output = classifier
    card = (output / "README.md").read_text()
    for words in (
        "task: classification (animal, colour)",
        "train data: jsonl:rows/classification/train.jsonl",
        "training 24 rows",
        "test: 16 rows",
        "| accuracy |",
        "## Calibration",
        "| Temperature |",
        "floor",
        'lm.load("hf:DIRECTORY", calibrator="temperature")',
    ):
        assert words in card, words
    assert str(Path.home()) not in card


@pytest.mark.parametrize(("suggested", "chosen"), [("vector", "vector"), ("isotonic", ""), ("", "")])
def test_the_card_suggests_a_calibrator_if_it_travels(tmp_path, suggested, chosen):
    (tmp_path / "calibration").mkdir()
    (tmp_path / "calibration" / "comparison.json").write_text(json.dumps({"suggested": suggested}))
    assert suggested_calibrator(["temperature", "vector"], WorkDirectory(tmp_path)) == chosen


def test_a_calibrator_of_another_model_stays_behind(classifier, tmp_path, capsys):
    workdir, _ = classifier
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    steps = sorted((copy / "checkpoints").iterdir())
    assert export(copy, tmp_path / "out", "--checkpoint=2") == 0
    assert len(steps) > 1
    assert (
        "temperature.json is left out: the calibrator temperature was fitted to checkpoint"
        in capsys.readouterr().err.replace("\n", " ")
    )
    assert not (tmp_path / "out" / "calibration" / "temperature.json").exists()


def test_texts_are_embedded(writer, tmp_path, capsys):
    _, output = writer
    flags = [f"--workdir=hf:{output}", "--text=the model", "--text=knows"]
    assert command_line(embed.main, embed.define_flags, *flags) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = lm.load(f"hf:{output}").embed(["the model", "knows"])
    assert [line["text"] for line in lines] == ["the model", "knows"]
    np.testing.assert_allclose([line["embedding"] for line in lines], expected, rtol=1e-6)
    assert command_line(embed.main, embed.define_flags, *flags, f"--output={tmp_path / 'v.npz'}") == 0
    with np.load(tmp_path / "v.npz") as arrays:
        np.testing.assert_array_equal(arrays["vectors"], expected)
    assert command_line(embed.main, embed.define_flags, *flags, "--similarity") == 0
    assert "1.000" in capsys.readouterr().out


def test_a_sentence_encoder_comes_back_as_one(classifier, tmp_path, capsys):
    _, output = classifier
    source = tmp_path / "source"
    shutil.copytree(output, source, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = open_tensors(output)
    write_safetensors(source, ((name, tensors.read(name)) for name in tensors.shapes if "classifier" not in name))
    with_config(architectures=["BertModel"])(source)
    write_sentence_encoding(source, SentenceEncoding("first", True, 8), 16)
    assert bring_in(source, tmp_path / "run") == 0
    assert export(tmp_path / "run", tmp_path / "out") == 0
    expected = lm.load(f"hf:{source}").embed(["the my cat"])
    np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(lm.load(f"hf:{tmp_path / 'out'}").embed(["the my cat"]), expected)
    flags = [f"--workdir=hf:{tmp_path / 'out'}", f"--text={'cat ' * 8}"]
    assert command_line(embed.main, embed.define_flags, *flags) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "more than config.model.sequence_length=8" in error
    assert "on the command line --truncate" in error


def broken(folder, writer, change):
    """A copy of the export with something wrong."""
    copy = folder / "broken"
    shutil.copytree(writer[1], copy)
    change(copy)
    return copy


def with_config(**values):
    def change(folder):
        known = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(known | values))

    return change


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_config(model_type="mamba"), "model_type='mamba' is not known: known are"),
        (with_config(n_layer=3), "lacks transformer.h.2."),
        (with_config(n_layer=1), "has weights that a GPT-2 model here does not use"),
        (with_config(n_head=3), "does not divide"),
        (with_config(architectures=5), "config.json: architectures must be a list of class names, got 5"),
        (with_config(layer_norm_epsilon=-1.0), "config.json: config.model.normalization_epsilon must be positive"),
        (with_config(n_embd="wide"), "n_embd must be a whole number"),
        (with_config(vocab_size=100), "the tokenizer has 257 tokens, and the model's embedding only 100"),
        (with_config(quantization_config={"bits": 4}), "weights quantized by quantization_config cannot be read"),
        (with_config(scale_attn_weights=False), "scale_attn_weights=False is not supported"),
        (cut, "model.safetensors"),
        (pickled, "pytorch_model.bin"),
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer"),
    ],
)
def test_a_damaged_model_is_refused_in_one_line(writer, tmp_path, capsys, change, words):
    source = broken(tmp_path, writer, change)
    assert bring_in(source, tmp_path / "run") == 2
    error = " ".join(capsys.readouterr().err.split())
    assert words in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_a_published_model_and_a_run_are_told_apart(writer, here, tmp_path, capsys):
    workdir, output = writer

    def refused(main, define, *flags):
        assert command_line(main, define, *flags) == 2
        return " ".join(capsys.readouterr().err.split())

    for module in (embed, evaluate, finetune):
        flags = {finetune: (f"{CONFIG}:completion", f"--config.init_from={output}", "--workdir=tuned")}
        given = flags.get(module, (f"--workdir={output}", *(["--text=a"] if module is embed else [])))
        error = refused(module.main, module.define_flags, *given)
        assert f"{output} holds a published model, not a run: to use it, write hf:{output}" in error
    error = refused(evaluate.main, evaluate.define_flags, f"--workdir=hf:{output}")
    assert f"experiments.import_model --source=hf:{output} --workdir=DIRECTORY" in error
    with pytest.raises(UserError, match="holds a published model, which has no rows: name some with"):
        evaluate.rows_to_evaluate(evaluate.EvaluateConfig(), WorkDirectory(output), FinetuneConfig())
    error = refused(embed.main, embed.define_flags, f"--workdir=hf:{workdir}", "--text=a")
    assert f"{workdir} is the directory of a run, not a published model: leave hf: out" in error
    assert bring_in(output, tmp_path / "run") == 0
    error = refused(evaluate.main, evaluate.define_flags, f"--workdir={tmp_path / 'run'}")
    assert "holds a published model, which has no validation text" in error
    assert not Path("tuned").exists()


def test_an_objective_without_room_in_the_vocabulary_is_refused(writer):
    _, output = writer
    config = PretrainConfig(init_from=f"hf:{output}", model=ModelConfig(vocab_size=257))
    tokenizer = lm.load(f"hf:{output}").tokenizer
    with pytest.raises(UserError, match=r"needs the special tokens \[MASK\], for which the vocabulary .* has no room"):
        pretrain.check_room(config, tokenizer, ["[MASK]"])
    pretrain.check_room(dataclasses.replace(config, model=ModelConfig(vocab_size=258)), tokenizer, ["[MASK]"])


def test_nothing_is_overwritten(writer, tmp_path, capsys):
    workdir, output = writer
    assert export(workdir, output) == 2
    assert "is not empty: name a new directory" in " ".join(capsys.readouterr().err.split())
    assert bring_in(output, tmp_path / "run") == 0
    assert bring_in(output, tmp_path / "run") == 2
    assert "run is not empty: use another --workdir" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(UserError, match="holds a run with another config"):
        run(tiny_config(tmp_path, steps=2), tmp_path / "run")


def test_what_is_interrupted_leaves_nothing(writer, tmp_path, monkeypatch, capsys):
    _, output = writer

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Checkpoints, "save", full)
    assert bring_in(output, tmp_path / "run") == 2
    assert "No space left on device" in capsys.readouterr().err
    assert files_below(tmp_path) <= {"run/training.lock"}
    monkeypatch.undo()
    assert bring_in(output, tmp_path / "run") == 0
    monkeypatch.setattr(export_model, "write_atomically", full)
    assert export(tmp_path / "run", tmp_path / "out") == 2
    assert not (tmp_path / "out").exists()


def test_a_model_that_no_family_has_is_refused_before_anything_is_written(finetuned, here, tmp_path, capsys):
    assert export(finetuned("classification"), tmp_path / "out") == 2  # an encoder without biases
    assert "no published family has a model of this shape" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()
