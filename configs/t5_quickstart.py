"""A small encoder-decoder that reconstructs spans cut out of Python source code: T5's objective on two CPU cores.

python -m experiments.pretrain --config=configs/t5_quickstart.py --workdir=runs/t5
Measured (seed 0, two CPU cores shared with another run: 10 minutes): validation loss of the targets, including
  sentinels, 4.31 ± 0.03 after 300 steps, 4.06 ± 0.03 after 600; by frequency alone the text's tokens would cost 6.62.
  With
--config.objective.name=denoising and --config.training.steps=200: 4.63 ± 0.03.
"""

from ml_collections import ConfigDict

from lm.configuration import to_config_dict
from lm.data.config import DataConfig, TokenizerConfig
from lm.modules.config import ModelConfig
from lm.objectives.objective import ObjectiveConfig
from lm.runs.config import OptimizerConfig, PretrainConfig, TrainingConfig


def get_config() -> ConfigDict:
    config = PretrainConfig(
        model=ModelConfig(
            architecture="encoder_decoder",
            layers=3,
            width=128,
            heads=4,
            max_length=128,  # of inputs: they come from windows of 141 tokens, and targets have 29
            positions="relative",
            normalization="rms_norm",
            activation="gated_gelu",
            feed_forward_width=320,  # three matrices with about as many weights as two of width 512
        ),
        data=DataConfig(source="python:stdlib", random_offsets=True),
        tokenizer=TokenizerConfig(kind="bpe", vocab_size=4096),
        objective=ObjectiveConfig(name="span_corruption"),
        optimizer=OptimizerConfig(name="muon", learning_rate=2e-2, schedule="warmup_stable_decay", warmup_steps=20),
        training=TrainingConfig(
            steps=600,
            batch_size=32,
            evaluation_batch_size=64,
            evaluate_every=200,
            checkpoint_every=200,
            log_every=20,
        ),
    )
    return to_config_dict(config)
