"""A small encoder that fills in masked words of Python source code: BERT's recipe at a size for two CPU cores.

python -m experiments.pretrain --config=configs/bert_quickstart.py --workdir=runs/bert
Two CPU cores: not measured yet.
"""

from ml_collections import ConfigDict

from lm.configuration import to_config_dict
from lm.data.config import DataConfig, TokenizerConfig
from lm.modules.config import ModelConfig
from lm.tasks.pretraining import ObjectiveConfig
from lm.training.config import PretrainConfig, TrainingConfig
from lm.training.optimizers import OptimizerConfig


def get_config() -> ConfigDict:
    config = PretrainConfig(
        model=ModelConfig(
            architecture="encoder",
            layers=4,
            width=128,
            heads=4,
            max_length=128,
            segment_types=2,  # for fine-tuning on pairs of texts; here all are of the first kind
            bias=True,
            # Before, unlike BERT: it learns from a larger rate without a long warm-up (Xiong et al. 2020).
            normalization_place="before",
        ),
        data=DataConfig(source="python:stdlib", random_offsets=True),
        tokenizer=TokenizerConfig(kind="bpe", vocab_size=4096),
        objective=ObjectiveConfig(name="masked", masking="whole_word"),
        optimizer=OptimizerConfig(learning_rate=2e-3, schedule="linear", warmup_steps=100, final_learning_rate=0.0),
        training=TrainingConfig(
            steps=1000,
            batch_size=32,
            evaluation_batch_size=64,
            evaluate_every=250,
            checkpoint_every=250,
            log_every=20,
        ),
    )
    return to_config_dict(config)
