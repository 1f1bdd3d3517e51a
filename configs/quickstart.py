"""A small model of Python source code: the text that every Python installation carries.

python -m experiments.pretrain --config=configs/quickstart.py --workdir=runs/quickstart
Two CPU cores: 2 to 3 minutes, 6,000 to 8,000 tokens/s; expect validation loss 3.63 ± 0.03 after 400 steps (seed 0,
Python 3.11's library).
"""

from ml_collections import ConfigDict

from lm.configuration import to_config_dict
from lm.data.config import DataConfig, TokenizerConfig
from lm.decoding.sampling import SamplingConfig
from lm.modules.config import ModelConfig
from lm.runs.config import OptimizerConfig, PredictionsConfig, PretrainConfig, SamplesConfig, TrainingConfig


def get_config() -> ConfigDict:
    config = PretrainConfig(
        model=ModelConfig(
            layers=4,
            width=128,
            heads=4,
            max_length=128,
            positions="rotary",
            normalization="rms_norm",
        ),
        data=DataConfig(source="python:stdlib", random_offsets=True),
        tokenizer=TokenizerConfig(kind="bpe", vocab_size=2048),
        optimizer=OptimizerConfig(name="muon", learning_rate=2e-2, schedule="warmup_stable_decay", warmup_steps=20),
        training=TrainingConfig(
            steps=400,
            batch_size=16,
            evaluation_batch_size=64,
            evaluate_every=100,
            checkpoint_every=100,
            log_every=20,
        ),
        predictions=PredictionsConfig(tokens=20_000),
        samples=SamplesConfig(
            prompts=("import", "class"), sampling=SamplingConfig(max_new_tokens=100, temperature=0.8, top_p=0.95)
        ),
    )
    return to_config_dict(config)
