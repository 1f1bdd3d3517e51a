"""A model of Chinese goes the whole way: pretrained, fine-tuned, evaluated, calibrated, used."""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments import calibrate, evaluate, finetune, predict, pretrain
from tests.tiny import command_line
from tests.tiny_tasks import write_rows

CONFIGS = """
from experiments.calibrate import CalibrateConfig
from lm.calibration.results import Settings
from lm.configuration import to_config_dict
from lm.data.config import DataConfig, ExamplesConfig, TokenizerConfig
from lm.modules.config import ModelConfig
from lm.objectives.objective import ObjectiveConfig
from lm.runs.config import FinetuneConfig, OptimizerConfig, PretrainConfig, SamplesConfig, TrainingConfig
from lm.tasks.supervised import TaskConfig

OPTIMIZER = OptimizerConfig(learning_rate=1e-2, warmup_steps=1)


def get_config(name):
    return to_config_dict(CONFIGS[name])


def model(architecture):
    return ModelConfig(architecture=architecture, layers=1, width=16, heads=2, max_length=32)


def training(steps):
    return TrainingConfig(steps=steps, batch_size=8, evaluate_every=steps, checkpoint_every=steps, log_every=steps)


def rows(kind):
    return ExamplesConfig(**{part: f"jsonl:{kind}.{part}.jsonl" for part in ("train", "validation", "test")})


CONFIGS = {
    "pretrain": PretrainConfig(
        model=model("encoder"),
        objective=ObjectiveConfig(name="masked", masking="whole_word", segmentation="jieba"),
        data=DataConfig(
            source="text:text.txt", document_separator="blank_line", validation_fraction=0.3, cache_dir="cache"
        ),
        tokenizer=TokenizerConfig(kind="words", vocab_size=64, segmentation="jieba"),
        optimizer=OPTIMIZER,
        training=training(4),
        samples=SamplesConfig(prompts=()),
    ),
    "finetune": FinetuneConfig(
        buckets=(32,), model=model("encoder"), data=rows("review"), optimizer=OPTIMIZER, training=training(12)
    ),
    "translate": FinetuneConfig(
        buckets=(32,),
        model=model("encoder_decoder"),
        data=rows("pair"),
        tokenizer=TokenizerConfig(kind="characters"),
        task=TaskConfig(name="sequence_to_sequence", beams=1, max_target_length=8, metric_tokenizer="zh"),
        optimizer=OPTIMIZER,
        training=training(4),
    ),
    "calibrate": CalibrateConfig(calibrators=("temperature",), settings=Settings(resamples=40, bins=5)),
}
"""
SUBJECTS, GOOD, BAD = ("电影", "音乐", "咖啡", "天气"), ("喜欢", "漂亮", "优秀"), ("讨厌", "难看", "糟糕")


def sentence(random):
    good = random.integers(2)
    word = random.choice(GOOD if good else BAD)
    return f"我们觉得{random.choice(SUBJECTS)}很{word}。", ("差评", "好评")[good]


pytestmark = pytest.mark.slow


@pytest.fixture
def chinese(tmp_path, monkeypatch):
    pytest.importorskip("jieba")
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(5)
    Path("configs.py").write_text(CONFIGS, encoding="utf-8")
    Path("text.txt").write_text("\n\n".join(sentence(random)[0] for _ in range(60)), encoding="utf-8")
    for part in ("train", "validation", "test"):
        texts = [sentence(random) for _ in range(24)]
        write_rows(Path(f"review.{part}.jsonl"), [{"text": text, "label": label} for text, label in texts])
        write_rows(Path(f"pair.{part}.jsonl"), [{"source": text, "target": label} for text, label in texts])


def run(experiment, config, *flags):
    name = () if config is None else (f"--config=configs.py:{config}",)
    assert command_line(experiment.main, experiment.define_flags, *name, *flags) == 0


def test_reviews_are_classified_and_calibrated(chinese, capsys):
    run(pretrain, "pretrain", "--workdir=text")
    vocabulary = json.loads(Path("text/tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    assert {"电影", "喜欢", "我们"} <= {word for word, _ in vocabulary}, "words, and not characters or clauses"
    run(finetune, "finetune", "--config.init_from=text", "--workdir=reviews")
    run(evaluate, None, "--workdir=reviews", "--config.resamples=20")
    run(calibrate, "calibrate", "--workdir=reviews")
    assert Path("reviews/calibration/temperature.json").is_file()
    capsys.readouterr()
    run(predict, None, "--workdir=reviews", "--calibrator=temperature", "--text=我们觉得音乐很漂亮。")
    found, said = capsys.readouterr()
    one = json.loads(found)
    assert one["text"] == "我们觉得音乐很漂亮。"
    assert one["predicted"] in one["calibrated_probabilities"].keys() == {"好评", "差评"}
    assert "unknown" not in said


def test_texts_are_generated_and_scored_by_characters(chinese, capsys):
    run(finetune, "translate", "--workdir=pairs")
    metrics = json.loads(Path("pairs/predictions/test.metrics.json").read_text(encoding="utf-8"))
    assert "tok:zh" in metrics["signatures"]["bleu"]
    assert "notes" not in metrics
    assert "metric_tokenizer" not in capsys.readouterr().err
