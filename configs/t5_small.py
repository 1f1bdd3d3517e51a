"""T5 small, pretrained by span corruption with the baseline recipe of Raffel et al. 2020 (section 3.1).

python -m experiments.pretrain --config=configs/t5_small.py --workdir=runs/t5_small
The catalogue set is prepared on first use, which takes TensorFlow: pip install -e '.[tfds]'. It is Wikipedia; the
paper's C4 is --config.data.source=tfds:c4/en with its own splits.
Any other text works too: --config.data.source='text:/data/corpus/**/*.txt'

One H100, bf16: not measured yet.
"""

import dataclasses

from ml_collections import ConfigDict

from lm.configuration import to_config_dict
from lm.data.config import DataConfig, TokenizerConfig
from lm.models.presets import preset
from lm.objectives.objective import ObjectiveConfig
from lm.runs.config import OptimizerConfig, PretrainConfig, TrainingConfig


def get_config() -> ConfigDict:
    config = PretrainConfig(
        model=dataclasses.replace(
            preset("t5_small"),  # 32,128 tokens: 32,100 padded to a multiple of 128
            dropout=0.0,  # as in T5 1.1: a corpus of this size does not overfit
            dtype="bfloat16",
        ),
        data=DataConfig(source="tfds:wikipedia/20230601.en", train_split="train[:99%]", validation_split="train[99%:]"),
        tokenizer=TokenizerConfig(kind="unigram", vocab_size=32_000),  # and 100 sentinels
        objective=ObjectiveConfig(name="span_corruption"),
        # The paper's rate is 1 / sqrt(step) after 10,000 steps at 0.01; here it rises to 0.01 in that time.
        optimizer=OptimizerConfig(
            name="adafactor",
            learning_rate=1e-2,
            schedule="inverse_square_root",
            warmup_steps=10_000,
            weight_decay=0.0,
            clip_norm=0.0,
        ),
        training=TrainingConfig(
            steps=524_288,
            batch_size=128,
            evaluation_batch_size=128,
            evaluate_every=10_000,
            checkpoint_every=2000,
            log_every=50,
            loader_threads=2,
        ),
    )
    return to_config_dict(config)
